"""Why a step was compiled: what of its inputs changed since the step before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from functorch_optim.core.arithmetic import is_number
from functorch_optim.stateful.memory.protocol import ActiveGroup

logger = logging.getLogger("functorch_optim")


def described(
    groups: Sequence[ActiveGroup],
    arguments: Collection[str],
    buffers: Any,
    inputs: Any,
) -> dict[str, Any]:
    """All that may select a program, by name: shapes and dtypes, members, flags.

    Of the groups' entries only the algorithm's `arguments` count.
    """
    found: dict[str, Any] = {}
    for index, options, parameters in groups:
        for key, value in options.items():
            if key in arguments:
                nothing = key == "weight_decay" and is_number(value) and value == 0
                found[f"param_groups[{index}][{key!r}]"] = 0 if nothing else _abstract(value)
        for position, p in enumerate(parameters):
            name = p.name or f"param_groups[{index}]['params'][{position}]"
            found[f"parameter {name}"] = _abstract(p._data)
    for what, tree in (("state", buffers), ("input", inputs)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{what} {jax.tree_util.keystr(path)}"] = _abstract(leaf)
    return found


def _abstract(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_abstract, value))
    if is_number(value) and not isinstance(value, bool):
        return "a number"
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return value


def log(
    optimizer: Any, before: Mapping[str, Any] | None, now: Mapping[str, Any], first: bool
) -> None:
    """Logs which inputs differ from those of the step before, if they are known."""
    name = type(optimizer).__name__
    if first:
        logger.warning("%s: compiled its first step", name)
        return
    if before is None:
        logger.warning("%s: compiled a step; nothing is known of the one before", name)
        return
    changes = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in {**before, **now}
        if before.get(key, "absent") != now.get(key, "absent")
    ]
    cause = "; ".join(changes) or "parameters whose steps differ, or another loss function"
    logger.warning("%s: compiled a step because of %s", name, cause)
