"""Cautious steps: an optimizer's step where it agrees with the gradient, none where it does not.

    kept = u * g < 0
    u   <- u * kept / max(mean(kept), 1e-3)                 the mean is taken over each leaf

Liang, Chen, Liu, Liu, "Cautious Optimizers: Improving Training with One Line of Code", 2024.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Pair, Params, State, Updates, member


@value_equal
def cautious(tx: Pair, maximize: bool = False) -> GradientTransformation:
    """Keeps the elements of an optimizer's step that go downhill, and makes them larger.

    An element is kept if it points against the gradient of this update. What is kept is divided by
    the share of the leaf that is kept, 0.001 at least. Of a complex element, each part is kept or
    not.

    A weight decay inside of `tx` is part of its step. To leave it out of the choice, put it behind:
    `chain(cautious(adam(lr)), add_decayed_weights(-lr * weight_decay))`.

    Args:
      tx: an optimizer: a pair that makes steps from gradients.
      maximize: keep what points along the gradient, for a `tx` that ascends. Default: False.

    Returns:
      A pair whose state is that of `tx`.

    Raises:
      TypeError: tx is not a pair, or maximize no bool.
    """
    inner = member(tx, "the transform of cautious")
    checks.flag("maximize", maximize)
    wanted = 1 if maximize else -1

    def kept(u: Any, g: Any) -> jax.Array:
        u, g = jnp.asarray(u), jnp.asarray(g)
        dtype = real_dtype(u.dtype)
        step = to_real(u, dtype)
        gradient = to_real(g.astype(widest(g.dtype, u.dtype)), dtype)
        # The product of the signs: that of the values underflows for small gradients.
        keep = (jnp.sign(step) * jnp.sign(gradient) == wanted).astype(dtype)
        share = jnp.sum(keep) / max(keep.size, 1)
        return from_real(step * keep / jnp.maximum(share, 1e-3), u.dtype)

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        updates, state = inner.update(grads, state, params, **extra)
        return trees.map_updates(kept, updates, grads=grads), state

    return GradientTransformation(abstract_aware(inner.init), update)
