"""The hyperparameters of a group, checked to be usable in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from functorch_optim.core.arithmetic import is_number


def checked(defaults: Mapping[str, Any], group: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A group's values of a factory's arguments; lists become tuples.

    torch checks no more than the constructor's arguments, and no range is checked here either: a
    group may have a negative lr. What would spoil the parameters is refused.

    Raises:
      TypeError: something else where the default is a number. ValueError: a NaN.
    """
    values = {}
    for name, default in defaults.items():
        value = group.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(default, tuple) and isinstance(value, tuple):
            wanted = zip(value, default, strict=False)
        else:
            wanted = zip((value,), (default,), strict=True)
        for item, example in wanted:
            if is_number(example) and not isinstance(example, bool):
                _check(item, f"param_groups[{index}][{name!r}]", value)
        values[name] = value
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
