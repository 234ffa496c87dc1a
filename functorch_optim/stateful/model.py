"""Models: trees with a Parameter at every array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.core import trees
from functorch_optim.stateful.memory.cell import at_one_moment
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
            return Parameter(leaf, name=trees.dotted(path))
        return leaf

    return jax.tree_util.tree_map_with_path(boxed, tree)


@at_one_moment
def values(model: Any) -> Any:
    """The plain tree: every Parameter replaced by its value."""
    return jax.tree.map(lambda x: x.data if isinstance(x, Parameter) else x, model)


def named_parameters(model: Any) -> Iterator[tuple[str, Parameter]]:
    """`("base.dense.kernel", Parameter)` for every Parameter of a model, in the tree's order."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if isinstance(leaf, Parameter):
            yield trees.dotted(path), leaf


class Skeleton(NamedTuple):
    """A model without its values: hashable, so that it can select a compiled program.

    Attributes:
      treedef: the structure.
      sources: for each leaf, "trained" or "constant" and the index of its array among those, or
        "static" and the leaf itself. A Parameter in two places is one array.
    """

    treedef: jax.tree_util.PyTreeDef
    sources: tuple[tuple[str, Any], ...]

    def fill(self, trained: Sequence[Any], constant: Sequence[Any]) -> Any:
        """The plain tree with these arrays in their places."""
        arrays = {"trained": trained, "constant": constant}
        return self.treedef.unflatten(
            [where if kind == "static" else arrays[kind][where] for kind, where in self.sources]
        )


def split(model: Any, trained: Any = None) -> tuple[Skeleton, list[Parameter], list[Any]]:
    """A model's skeleton, its Parameters to train, and its other arrays (Parameters or plain).

    `trained` says which of the Parameters that require a gradient are trained: all, if `None`.
    """
    model_leaves, treedef = jax.tree.flatten(model)
    sources: list[tuple[str, Any]] = []
    chosen: dict[Parameter, int] = {}
    constant: list[Any] = []
    for leaf in model_leaves:
        wanted = isinstance(leaf, Parameter) and leaf.requires_grad
        if wanted and (trained is None or leaf in trained):
            sources.append(("trained", chosen.setdefault(leaf, len(chosen))))
        elif isinstance(leaf, Parameter | jax.Array | np.ndarray | np.generic):
            sources.append(("constant", len(constant)))
            constant.append(leaf)
        else:
            sources.append(("static", leaf))
    return Skeleton(treedef, tuple(sources)), list(chosen), constant


def check_loss(caller: str, loss_fn: Any) -> None:
    """Raises TypeError for a loss that is no function: a value says nothing of its gradient."""
    if not callable(loss_fn):
        raise TypeError(
            f"{caller}: loss_fn should be the function that computes the loss, but is "
            f"{_kind(loss_fn)}. Write {caller}(loss_fn, model, ...), where loss_fn(params, "
            "...) returns the loss"
        )


def _kind(x: Any) -> str:
    return "an array" if hasattr(x, "dtype") else f"of type {type(x).__name__}"


def if_plain(model: Any) -> str:
    """What to do with a model that is a plain tree; "" for one that has Parameters."""
    if any(isinstance(leaf, Parameter) for leaf in jax.tree.leaves(model)):
        return ""
    return f". The {type(model).__name__} given has none: wrap it, model = optim.parameters(tree)"


def arrays(cells: Sequence[Any]) -> tuple[Any, ...]:
    """The arrays of Parameters and plain arrays, to be read by a computation."""
    return tuple(x._data if isinstance(x, Parameter) else x for x in cells)
