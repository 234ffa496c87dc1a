"""The one place that visits leaves: how trees are walked, and what a leaf's dtype means.

Conventions, for every pair of the library:

- `None` is a leaf. A leaf without a gradient (`None`, or float0 as `jax.grad` gives for integers)
  and a leaf that is not floating point is skipped: its update is `None`, its state is untouched.
- Arithmetic is done in the leaf's own dtype; float16 and bfloat16 are computed in float32.
- A complex leaf is computed as pairs of reals, `(..., 2)`, as torch does.
- A sparse leaf (`sparse_leaf.py`) stays sparse, or is refused: it is never an array by accident.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim import sparse_leaf

Leaves = list[Any]
T = TypeVar("T")
is_sparse = sparse_leaf.is_sparse


def is_leaf(x: Any) -> bool:
    """What is a leaf besides arrays: `None`, and a sparse array as a whole."""
    return x is None or is_sparse(x)


def flatten(tree: Any) -> tuple[Leaves, jax.tree_util.PyTreeDef]:
    """The leaves and the structure of a tree, `None` being a leaf."""
    return jax.tree.flatten(tree, is_leaf=is_leaf)


def flatten_like(
    tree: Any, treedef: jax.tree_util.PyTreeDef, name: str, reference: str = "params"
) -> Leaves:
    """The leaves of `tree`, one for each leaf of `treedef`.

    Raises:
      TypeError: the structures differ; the message names the first differing path.
    """
    try:
        leaves = treedef.flatten_up_to(tree)
    except (ValueError, TypeError):
        _raise_structures_differ(tree, treedef, name, reference)
    if not jax.tree_util.all_leaves(leaves, is_leaf):
        _raise_structures_differ(tree, treedef, name, reference)
    return leaves


def _raise_structures_differ(
    tree: Any, treedef: jax.tree_util.PyTreeDef, name: str, reference: str
) -> NoReturn:
    expected = jax.tree.unflatten(treedef, [0] * treedef.num_leaves)
    wanted = [path for path, _ in jax.tree_util.tree_flatten_with_path(expected)[0]]
    found = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]
    for path in wanted:
        if path not in found:
            raise TypeError(
                f"{name} and {reference} differ in structure: {reference} has a leaf at "
                f"{keystr(path)}, {name} has none there"
            )
    for path in found:
        if path not in wanted:
            raise TypeError(
                f"{name} and {reference} differ in structure: {name} has a leaf at "
                f"{keystr(path)}, {reference} has none there"
            )
    raise TypeError(
        f"{name} and {reference} differ in structure: the containers are of different types. "
        f"{reference}: {treedef}; {name}: {jax.tree.structure(tree, is_leaf=is_leaf)}"
    )


def keystr(path: Any) -> str:
    """A path for a message; the root of a bare array has no keys."""
    return jax.tree_util.keystr(path) or "the root"


def dotted(path: Sequence[Any]) -> str:
    """A path of keys as a name: its parts joined by dots."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def path_of(treedef: jax.tree_util.PyTreeDef, index: int) -> str:
    """The path of a tree's leaf, for a message."""
    numbered = jax.tree.unflatten(treedef, range(treedef.num_leaves))
    return keystr(jax.tree_util.tree_flatten_with_path(numbered)[0][index][0])


def check_shapes(
    leaves: Leaves,
    references: Leaves,
    treedef: jax.tree_util.PyTreeDef,
    name: str,
    reference: str = "params",
) -> None:
    """Raises ValueError naming the first leaf whose shape is not its reference's."""
    for index, (leaf, wanted) in enumerate(zip(leaves, references, strict=True)):
        if leaf is None or wanted is None or is_float0(leaf):
            continue
        if np.shape(leaf) != np.shape(wanted):
            raise ValueError(
                f"{name} and {reference} differ in shape at {path_of(treedef, index)}: "
                f"{reference} has {np.shape(wanted)}, {name} has {np.shape(leaf)}"
            )


