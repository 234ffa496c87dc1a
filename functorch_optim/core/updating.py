"""Leaves and trees of updates: scaled, and added to parameters. A sparse leaf stays sparse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from functorch_optim.core import sparse_leaves
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.trees import (
    check_shapes,
    flatten,
    flatten_like,
    has_no_update,
    is_float0,
    is_sparse,
    map_updates,
)

T = TypeVar("T")


def entrywise(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    """An elementwise function that leaves 0 as it is, as a function of a sparse leaf."""

    def of_sparse(x: Any) -> Any:
        wide = sparse_leaves.coalesced(x, widest(x.dtype))
        return sparse_leaves.on_coalesced(lambda data: function(data).astype(x.dtype), wide)

    return of_sparse


def elements(x: Any) -> jax.Array:
    """A leaf as an array; of a sparse one the entries, summed in float32 at least."""
    if is_sparse(x):
        return sparse_leaves.coalesced(x, widest(x.dtype)).data
    return jnp.asarray(x)


def times(x: Any, factor: Any) -> jax.Array:
    """x times a real factor that broadcasts to it, computed in float32 at least.

    A sparse x takes a number or a 0-d array.
    """
    if is_sparse(x):
        if jnp.ndim(factor):
            raise ValueError(f"a sparse leaf times a factor of shape {jnp.shape(factor)}")
        return sparse_leaves.on_data(lambda data: times(data, factor), x)
    x = jnp.asarray(x)
    dtype = real_dtype(x.dtype)
    factor = jnp.asarray(factor, dtype)
    if jnp.iscomplexobj(x) and factor.ndim:
        factor = factor[..., None]
    return from_real(to_real(x, dtype) * factor, x.dtype)


def scale(updates: Any, factor: Any) -> Any:
    """Every update times a number or a 0-d array."""

    def scaled(update: Any) -> Any:
        return times(update, factor)

    return map_updates(scaled, updates, scaled)


def zeros_like(x: Any) -> Any:
    """The update that changes nothing: zeros; `None` where there is no update."""
    if is_sparse(x):
        return sparse_leaves.unused(x)
    return None if has_no_update(x) else jnp.zeros_like(x)


def add(p: Any, update: Any) -> jax.Array:
    """`p + update` in p's dtype, computed in the wider of the two and rounded once.

    A sparse update touches its places only: in place, if p is donated and nothing else reads it.
    """
    p = p.todense() if is_sparse(p) else jnp.asarray(p)
    if is_sparse(update):
        if p.dtype == update.dtype == widest(p.dtype):
            return sparse_leaves.plus(p, update)
        update = sparse_leaves.coalesced(update, widest(update.dtype))
        return sparse_leaves.with_entries(
            p, update, add(sparse_leaves.entries(p, update), update.data)
        )
    update = jnp.asarray(update)
    if p.dtype == update.dtype:
        return p + update
    dtype = widest(p.dtype, update.dtype)
    return (p.astype(dtype) + update.astype(dtype)).astype(p.dtype)


def apply_updates(params: T, updates: Any) -> T:
    """Adds updates to parameters.

    Args:
      params: a tree of arrays.
      updates: a tree of the same structure and shapes; where it has `None` the parameter stays.
        Of a sparse one (BCOO) the entries are added, without a copy of a parameter that is donated.

    Returns:
      The new parameters, each in its own dtype: the sum is taken in the wider dtype of the two
      and rounded once.

    Raises:
      TypeError: the structures differ. ValueError: two shapes differ. Both name the first path.
    """
    leaves, treedef = flatten(params)
    changes = flatten_like(updates, treedef, "updates")
    check_shapes(changes, leaves, treedef, "updates")
    new = [
        p if p is None or u is None or is_float0(u) else add(p, u)
        for p, u in zip(leaves, changes, strict=True)
    ]
    return jax.tree.unflatten(treedef, new)
