"""Models: trees with a Parameter at every array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.stateful.parameter import Parameter


def parameters(tree: Any) -> Any:
    """The same tree with a `Parameter` at every array.

    Args:
      tree: any pytree. Leaves that are not arrays, and Parameters, are left as they are.

    Returns:
      A tree of the same structure, each Parameter named by its path: `"base.dense.kernel"`.
    """

    def boxed(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return Parameter(leaf, name=dotted(path))
        return leaf

    return jax.tree_util.tree_map_with_path(boxed, tree)


def values(model: Any) -> Any:
    """The plain tree: every Parameter replaced by its value."""
    return jax.tree.map(lambda x: x.data if isinstance(x, Parameter) else x, model)


def named_parameters(model: Any) -> Iterator[tuple[str, Parameter]]:
    """`("base.dense.kernel", Parameter)` for every Parameter of a model, in the tree's order."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if isinstance(leaf, Parameter):
            yield dotted(path), leaf


def dotted(path: Sequence[Any]) -> str:
    """A path of keys as a name: its parts joined by dots."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


class Skeleton(NamedTuple):
    """A model without its values: hashable, so that it can select a compiled program.

    Attributes:
      treedef: the structure.
      roles: for each leaf, "trained", "constant" (an array), or "static".
      static: the leaves that are not arrays, in order.
    """

    treedef: jax.tree_util.PyTreeDef
    roles: tuple[str, ...]
    static: tuple[Any, ...]

    def fill(self, trained: Sequence[Any], constant: Sequence[Any]) -> Any:
        """The plain tree with these arrays in their places."""
        sources = {
            "trained": iter(trained),
            "constant": iter(constant),
            "static": iter(self.static),
        }
        return self.treedef.unflatten([next(sources[role]) for role in self.roles])


def split(model: Any, trained: Any = None) -> tuple[Skeleton, list[Parameter], list[Any]]:
    """A model's skeleton, its Parameters to train, and its other arrays (Parameters or plain).

    `trained` says which of the Parameters that require a gradient are trained: all, if `None`.
    """
    model_leaves, treedef = jax.tree.flatten(model)
    roles: list[str] = []
    chosen: list[Parameter] = []
    constant: list[Any] = []
    static: list[Any] = []
    for leaf in model_leaves:
        if (
            isinstance(leaf, Parameter)
            and leaf.requires_grad
            and (trained is None or leaf in trained)
        ):
            roles.append("trained")
            chosen.append(leaf)
        elif isinstance(leaf, Parameter | jax.Array | np.ndarray | np.generic):
            roles.append("constant")
            constant.append(leaf)
        else:
            roles.append("static")
            static.append(leaf)
    return Skeleton(treedef, tuple(roles), tuple(static)), chosen, constant


def arrays(cells: Sequence[Any]) -> tuple[Any, ...]:
    """The arrays of Parameters and plain arrays, to be read by a computation."""
    return tuple(x._data if isinstance(x, Parameter) else x for x in cells)