def is_float0(x: Any) -> bool:
    """Whether x is the gradient that JAX gives an integer."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


_NO_ARRAY = (
    "{}, which is no array. Filter such leaves out, so that None is in their places: "
    "`eqx.filter(model, eqx.is_inexact_array)`, or wrap the pair by "
    "`functorch_optim.interop.equinox.filtered`"
)


def is_array(x: Any) -> bool:
    """Whether a leaf is an array or a number, or stands for an array in a trace."""
    return hasattr(x, "dtype") or isinstance(x, numbers.Number)


def check_arrays(leaves: Leaves, treedef: jax.tree_util.PyTreeDef, name: str) -> None:
    """Raises TypeError naming the first leaf that is neither an array nor `None`."""
    for index, leaf in enumerate(leaves):
        if leaf is not None and not is_array(leaf):
            where = f"{name} has {leaf!r} at {path_of(treedef, index)}"
            raise TypeError(_NO_ARRAY.format(where))


def has_no_update(x: Any) -> bool:
    """Whether a leaf is skipped: nothing there, or not floating point."""
    if x is None or is_float0(x):
        return True
    if not is_array(x):
        raise TypeError(_NO_ARRAY.format(f"a leaf is {x!r}"))
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return not jnp.issubdtype(dtype, jnp.inexact)


def map_updates(
    function: Callable[..., Any],
    updates: Any,
    on_sparse: Callable[..., Any] | None = None,
    **others: Any,
) -> Any:
    """`function(update, *other leaves)` for every update that is not skipped; `None` elsewhere.

    Args:
      function: takes a leaf of `updates`, and one of each other tree.
      updates: a tree.
      on_sparse: the same for a sparse leaf; without it there should be none.
      **others: trees of its structure and shapes, by name (`params=params`). Where a leaf of one
        of them is skipped, so is the update.

    Raises:
      TypeError: the structures differ. ValueError: two shapes differ. RuntimeError: a sparse leaf
        where there should be none. Each names tree and path.
    """
    leaves, treedef = flatten(updates)
    check_arrays(leaves, treedef, "a tree of updates or params")
    columns = [leaves]
    for index, update in enumerate(leaves):
        if on_sparse is None and is_sparse(update):
            raise RuntimeError(
                f"a transform does not support sparse gradients, but there is one at "
                f"{path_of(treedef, index)}: make it dense by its method todense(), or keep the "
                "transform away from it by `partition` or `masked`"
            )
    for name, tree in others.items():
        column = flatten_like(tree, treedef, name, "updates")
        check_shapes(column, leaves, treedef, name, "updates")
        columns.append(column)
    rows = zip(*columns, strict=True)
    return treedef.unflatten(
        [
            None
            if any(map(has_no_update, row))
            else (on_sparse if on_sparse is not None and is_sparse(row[0]) else function)(*row)
            for row in rows
        ]
    )


def entrywise(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    """An elementwise function that leaves 0 as it is, as a function of a sparse leaf."""

    def of_sparse(x: Any) -> Any:
        wide = sparse_leaf.coalesced(x, widest(x.dtype))
        return sparse_leaf.on_coalesced(lambda data: function(data).astype(x.dtype), wide)

    return of_sparse


def elements(x: Any) -> jax.Array:
    """A leaf as an array; of a sparse one the entries, summed in float32 at least."""
    if is_sparse(x):
        return sparse_leaf.coalesced(x, widest(x.dtype)).data
    return jnp.asarray(x)


def real_dtype(dtype: Any) -> np.dtype:
    """The real dtype in which a leaf of this dtype is computed: float32 or float64."""
    return np.dtype(np.float64 if jnp.finfo(dtype).bits == 64 else np.float32)


def widest(*dtypes: Any) -> np.dtype:
    """The dtype in which leaves of these dtypes are computed together."""
    wide = max(map(real_dtype, dtypes), key=lambda dtype: dtype.itemsize)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return np.result_type(wide, np.complex64)
    return wide


def to_real(x: jax.Array, dtype: Any) -> jax.Array:
    """x as reals of this dtype; a complex x gets a last axis (real, imaginary)."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
    return x.astype(dtype)


def from_real(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `to_real`: x in this dtype, the last axis taken in when it is complex."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return x.astype(dtype)


def times(x: Any, factor: Any) -> jax.Array:
    """x times a real factor that broadcasts to it, computed in float32 at least.

    A sparse x takes a number or a 0-d array.
    """
    if is_sparse(x):
        if jnp.ndim(factor):
            raise ValueError(f"a sparse leaf times a factor of shape {jnp.shape(factor)}")
        return sparse_leaf.on_data(lambda data: times(data, factor), x)
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
        return sparse_leaf.unused(x)
    return None if has_no_update(x) else jnp.zeros_like(x)


def add(p: Any, update: Any) -> jax.Array:
    """`p + update` in p's dtype, computed in the wider of the two and rounded once.

    A sparse update touches its places only: in place, if p is donated and nothing else reads it.
    """
    p = p.todense() if is_sparse(p) else jnp.asarray(p)
    if is_sparse(update):
        if p.dtype == update.dtype == widest(p.dtype):
            return sparse_leaf.plus(p, update)
        update = sparse_leaf.coalesced(update, widest(update.dtype))
        return sparse_leaf.with_entries(p, update, add(sparse_leaf.entries(p, update), update.data))
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
