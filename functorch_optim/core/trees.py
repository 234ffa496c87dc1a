"""The one place that visits leaves: how trees are walked.

Conventions, for every pair of the library:

- `None` is a leaf. A leaf without a gradient (`None`, or float0 as `jax.grad` gives for integers)
  and a leaf that is not floating point is skipped: its update is `None`, its state is untouched.
- Arithmetic is done in the leaf's own dtype; float16 and bfloat16 are computed in float32.
- A complex leaf is computed as pairs of reals, `(..., 2)`, as torch does.
- A sparse leaf (`sparse_leaves.py`) stays sparse, or is refused: it is never an array by accident.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import sparse_leaves

Leaves = list[Any]
is_sparse = sparse_leaves.is_sparse


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
        f"{container_kinds(tree, expected, name, reference)}"
    )


def container_kinds(tree: Any, other: Any, name: str, reference: str) -> str:
    """Says where two trees with the same paths have containers of two kinds: a dict, FrozenDict."""
    (_, treedef), (_, wanted) = flatten(tree), flatten(other)
    found = _first_kinds(treedef, wanted, 0, 0)
    if found is None:
        return f"{reference}: {wanted}; {name}: {treedef}"
    leaf, depth, kind, wanted_kind = found
    numbered = jax.tree.unflatten(wanted, range(wanted.num_leaves))
    place = keystr(jax.tree_util.tree_flatten_with_path(numbered)[0][leaf][0][:depth])
    return f"At {place} {reference} is of {wanted_kind.__name__}, {name} of {kind.__name__}"


def _first_kinds(tree: Any, other: Any, leaf: int, depth: int) -> tuple[int, int, Any, Any] | None:
    """The first leaf below two nodes of different kinds, their depth and the kinds."""
    node, wanted = tree.node_data(), other.node_data()
    if node is None or wanted is None:
        return None
    if node[0] is not wanted[0]:
        return leaf, depth, node[0], wanted[0]
    for child, wanted_child in zip(tree.children(), other.children(), strict=False):
        found = _first_kinds(child, wanted_child, leaf, depth + 1)
        if found is not None:
            return found
        leaf += wanted_child.num_leaves
    return None


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
    """Raises ValueError naming the first leaf of another shape, or on other devices."""
    for index, (leaf, wanted) in enumerate(zip(leaves, references, strict=True)):
        if leaf is None or wanted is None or is_float0(leaf):
            continue
        if np.shape(leaf) != np.shape(wanted):
            raise ValueError(
                f"{name} and {reference} differ in shape at {path_of(treedef, index)}: "
                f"{reference} has {np.shape(wanted)}, {name} has {np.shape(leaf)}"
            )
        there, here = devices(leaf), devices(wanted)
        if there != here and there is not None and here is not None:
            raise ValueError(
                f"{name} and {reference} are on different devices at {path_of(treedef, index)}: "
                f"{reference} is on {_listed(here)}, {name} on {_listed(there)}. Move them: "
                f"jax.device_put({name}, device)"
            )


def devices(x: Any) -> frozenset[Any] | None:
    """The devices that an array has to stay on; `None` where JAX may move it, or in a trace."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "committed", False):
        return None
    return frozenset(x.sharding.device_set)


def _listed(found: frozenset[Any]) -> str:
    return ", ".join(sorted(map(str, found)))


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
