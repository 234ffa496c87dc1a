"""torch's `state_dict` layout: out of an optimizer, and matched to one before anything changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from functorch_optim.stateful.parameter import Parameter

Group = dict[str, Any]

_BY_POSITION = (
    ". Matched by position, both need to be alike; load_state_dict(..., match='name', "
    "strict=False) takes over what has the same name"
)


class LoadReport(NamedTuple):
    """What `load_state_dict(..., strict=False)` could not match.

    Attributes:
      missing: the parameters that the loaded dict has no state for, though it has that of others;
        they start anew. By name; without a name, by position.
      unexpected: what the loaded dict has besides: names, or keys of its state. It is not kept.
      groups: the positions of the optimizer's groups that keep their hyperparameters, because the
        loaded dict has none of their parameters, or has them in several groups.
    """

    missing: tuple[Any, ...]
    unexpected: tuple[Any, ...]
    groups: tuple[int, ...]

    def __repr__(self) -> str:
        if self == ((), (), ()):
            return "<All parameters matched>"
        listed = ", ".join(f"{name}={list(x)}" for name, x in self._asdict().items())
        return f"LoadReport({listed})"


class Matched(NamedTuple):
    """A state_dict in terms of an optimizer.

    Attributes:
      groups: the new groups.
      entries: for each Parameter its key in the state_dict and its state there.
      unmatched: entries of the state that belong to no Parameter; kept, as torch keeps them.
      report: what was not matched.
    """

    groups: list[Group]
    entries: dict[Parameter, tuple[Any, Any]]
    unmatched: dict[Any, Any]
    report: LoadReport


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
    live: dict[Any, Any] = {}
    for p, entry in state.items():
        if isinstance(p, Parameter) and p not in ids:
            raise KeyError(
                f"{p!r} has state, but no group holds it any more, so it has no number. Forget its "
                "state, `del opt.state[p]`, or put the Parameter back into a group"
            )
        # A step of one's own may keep something for all, under a name.
        live[ids.get(p, p)] = entry if p not in ids else dict(entry)
    taken = set(ids.values())
    return {
        "state": live | {key: entry for key, entry in unmatched.items() if key not in taken},
        "param_groups": packed_groups,
    }


def present(entry: Mapping[str, Any], name: str, key: Any) -> Any:
    """What a parameter's dict, which has this key, holds under a name; ValueError if nothing."""
    if name not in entry:
        raise ValueError(f"state of parameter {key} lacks {name!r}; it has {[*entry]}")
    return entry[name]


def matched(
    state_dict: Mapping[str, Any],
    groups: Sequence[Group],
    fixed: Mapping[str, Any],
    match: str,
    strict: bool,
    as_one: bool,
) -> Matched:
    """Finds each Parameter's state; nothing that exists is changed.

    Args:
      state_dict: torch's layout.
      groups: the optimizer's groups.
      fixed: hyperparameters that no checkpoint may change.
      match: "position" or "name".
      strict: refuse what does not match; else it is reported.
      as_one: the state under one Parameter is that of all together.

    Raises:
      ValueError: another number of groups or parameters, names that differ, or ids that became
        strings.
    """
    saved_groups = list(state_dict["param_groups"])
    if match not in ("position", "name"):
        raise ValueError(f"match should be 'position' or 'name', but is {match!r}")
    if strict or match == "position":
        _check_sizes(saved_groups, groups, "" if strict else _BY_POSITION)
    if match == "name":
        parameters = _by_name(saved_groups, groups, strict)
    else:
        _warn_of_another_order(saved_groups, groups)
        parameters = dict(zip(_all(saved_groups, "params"), _all(groups, "params"), strict=True))
    state = state_dict["state"]
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict['state'] should be a dict, but is {type(state).__name__}")
    lost = [key for key in state if isinstance(key, str) and key.isdigit()]
    if any(int(key) in parameters and key not in parameters for key in lost):
        raise ValueError(
            f"state_dict['state'] has the strings {lost[:3]} for keys, as JSON makes them of "
            "numbers; make them numbers again: {int(key): entry for key, entry in state.items()}"
        )
    sources: list[Any] = list(saved_groups)
    if match == "name" and not strict:
        sources = [_source(group, saved_groups, parameters) for group in groups]
    entries = {parameters[k]: (k, entry) for k, entry in state.items() if k in parameters and entry}
    unmatched = {k: copy.deepcopy(entry) for k, entry in state.items() if k not in parameters}
    report = LoadReport(
        _missing(groups, set(parameters.values()), set(entries), as_one),
        _unexpected(saved_groups, state, parameters),
        tuple(i for i, source in enumerate(sources) if source is None),
    )
    if as_one and (report.missing or report.unexpected):
        entries = {}  # a state of all parameters together: it is not that of these
    new_groups = [
        live if saved is None else _merged(saved, live, fixed, match)
        for saved, live in zip(sources, groups, strict=True)
    ]
    return Matched(new_groups, entries, unmatched if strict else {}, report)


