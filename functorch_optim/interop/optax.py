"""Pairs for optax's own `apply_updates`: `interop.optax.to_optax`.

A pair of this library is an instance of optax's classes (`core/pair.py` says how), and goes into
optax as it is. One thing is left: `optax.apply_updates` has no word for "this parameter stays"
(here: an update of `None`), nor for a sparse update.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import Params, State, Updates, member

try:
    import optax
except ImportError as error:
    raise ImportError(
        'functorch_optim.interop.optax needs optax: pip install "functorch_optim[optax]"'
    ) from error


@value_equal
def to_optax(tx: Any) -> Any:
    """A pair as an `optax.GradientTransformationExtraArgs` whose updates are all arrays.

    That is what `optax.apply_updates` wants: zeros for a leaf that is skipped (an integer, a leaf
    without a gradient), and a sparse update made dense. `None` stays where the parameters have
    `None`. Any other pair of this library does without it. (A pair of your own whose update takes
    some extra arguments by name, and no `**extra`, gets those inside optax's combinators too.)

    Args:
      tx: a pair of this library, or of any other with optax's protocol.

    Raises:
      TypeError: it is not a pair.
    """
    inner = member(tx, "the argument of to_optax")

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        new, state = inner.update(updates, state, params, **extra)
        likes, treedef = trees.flatten(updates if params is None else params)
        changes = trees.flatten_like(new, treedef, "updates")
        dense = [_dense(change, like) for change, like in zip(changes, likes, strict=True)]
        return treedef.unflatten(dense), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _dense(update: Any, like: Any) -> Any:
    """An update as an array: zeros like the parameter (or the gradient) where there is none."""
    if trees.is_sparse(update):
        return update.todense()
    if like is None or update is not None:
        return update
    # Without params, an integer's gradient says nothing of its dtype: bool + integer is that.
    return jnp.zeros(np.shape(like), bool) if trees.is_float0(like) else jnp.zeros_like(like)
