"""From what users pass as `params` to torch's list of parameter groups, with torch's checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from functorch_optim.stateful.model import parameters
from functorch_optim.stateful.parameter import Parameter

Group = dict[str, Any]

# One parameter: an array is never cut into its rows.
_ONE = Parameter | jax.Array | np.ndarray | np.generic


class _Required:
    """In `defaults`, the value of a hyperparameter that every group has to give."""

    def __repr__(self) -> str:
        return "<required parameter>"


required = _Required()


_HINT = ". Of a model with other leaves, give its Parameters: optim.named_parameters(model)"


def normalized(params: Any) -> tuple[list[Group], list[Any], bool]:
    """The groups, the tree of Parameters of each, and whether the user gave them as groups.

    Args:
      params: an iterable of Parameters, of `(name, Parameter)` tuples or of dict groups, or any
        pytree of Parameters or arrays. A group's "params" may be any of these but groups.

    Raises:
      TypeError, ValueError: what torch.optim refuses, in its words.
    """
    if isinstance(params, _ONE):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got {typename(params)}"
        )
    if params is None:
        raise TypeError("'NoneType' object is not iterable")
    if _is_iterator(params):
        params = list(params)
    if isinstance(params, set | frozenset):
        params = list(params)
    if isinstance(params, list | tuple) and not _is_namedtuple(params):
        has_groups = any(isinstance(item, dict) and "params" in item for item in params)
        if has_groups and isinstance(params[0], dict):
            pairs = [normalized_group(item) for item in params]
            return [group for group, _ in pairs], [tree for _, tree in pairs], True
        if has_groups:
            raise TypeError("optimizer can only optimize Tensors, but one of the params is dict")
    group, tree = normalized_group({"params": params})
    if not group["params"]:
        raise ValueError("optimizer got an empty parameter list")
    return [group], [tree], False


def normalized_group(group: Any) -> tuple[Group, Any]:
    """A user's group with "params" as a list (the same dict), and the tree it was."""
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, but got {type(group)}")
    params = group["params"]
    if isinstance(params, set | frozenset):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering "
            "of tensors in sets will change between runs. Please use a list instead."
        )
    if isinstance(params, _ONE):
        params = [params]
    if _is_iterator(params):
        params = list(params)
    ordered = isinstance(params, list | tuple) and not _is_namedtuple(params)
    if ordered and any(_is_named(item) for item in params):
        _check_all_named(params)
        group["param_names"] = [name for name, _ in params]
        params = [p for _, p in params]
    tree = parameters(params)
    cells = jax.tree.leaves(tree)
    for cell in cells:
        if not isinstance(cell, Parameter):
            hint = "" if isinstance(params, list | tuple) else _HINT
            if isinstance(cell, int | float | complex):
                hint = ". A number cannot be updated in its place: make it an array, jnp.asarray(x)"
            raise TypeError(
                "optimizer can only optimize Tensors, but one of the params is "
                f"{typename(cell)}{hint}"
            )
    if len(set(cells)) != len(cells):
        warnings.warn(
            "optimizer contains a parameter group with duplicate parameters; in future, this will "
            "cause an error; see github.com/pytorch/pytorch/issues/40967 for more information",
            stacklevel=3,
        )
    group["params"] = cells
    return group, tree


def check_against(group: Group, existing: Iterable[Group]) -> None:
    """Raises if the group shares a Parameter with an existing one, or differs in having names."""
    existing = list(existing)
    taken = {p for other in existing for p in other["params"]}
    if not taken.isdisjoint(group["params"]):
        raise ValueError("some parameters appear in more than one parameter group")
    named = "param_names" in group
    if existing and named != ("param_names" in existing[0]):
        raise ValueError(
            "all optimizer param groups should be with/without names. cannot add param group "
            f"{'with' if named else 'without'} names to the optimizer"
        )


def typename(x: Any) -> str:
    """A value's type for a message, as torch names it: bare for builtins."""
    kind = type(x)
    return (
        kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )


def _is_iterator(x: Any) -> bool:
    return isinstance(x, Iterator) or (
        isinstance(x, Iterable)
        and not isinstance(x, Mapping | list | tuple | set | frozenset | str)
        and jax.tree_util.all_leaves([x])
    )


def _is_namedtuple(x: Any) -> bool:
    return isinstance(x, tuple) and hasattr(x, "_fields")


def _is_named(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _check_all_named(items: list[Any]) -> None:
    if not all(_is_named(item) for item in items):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
