"""What orbax's checkpoints need besides orbax: `carried_over` and `as_state_dict`.

States are trees of arrays, which orbax saves and restores as they are; nothing here imports it. A
checkpoint that is restored without a target has lost its containers, and kept their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.core import trees


class CarriedOver(NamedTuple):
    """What came of a merge, by the names of the arrays: `"adam.exp_avg.kernel"`.

    Attributes:
      kept: names whose values are the saved ones.
      fresh: names that were not saved; they stay as they were.
      dropped: names that were saved and have no place any more.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def carried_over(saved: Any, fresh: Any) -> tuple[Any, CarriedOver]:
    """A fresh state with every saved array of the same name in its place.

    For a chain that has got or lost a member since it was saved: `named_chain` gives its members
    names, and a member that is in both goes on. Give a member that becomes another algorithm
    another name: what of it has the same name is taken over.

    Args:
      saved: a tree, or what a checkpoint restores to without a target: nested dicts and lists.
      fresh: the tree to fill, `tx.init(params)`.

    Returns:
      `(state, report)`: a tree of the structure of fresh, each array on the devices and sharded as
      its fresh one, and a `CarriedOver`.

    Raises:
      ValueError: an array of the same name has another shape or dtype; all of them are named.
    """
    found = _by_name(saved)
    own = _by_name(fresh)
    problems = [
        f"{name}: saved {_described(found[name])}, fresh {_described(leaf)}"
        for name, leaf in own.items()
        if name in found and _described(found[name]) != _described(leaf)
    ]
    if problems:
        raise ValueError("carried_over: arrays of one name differ. " + "; ".join(problems))
    merged = [_placed(found[name], leaf) if name in found else leaf for name, leaf in own.items()]
    report = CarriedOver(
        tuple(name for name in own if name in found),
        tuple(name for name in own if name not in found),
        tuple(name for name in found if name not in own),
    )
    return jax.tree.unflatten(jax.tree.structure(fresh), merged), report


def as_state_dict(restored: Mapping[str, Any]) -> dict[str, Any]:
    """A `state_dict()` of the stateful layer again, from what JSON and file names made of it.

    Args:
      restored: its "state" with ids that are strings, and its "param_groups", where tuples have
        become lists.

    Returns:
      The dict that `load_state_dict` takes.

    Raises:
      ValueError: it is not what a state_dict of an optimizer is restored to.
    """
    _check_restored(restored)
    return {
        "state": {int(key): dict(entry) for key, entry in restored["state"].items()},
        "param_groups": [
            {name: _option(name, value) for name, value in group.items()}
            for group in restored["param_groups"]
        ],
    }


def _check_restored(restored: Any) -> None:
    if not isinstance(restored, Mapping) or not {"state", "param_groups"} <= restored.keys():
        raise ValueError(
            "as_state_dict takes a mapping with the 'state' and the 'param_groups' of an "
            f"optimizer's state_dict, but got {_kind(restored)}"
        )
    state, groups = restored["state"], restored["param_groups"]
    if not isinstance(state, Mapping):
        raise ValueError(f"the 'state' is a dict by parameter, but got {_kind(state)}")
    for key, entry in state.items():
        if not str(key).isdecimal() or not isinstance(entry, Mapping):
            raise ValueError(
                "the 'state' has a dict for the id of each parameter, but got "
                f"{_kind(entry)} for {key!r}"
            )
    if not isinstance(groups, list | tuple) or not all(isinstance(x, Mapping) for x in groups):
        raise ValueError(f"the 'param_groups' are a list of dicts, but got {_kind(groups)}")


def _kind(x: Any) -> str:
    return f"a mapping of {[*x]}" if isinstance(x, Mapping) else f"a {type(x).__name__}"


def _option(name: str, value: Any) -> Any:
    is_list = isinstance(value, list) and name not in ("params", "param_names")
    return tuple(value) if is_list else value


def _by_name(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {trees.dotted(path): leaf for path, leaf in paths}


def _described(x: Any) -> str:
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return f"{x.dtype}{list(x.shape)}"


def _placed(saved: Any, fresh: Any) -> Any:
    return jax.device_put(saved, fresh.sharding) if isinstance(fresh, jax.Array) else saved
