"""torch's `state_dict` layout: out of an optimizer, and checked into one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.per_leaf import Rule
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.storage import Record, StateView

Group = dict[str, Any]


def packed(groups: Sequence[Group], state: StateView) -> dict[str, Any]:
    """`{"state": {id: {...}}, "param_groups": [...]}`; ids number the parameters in order."""
    ids: dict[Parameter, int] = {}
    packed_groups = []
    for group in groups:
        for p in group["params"]:
            ids.setdefault(p, len(ids))
        packed_groups.append(
            {name: value for name, value in group.items() if name != "params"}
            | {"params": [ids[p] for p in group["params"]]}
        )
    return {
        "state": {ids[p]: dict(state[p]) for p in state},
        "param_groups": packed_groups,
    }


def unpacked(
    state_dict: Mapping[str, Any],
    groups: Sequence[Group],
    rule: Rule,
    fixed: Mapping[str, Any],
) -> tuple[list[Group], dict[Parameter, Record]]:
    """New groups and records from a state_dict; nothing that exists is changed.

    Raises:
      ValueError: a wrong number of groups or parameters, a wrong shape, a step that is no count.
      TypeError: a wrong dtype or structure.
    """
    saved_groups = list(state_dict["param_groups"])
    if len(saved_groups) != len(groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    if any(
        len(saved["params"]) != len(live["params"])
        for saved, live in zip(saved_groups, groups, strict=True)
    ):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group"
        )
    new_groups = [
        _merged(saved, live, fixed) for saved, live in zip(saved_groups, groups, strict=True)
    ]
    by_id = dict(
        zip(
            _chained(saved["params"] for saved in saved_groups),
            _chained(live["params"] for live in groups),
            strict=True,
        )
    )
    records = {
        by_id[key]: _record(entries, by_id[key], rule, key)
        for key, entries in state_dict["state"].items()
        if key in by_id and entries
    }
    return new_groups, records


def _chained(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def _merged(saved: Mapping[str, Any], live: Group, fixed: Mapping[str, Any]) -> Group:
    """The saved hyperparameters in their order, then those that only the live group has."""
    merged = {k: copy.deepcopy(value) for k, value in saved.items() if k != "params"}
    for name, value in live.items():
        if name != "params":
            merged.setdefault(name, value)
    merged.update({name: value for name, value in fixed.items() if name in merged})
    merged["params"] = live["params"]
    return merged


def _record(entries: Mapping[str, Any], p: Parameter, rule: Rule, key: Any) -> Record:
    where = f"state of parameter {key}" + (f" ({p.name})" if p.name else "")
    if not isinstance(entries, Mapping):
        raise TypeError(f"{where} should be a dict, but is {type(entries).__name__}")
    present = {name: value for name, value in entries.items() if value is not None}
    step = 1  # an algorithm without `step` starts anew where it has no buffers
    if rule.torch_has_step:
        step = _step(present.pop("step", None), where)
    carried = tuple(_number(present.pop(name, None), f"{where}: {name}") for name in rule.carried)
    buffers = {name: _buffer(value, p, f"{where}: {name}") for name, value in present.items()}
    return Record(step, carried, buffers)


def _step(value: Any, where: str) -> int:
    number = _number(value, f"{where}: step")
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise ValueError(f"{where}: step should be a count of updates, but is {number}")
    return int(number)


def _number(value: Any, where: str) -> float:
    if value is None:
        raise ValueError(f"{where} is missing")
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{where} should be a number, but is {value!r}")
    return float(array.reshape(()))


def _buffer(value: Any, p: Parameter, where: str) -> jax.Array:
    if np.shape(value) != p.shape:
        raise ValueError(
            f"{where} has shape {np.shape(value)}, but its parameter has shape {p.shape}"
        )
    array = value if isinstance(value, jax.Array) else jnp.array(np.asarray(value))
    if not jnp.issubdtype(array.dtype, jnp.number) or (
        jnp.iscomplexobj(array) and not jnp.issubdtype(p.dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{where} has dtype {array.dtype}, but its parameter has dtype {p.dtype}")
    return array.astype(p.dtype)
