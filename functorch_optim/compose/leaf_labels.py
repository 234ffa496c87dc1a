"""What users say of single leaves: labels and masks, as trees, functions or path patterns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.pair import Params

# A tree (or the top of one), or a function that makes it from params.
PerLeaf: TypeAlias = Any | Callable[[Params], Any]


def by_path(rules: Sequence[tuple[str, Any]], default: Any = None) -> Callable[[Params], Any]:
    """Labels (or a mask) from the names of leaves: what `partition`, `masked`, `freeze` take.

    `by_path([(r"bias$|norm", "no decay")], default="decay")`. The names are paths whose keys are
    joined by dots: `"base.dense.kernel"`, `"layers.0.bias"` (of a variable of flax's nnx, without
    its `value`).

    Args:
      rules: `(pattern, label)`. A leaf has the label of the first pattern (a regular expression)
        that is found anywhere in its name.
      default: the label of all other leaves.

    Returns:
      A function from a tree to the tree of its labels.

    Raises:
      TypeError: rules are not pairs of a pattern and a label. ValueError: a pattern is no regular
        expression; when the function is called, a pattern that matches no leaf. It is named.
    """
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        raise TypeError(f"by_path: rules should be (pattern, label) pairs, but are {rules!r}")
    compiled = tuple(_compiled(index, rule) for index, rule in enumerate(rules))
    return _ByPath(compiled, default)


@dataclasses.dataclass(frozen=True, eq=False)
class _ByPath:
    """The function that `by_path` returns: it can be pickled, and shows its rules."""

    rules: tuple[tuple[re.Pattern[str], Any], ...]
    default: Any

    def __call__(self, params: Params) -> Any:
        paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=trees.is_leaf)
        names = [trees.dotted(path[:-1] if _is_value(path) else path) for path, _ in paths]
        for pattern, _ in self.rules:
            if not any(map(pattern.search, names)):
                raise ValueError(
                    f"by_path: the pattern {pattern.pattern!r} matches no leaf. "
                    f"The names are {names}"
                )
        found = [
            next((label for pattern, label in self.rules if pattern.search(name)), self.default)
            for name in names
        ]
        return trees.flatten(params)[1].unflatten(found)

    def __repr__(self) -> str:
        rules = [(pattern.pattern, label) for pattern, label in self.rules]
        return f"by_path({rules!r}, default={self.default!r})"


def _compiled(index: int, rule: Any) -> tuple[re.Pattern[str], Any]:
    if not (
        isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str | re.Pattern)
    ):
        raise TypeError(f"by_path: rule {index} should be a (pattern, label) pair, but is {rule!r}")
    pattern, label = rule
    try:
        return re.compile(pattern), label
    except re.error as error:
        raise ValueError(
            f"by_path: the pattern {pattern!r} of rule {index} is no regular expression: {error}"
        ) from error


def _is_value(path: Sequence[Any]) -> bool:
    """Whether a path ends in the value of a variable, which is an attribute and no entry."""
    last = path[-1] if len(path) > 1 else None
    return isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value"


def said_of(per_leaf: PerLeaf, tree: Any, name: str) -> tuple[trees.Leaves, trees.Leaves, Any]:
    """What is said of each leaf of a tree.

    Args:
      per_leaf: a tree of the other's structure, or of its top, or a function that makes it.
      tree: the tree.
      name: what is said, for the message: "labels".

    Returns:
      A label for each leaf of the tree, the leaves of the tree, and its treedef.

    Raises:
      TypeError: the labels have another structure.
    """
    labels = per_leaf(tree) if _is_function(per_leaf) else per_leaf
    below, treedef = trees.flatten(tree)
    tops, top_treedef = trees.flatten(labels)
    try:
        subtrees = top_treedef.flatten_up_to(tree)
    except (ValueError, TypeError):
        _raise_structures_differ(labels, tree, name)
    said = [
        label
        for label, subtree in zip(tops, subtrees, strict=True)
        for _ in trees.flatten(subtree)[0]
    ]
    return said, below, treedef


def _raise_structures_differ(labels: Any, tree: Any, name: str) -> NoReturn:
    said, wanted = (
        [path for path, _ in jax.tree_util.tree_flatten_with_path(t, is_leaf=trees.is_leaf)[0]]
        for t in (labels, tree)
    )
    for path in wanted:
        if not any(path[: len(top)] == top for top in said):
            raise TypeError(
                f"{name} and params differ in structure: params has a leaf at "
                f"{trees.keystr(path)}, {name} says nothing of it"
            )
    for top in said:
        if not any(path[: len(top)] == top for path in wanted):
            raise TypeError(
                f"{name} and params differ in structure: {name} says something of "
                f"{trees.keystr(top)}, params has no leaf there"
            )
    raise TypeError(
        f"{name} and params differ in structure: the containers are of different types. "
        f"{trees.container_kinds(labels, tree, name, 'params')}. Make {name} by a function of "
        "params, `by_path(...)` or one with `jax.tree.map`: it has params' own containers"
    )


def check_labels(labels: PerLeaf) -> None:
    """Raises TypeError for labels that cannot be keys; a function's are not known yet."""
    for label in jax.tree.leaves(labels):
        if not isinstance(label, Hashable):
            raise TypeError(f"labels should be keys of `transforms`, but one is {label!r}")


def check_mask(mask: PerLeaf) -> None:
    """Raises TypeError for what is no mask of any tree; `chosen` looks at those that are trees."""
    is_leaf = mask is None or jax.tree_util.all_leaves([mask])
    if is_leaf and not (callable(mask) or _is_bool(mask)):
        raise TypeError(
            "the mask should hold True and False, or be a function that returns such, but is "
            f"{mask!r}"
        )


def _is_function(per_leaf: PerLeaf) -> bool:
    # A tree may be callable too (a module): a function is what is no tree.
    return callable(per_leaf) and jax.tree_util.all_leaves([per_leaf])


def chosen(mask: PerLeaf, tree: Any) -> tuple[list[bool], trees.Leaves, Any]:
    """`said_of` for a mask.

    Raises:
      TypeError: the mask has another structure, or holds something else than True and False.
    """
    said, below, treedef = said_of(mask, tree, "mask")
    for index, (kept, leaf) in enumerate(zip(said, below, strict=True)):
        if not (_is_bool(kept) or (kept is None and leaf is None)):
            raise TypeError(
                f"the mask should hold True and False, but has {kept!r} for "
                f"{trees.path_of(treedef, index)}"
            )
    return [bool(kept) for kept in said], below, treedef


def _is_bool(x: Any) -> bool:
    return isinstance(x, bool) or (
        isinstance(x, np.ndarray | np.generic | jax.Array) and x.dtype == bool and x.ndim == 0
    )
