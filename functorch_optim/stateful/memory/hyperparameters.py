"""The hyperparameters of a group, checked to be usable in a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from functorch_optim.core.arithmetic import is_number
from functorch_optim.stateful.memory.protocol import ActiveGroup


class Arguments(Protocol):
    """What is known of a factory's arguments: their defaults, and which of them select code."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """By name."""

    @property
    def selects_code(self) -> Collection[str]:
        """The names of those that are no numbers."""


def checked(factory: Arguments, group: ActiveGroup) -> dict[str, Any]:
    """A group's values of a factory's arguments; lists become tuples.

    torch checks no more than the constructor's arguments, and no range is checked here either: a
    group may have a negative lr. What would spoil the parameters is refused.

    Raises:
      TypeError: something else where a number should be. ValueError: a NaN.
    """
    values = {}
    for name, default in factory.defaults.items():
        value = group.options.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        values[name] = value
        if (type(value) is float and value == value) or name in factory.selects_code:
            continue
        items = value if isinstance(value, tuple) else (value,)
        examples = default if isinstance(default, tuple) else (default,) * len(items)
        for item, example in zip(items, examples, strict=False):
            if example is not None or item is not None:
                _check(item, f"param_groups[{group.number}][{name!r}]", value)
    return values


def _check(item: Any, where: str, value: Any) -> None:
    known = is_number(item) and not isinstance(item, complex)
    if known and item != item:
        raise ValueError(f"{where} is {value!r}")
    if not (known or isinstance(item, jax.Array | np.ndarray) or callable(item)):
        raise TypeError(
            f"{where} should be a number, an array or a schedule, but is {value!r} of type "
            f"{type(value).__name__}"
        )
