"""The precision in which a transform keeps its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import trees
from functorch_optim.core.dtypes import widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Params, State


@value_equal
def float32_state(tx: GradientTransformation) -> GradientTransformation:
    """Keeps the state of a transform in float32 where parameters are float16 or bfloat16.

    By default buffers have their parameter's dtype, as in torch, and a bfloat16 second moment
    stops following small gradients: its 8 bits do not hold `0.999 * v + 0.001 * g * g`. Updates are
    computed in float32 either way, and are in the parameter's dtype either way.

    Args:
      tx: a pair of this library (each keeps the dtype that a buffer has), or a chain of them.
    """

    def init(params: Params) -> State:
        ps, treedef = trees.flatten(params)
        return tx.init(treedef.unflatten([_widened(p) for p in ps]))

    return GradientTransformation(init, tx.update)


def _widened(p: Any) -> Any:
    if trees.has_no_update(p):
        return p
    p = jnp.asarray(p)
    return jax.lax.convert_element_type(p, widest(p.dtype))
