"""torch's `state_dict` layout: out of an optimizer, and matched to one before anything changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from functorch_optim.stateful.parameter import Parameter

Group = dict[str, Any]


class Matched(NamedTuple):
    """A state_dict in terms of an optimizer.

    Attributes:
      groups: the new groups.
      entries: for each Parameter its key in the state_dict and its state there.
      unmatched: entries of the state that belong to no Parameter; kept, as torch keeps them.
    """

    groups: list[Group]
    entries: dict[Parameter, tuple[Any, Any]]
    unmatched: dict[Any, Any]


def packed(
    groups: Sequence[Group],
    state: Mapping[Parameter, Mapping[str, Any]],
    unmatched: Mapping[Any, Any],
) -> dict[str, Any]:
    """`{"state": {id: {...}}, "param_groups": [...]}`; ids number the parameters in order."""
    ids: dict[Parameter, int] = {}
    packed_groups = []
    for group in groups:
        for p in group["params"]:
            ids.setdefault(p, len(ids))
        options = {name: value for name, value in group.items() if name != "params"}
        packed_groups.append(options | {"params": [ids[p] for p in group["params"]]})
    live = {ids[p]: dict(state[p]) for p in state}
    taken = set(ids.values())
    return {
        "state": live | {key: entry for key, entry in unmatched.items() if key not in taken},
        "param_groups": packed_groups,
    }


def matched(
    state_dict: Mapping[str, Any],
    groups: Sequence[Group],
    fixed: Mapping[str, Any],
    match: str,
) -> Matched:
    """Finds each Parameter's state; nothing that exists is changed.

    Args:
      state_dict: torch's layout.
      groups: the optimizer's groups.
      fixed: hyperparameters that no checkpoint may change.
      match: "position" or "name".

    Raises:
      ValueError: another number of groups or parameters, names that differ, or ids that became
        strings.
    """
    saved_groups = list(state_dict["param_groups"])
    if len(saved_groups) != len(groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    pairs = list(zip(saved_groups, groups, strict=True))
    if any(len(saved["params"]) != len(live["params"]) for saved, live in pairs):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group"
        )
    if match == "name":
        parameters = _by_name(saved_groups, groups)
    elif match == "position":
        parameters = dict(zip(_all(saved_groups, "params"), _all(groups, "params"), strict=True))
    else:
        raise ValueError(f"match should be 'position' or 'name', but is {match!r}")
    state = state_dict["state"]
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict['state'] should be a dict, but is {type(state).__name__}")
    lost = [key for key in state if isinstance(key, str) and key.isdigit()]
    if any(int(key) in parameters and key not in parameters for key in lost):
        raise ValueError(
            f"state_dict['state'] has the strings {lost[:3]} for keys, as JSON makes them of "
            "numbers; make them numbers again: {int(key): entry for key, entry in state.items()}"
        )
    return Matched(
        [_merged(saved, live, fixed, match) for saved, live in pairs],
        {parameters[k]: (k, entry) for k, entry in state.items() if k in parameters and entry},
        {key: copy.deepcopy(entry) for key, entry in state.items() if key not in parameters},
    )


def _by_name(saved_groups: Sequence[Group], groups: Sequence[Group]) -> dict[Any, Parameter]:
    if not all("param_names" in group for group in saved_groups):
        raise ValueError("match='name': the loaded state dict has no param_names")
    saved = dict(zip(_all(saved_groups, "param_names"), _all(saved_groups, "params"), strict=True))
    live: dict[Any, Parameter] = {}
    for group in groups:
        live.update(zip(_names([group]), group["params"], strict=True))
    for what, groups_of in (("the loaded state dict", saved_groups), ("the optimizer", groups)):
        names = _names(groups_of)
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"match='name': {what} has several parameters of the names {twice}")
    if saved.keys() != live.keys():
        raise ValueError(
            f"match='name': the loaded state dict lacks {sorted(map(str, live.keys() - saved))} "
            f"and has besides {sorted(map(str, saved.keys() - live))}"
        )
    return {key: live[name] for name, key in saved.items()}


def _names(groups: Iterable[Group]) -> list[Any]:
    """The names of groups' parameters; where none were given, those of the Parameters."""
    return [
        name
        for group in groups
        for name in group.get("param_names") or [p.name for p in group["params"]]
    ]


def _all(groups: Iterable[Group], key: str) -> list[Any]:
    return [item for group in groups for item in group[key]]


def _merged(saved: Mapping[str, Any], live: Group, fixed: Mapping[str, Any], match: str) -> Group:
    """The saved hyperparameters in their order, then those that only the live group has."""
    # By name, the parameters may stand in another order than the saved names.
    left_out = ("params",) if match == "position" else ("params", "param_names")
    merged = {k: copy.deepcopy(value) for k, value in saved.items() if k not in left_out}
    for name, value in live.items():
        if name != "params":
            merged.setdefault(name, value)
    merged.update({name: value for name, value in fixed.items() if name in merged})
    merged["params"] = live["params"]
    return merged
