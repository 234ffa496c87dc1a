"""A sparse array as a leaf of a tree: rows of a table, say, with their places.

A sparse leaf is a `BCOO` array of `jax.experimental.sparse`: `data`, its entries (the rows), and
`indices`, the coordinates of each. As everywhere in BCOO, entries with the same coordinates are
summed, and one whose coordinates are out of range is an unused slot: so the number of slots can
stay the same, whatever a batch holds. Negative coordinates count from the end.

That package takes a third of a second to import, and is not imported here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse array of `jax.experimental.sparse`."""
    return hasattr(x, "todense") and hasattr(x, "indices")


def coalesced(x: Any, dtype: Any) -> Any:
    """x in `dtype` with at most one entry at each place.

    Unused slots are zeros, at the coordinates `x.shape`.

    Raises:
      TypeError: x is another kind of sparse array than BCOO. ValueError: its places cannot be
        numbered.
    """
    x = _flat(x)
    sizes = _sizes(x)
    columns = [in_range(x.indices[:, i], size) for i, size in enumerate(sizes.tolist())]
    indices = jnp.stack(columns, axis=1)
    inside = jnp.all(indices < sizes[None], axis=1)
    indices = jnp.where(inside[:, None], indices, sizes[None])
    data = x.data.astype(dtype)
    if x.unique_indices:
        return _like(x, jnp.where(_beside(inside, data), data, jnp.zeros_like(data)), indices)
    # A slot's number is that of the first equal one in sorted order. Sorting the places alone and
    # looking each up in them is several times faster than sorting them with their positions.
    places = _numbered(indices, sizes)
    slots = jnp.searchsorted(jnp.sort(places), places)
    return _like(
        x,
        jnp.zeros_like(data).at[jnp.where(inside, slots, len(slots))].add(data, mode="drop"),
        jnp.broadcast_to(sizes[None], indices.shape).at[slots].set(indices),
    )


def in_range(index: jax.Array, size: int) -> jax.Array:
    """Coordinates along an axis of this size: negative ones from the end, bad ones as `size`."""
    known = np.iinfo(index.dtype)
    index = jnp.clip(index, max(known.min, -size - 1), min(known.max, size))
    index = index.astype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)
    index = jnp.where(index < 0, index + size, index)
    return jnp.where(index < 0, size, index)


def entries(x: Any, coalesced: Any) -> jax.Array:
    """The entries of a dense array at the places of a coalesced one; zeros for unused slots."""
    return x.at[tuple(coalesced.indices.T)].get(mode="fill", fill_value=0)


def with_entries(x: jax.Array, coalesced: Any, new: jax.Array) -> jax.Array:
    """A dense array with new entries at the places of a coalesced one.

    In place, if x is donated and nothing else reads it.
    """
    return x.at[tuple(coalesced.indices.T)].set(new, mode="drop")


def plus(x: jax.Array, addend: Any) -> jax.Array:
    """The sum of a dense array and a sparse one of its dtype, in place as in `with_entries`."""
    addend = _flat(addend)
    columns = [
        in_range(addend.indices[:, i], size) for i, size in enumerate(_sizes(addend).tolist())
    ]
    return x.at[tuple(columns)].add(addend.data, mode="drop")


def on_coalesced(function: Callable[[jax.Array], jax.Array], x: Any) -> Any:
    """A coalesced x with a function of its entries; unused slots stay zeros."""
    new = function(x.data)
    used = jnp.all(x.indices < _sizes(x)[None], axis=1)
    return _like(x, jnp.where(_beside(used, new), new, jnp.zeros_like(new)), x.indices)


def on_data(function: Callable[[jax.Array], jax.Array], x: Any) -> Any:
    """x with a linear function of its entries, also of those that are parts of a sum."""
    flags = {"indices_sorted": x.indices_sorted, "unique_indices": x.unique_indices}
    return type(x)((function(x.data), x.indices), shape=x.shape, **flags)


def cast(x: Any, dtype: Any) -> Any:
    """x in another dtype."""
    return on_data(lambda data: data.astype(dtype), x)


def unused(x: Any) -> Any:
    """x without any entry: a gradient that was not there, an update that changes nothing."""
    indices = jnp.broadcast_to(jnp.asarray(_sizes(x)[None], x.indices.dtype), x.indices.shape)
    flags = {"indices_sorted": x.indices_sorted, "unique_indices": x.unique_indices}
    data = jnp.zeros(x.data.shape, x.data.dtype)
    return type(x)((data, indices), shape=x.shape, **flags)


def _like(x: Any, data: jax.Array, indices: jax.Array) -> Any:
    return type(x)((data, indices), shape=x.shape, unique_indices=True)


def _numbered(indices: jax.Array, sizes: np.ndarray) -> jax.Array:
    """A number for each place, and one for those out of range."""
    if len(sizes) == 1:
        return indices[:, 0]
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    total = math.prod(map(int, sizes))
    if total > np.iinfo(dtype).max:
        raise ValueError(
            f"a sparse array of {total} places is too large for {dtype} numbers; give its entries "
            "as rows (n_sparse=1)"
        )
    strides = np.cumprod([1, *sizes[:0:-1].tolist()])[::-1]
    columns = [indices[:, i].astype(dtype) * int(stride) for i, stride in enumerate(strides)]
    return jnp.where(indices[:, 0] == sizes[0], total, functools.reduce(jnp.add, columns))


def _flat(x: Any) -> Any:
    """A BCOO array without batch dimensions."""
    if not hasattr(x, "n_batch") or hasattr(x, "indptr"):
        raise TypeError(f"a sparse gradient or update should be a BCOO array, but is {x!r}")
    return x.update_layout(n_batch=0) if x.n_batch else x


def _sizes(x: Any) -> np.ndarray:
    """The lengths of the axes that are sparse."""
    sizes = x.shape[x.n_batch : x.n_batch + x.n_sparse]
    wide = max(sizes, default=0) > np.iinfo(np.int32).max
    return np.asarray(sizes, np.int64 if wide else np.int32)


def _beside(flags: jax.Array, data: jax.Array) -> jax.Array:
    """One flag for each entry, shaped to select among them."""
    return flags.reshape(flags.shape + (1,) * (data.ndim - 1))
