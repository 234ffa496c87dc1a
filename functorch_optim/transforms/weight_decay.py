"""Weight decay as a transform of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.compose.leaf_labels import PerLeaf, check_mask, chosen
from functorch_optim.core import checks, trees
from functorch_optim.core.dtypes import from_real, real_dtype, to_real
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Number, Params, Updates, stateless


@value_equal
def add_decayed_weights(
    weight_decay: Number, mask: PerLeaf | None = None
) -> GradientTransformation:
    """Adds `weight_decay * p` to the updates.

    In front of an algorithm this is L2 regularization of the gradient; behind one, whose updates
    are steps downhill, a decay needs a negative number.

    A parameter whose gradient is `None` (or float0) is not decayed: its update is `None`, like that
    of every parameter that is skipped. One whose gradient is zeros is decayed.

    Args:
      weight_decay: the factor, a number or an array.
      mask: which parameters: a tree of the params' structure (or of its top) with True and False,
        or a function of params that returns one, `by_path(...)` for instance. All by default.

    Raises:
      TypeError: weight_decay is not a number or an array, or the mask's structure is not that of
        params. ValueError: `update` was called without params. RuntimeError: a gradient that is
        to be decayed is sparse.
    """
    checks.number("weight_decay", weight_decay)
    if mask is not None:
        check_mask(mask)

    def changed(updates: Updates, params: Params | None) -> Updates:
        checks.given("add_decayed_weights", "params", params, "weight decay adds a share of it")
        on, ps, treedef = chosen(True if mask is None else mask, params)
        us = trees.flatten_like(updates, treedef, "updates")
        trees.check_shapes(us, ps, treedef, "updates")
        new = [
            None if trees.has_no_update(u) else _decayed(u, p, weight_decay) if keep else u
            for u, p, keep in zip(us, ps, on, strict=True)
        ]
        return treedef.unflatten(new)

    return stateless(changed)


def _decayed(update: Any, p: Any, weight_decay: Number) -> jax.Array:
    if trees.is_sparse(update):
        raise RuntimeError("weight_decay option is not compatible with sparse gradients")
    update, p = jnp.asarray(update), jnp.asarray(p)
    dtype = real_dtype(update.dtype)
    decay = jnp.asarray(weight_decay, dtype).reshape(()) * to_real(p.astype(update.dtype), dtype)
    return from_real(to_real(update, dtype) + decay, update.dtype)
