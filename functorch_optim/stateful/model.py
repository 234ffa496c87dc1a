"""Models: trees with a Parameter at every array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks, trees
from functorch_optim.stateful.memory.cell import OUTSIDE, Changes, at_one_moment
from functorch_optim.stateful.parameter import Parameter

M = TypeVar("M")


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


def requires_grad_(model: M, requires_grad: bool = True) -> M:
    """Sets `requires_grad` of all Parameters of a model, as torch's `Module.requires_grad_`.

    Those that are not floating point never require a gradient, and are left alone. Gradients that
    are there stay, as in torch: `step` still uses them.

    Returns:
      The model.

    Raises:
      TypeError: requires_grad is not True or False.
    """
    checks.flag("requires_grad", requires_grad)
    found = [p for p in all_parameters(model) if not trees.has_no_update(p._data)]
    changes = Changes()
    changes.set(found, "requires_grad", itertools.repeat(requires_grad))
    changes.make()
    return model


def load_values(model: M, tree: Any) -> M:
    """Assigns a value to every Parameter of a model: torch's `load_state_dict` for values.

    Floating-point values are cast to the Parameter's dtype, and put on its devices. Everything is
    checked first: an error changes nothing.

    Args:
      model: a tree with Parameters.
      tree: as `values(model)`, where what is no Parameter is passed over; or a flat dict of values
        by the names of `named_parameters(model)`.

    Returns:
      The model.

    Raises:
      ValueError: a name is missing or unknown, or a shape differs, in torch's words.
      TypeError: the structures differ; a value is no array, or of another kind than its Parameter.
    """
    found: dict[Parameter, jax.Array] = {}
    for name, p, value in _matched(model, tree):
        found[p] = _fitting(f"{name!r}" if name else "the model", p, value)
    changes = Changes()
    changes.put([p._cell for p in found], list(found.values()), OUTSIDE)
    changes.make()
    return model


def _matched(model: Any, tree: Any) -> list[tuple[str, Parameter, Any]]:
    """Name, Parameter and new value, for each place of a Parameter."""
    named = dict(named_parameters(model))
    if isinstance(tree, Mapping) and not named.keys().isdisjoint(tree):
        missing, unexpected = (
            ", ".join(f'"{name}"' for name in names)
            for names in ([n for n in named if n not in tree], [n for n in tree if n not in named])
        )
        # A model may hold more than Parameters, and its own structure may look like names.
        given: Any = jax.tree.structure(dict(tree))
        same = bool(given == jax.tree.structure(model))
        if not same and (missing or unexpected):
            raise ValueError(
                "Error(s) in loading values:"
                + (f" Missing key(s) in state_dict: {missing}." if missing else "")
                + (f" Unexpected key(s) in state_dict: {unexpected}." if unexpected else "")
            )
        if not missing:
            return [(name, p, tree[name]) for name, p in named.items()]
    flat, treedef = jax.tree_util.tree_flatten_with_path(model, is_leaf=trees.is_leaf)
    leaves = trees.flatten_like(tree, treedef, "tree", "the model")
    return [
        (trees.dotted(path), p, value)
        for (path, p), value in zip(flat, leaves, strict=True)
        if isinstance(p, Parameter)
    ]


def _fitting(what: str, p: Parameter, value: Any) -> jax.Array:
    """A value as an array that this Parameter can hold."""
    if isinstance(value, Parameter):
        value = value.data
    if not trees.is_array(value):
        raise TypeError(f"the value for {what} should be an array, but got {value!r}")
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.shape != p.shape:
        raise ValueError(
            f"size mismatch for {what}: copying a param with shape {array.shape} from checkpoint, "
            f"the shape in current model is {p.shape}."
        )
    kinds = [_kind(array.dtype), _kind(p.dtype)]
    if kinds[0] != kinds[1] and kinds != ["real", "complex"]:
        raise TypeError(
            f"the value for {what} has dtype {array.dtype}, but the Parameter has dtype {p.dtype}"
        )
    return p.placed(jnp.array(array, p.dtype, copy=not isinstance(array, jax.Array)))


def _kind(dtype: Any) -> str:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "complex"
    if jnp.issubdtype(dtype, jnp.floating):
        return "real"
    return "bool" if jnp.issubdtype(dtype, jnp.bool_) else "integer"


def all_parameters(parameters: Any) -> list[Parameter]:
    """The Parameters of a model, of an iterable of them, or the one that is given."""
    if not isinstance(parameters, dict | list | tuple | Parameter) and hasattr(
        parameters, "__iter__"
    ):
        parameters = list(parameters)
    return [p for p in jax.tree.leaves(parameters) if isinstance(p, Parameter)]


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
            f"{_described(loss_fn)}. Write {caller}(loss_fn, model, ...), where loss_fn(params, "
            "...) returns the loss"
        )


def _described(x: Any) -> str:
    return "an array" if hasattr(x, "dtype") else f"of type {type(x).__name__}"


def if_plain(model: Any) -> str:
    """What to do with a model that is a plain tree; "" for one that has Parameters."""
    if any(isinstance(leaf, Parameter) for leaf in jax.tree.leaves(model)):
        return ""
    return f". The {type(model).__name__} given has none: wrap it, model = optim.parameters(tree)"


def arrays(cells: Sequence[Any]) -> tuple[Any, ...]:
    """The arrays of Parameters and plain arrays, to be read by a computation."""
    return tuple(x._data if isinstance(x, Parameter) else x for x in cells)