def _missing(
    groups: Sequence[Group], found: Set[Parameter], with_state: Set[Parameter], as_one: bool
) -> tuple[Any, ...]:
    every = dict(zip(_all(groups, "params"), _names(groups), strict=True))
    # Where nobody has state, or one has that of all, a parameter without any lacks none.
    lacks_none = found if as_one or not with_state else found & with_state
    return tuple(
        name or position
        for position, (p, name) in enumerate(every.items())
        if p not in lacks_none and (p.requires_grad or p not in found)
    )


def _unexpected(
    saved_groups: Sequence[Any], state: Mapping[Any, Any], parameters: Mapping[Any, Parameter]
) -> tuple[Any, ...]:
    names: dict[Any, Any] = {}
    for group in saved_groups:
        named = group.get("param_names") or group["params"]
        names.update(zip(group["params"], named, strict=True))
    return tuple(names.get(key, key) for key in {**names, **state} if key not in parameters)


def _check_sizes(saved_groups: Sequence[Any], groups: Sequence[Group], hint: str) -> None:
    if len(saved_groups) != len(groups):
        raise ValueError(f"loaded state dict has a different number of parameter groups{hint}")
    pairs = zip(saved_groups, groups, strict=True)
    if any(len(saved["params"]) != len(live["params"]) for saved, live in pairs):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group{hint}"
        )


def _warn_of_another_order(saved_groups: Sequence[Any], groups: Sequence[Group]) -> None:
    """Warns if the saved names are the optimizer's in another order.

    torch loads them so, by position: each state goes to another parameter.
    """
    if not all("param_names" in group for group in saved_groups):
        return
    saved, live = _all(saved_groups, "param_names"), _names(groups)
    if saved == live or sorted(map(str, saved)) != sorted(map(str, live)):
        return
    place = next(i for i, (a, b) in enumerate(zip(saved, live, strict=True)) if a != b)
    warnings.warn(
        "the loaded state dict has the names of this optimizer's parameters in another order: at "
        f"position {place} it has {saved[place]!r}, the optimizer has {live[place]!r}. Matching by "
        "position, as torch does, gives each of them the state and the name of another; "
        "load_state_dict(..., match='name') matches by name",
        UserWarning,
        stacklevel=4,
    )


def _source(group: Group, saved_groups: Sequence[Any], parameters: Mapping[Any, Parameter]) -> Any:
    """The saved group that holds a group's parameters, if it is one."""
    members = set(group["params"])
    holding = [
        saved
        for saved in saved_groups
        if any(parameters.get(key) in members for key in saved["params"])
    ]
    return holding[0] if len(holding) == 1 else None


def _by_name(
    saved_groups: Sequence[Group], groups: Sequence[Group], strict: bool
) -> dict[Any, Parameter]:
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
    if strict and saved.keys() != live.keys():
        raise ValueError(
            f"match='name': the loaded state dict lacks {sorted(map(str, live.keys() - saved))} "
            f"and has besides {sorted(map(str, saved.keys() - live))}. With strict=False these "
            "start anew, or are left out"
        )
    return {key: live[name] for name, key in saved.items() if name in live}


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
