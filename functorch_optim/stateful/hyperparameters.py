"""The hyperparameters of a group, checked to be usable in a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def checked(defaults: Mapping[str, Any], group: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A group's values of a factory's arguments; lists become tuples.

    torch checks no more than the constructor's arguments, and neither is a range checked here: a
    group may have a negative lr. What would spoil the parameters is refused.

    Raises:
      TypeError: a string where a number is needed. ValueError: a NaN.
    """
    values = {}
    for name, default in defaults.items():
        value = group.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) and math.isnan(item):
                raise ValueError(f"param_groups[{index}][{name!r}] is {value!r}")
            if isinstance(item, str) and not (default is None or isinstance(default, str)):
                raise TypeError(
                    f"param_groups[{index}][{name!r}] should be a number, an array or a "
                    f"schedule, but is {value!r}"
                )
        values[name] = value
    return values
