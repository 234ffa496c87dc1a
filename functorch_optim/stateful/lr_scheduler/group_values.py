"""Values that schedulers read, write and keep: numbers, or jax arrays that are never fetched."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks
from functorch_optim.stateful.optimizer import Optimizer


def like(old: Any, new: Any) -> Any:
    """A new value of a hyperparameter, as an array like `old` if that is one.

    Equal in shape, dtype, weak type and placement, so that programs compiled for the old one run.
    """
    if not isinstance(old, jax.Array) or not jnp.issubdtype(old.dtype, jnp.inexact):
        return new
    if isinstance(new, jax.Array) and jax.typeof(new) == jax.typeof(old):
        return new
    array = jnp.full_like(old, new)
    if isinstance(old, jax.core.Tracer) or not old.committed:
        return array
    return jax.device_put(array, old.sharding)


def per_group(name: str, value: Any, optimizer: Optimizer) -> list[Any]:
    """One value for each group, from one for all or a list.

    Raises:
      ValueError: a list of another length.
      TypeError: a value that is neither a number nor an array.
    """
    groups = optimizer.param_groups
    if not isinstance(value, list | tuple):
        checks.real(**{name: value})
        return [value] * len(groups)
    if len(value) != len(groups):
        raise ValueError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(value)} values, param_groups has {len(groups)}."
        )
    for index, item in enumerate(value):
        checks.real(**{f"{name}[{index}]": item})
    return list(value)


def copied(value: Any) -> Any:
    """A copy of saved data, which shares no list and no dict with it."""
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, dict):  # a Counter too
        return copy.copy(value)
    return value


def as_rates(values: list[Any]) -> list[Any]:
    """Saved learning rates, with another library's arrays (torch's) as jax arrays."""
    return [
        jnp.asarray(np.asarray(x))
        if hasattr(x, "__array__") and not isinstance(x, jax.Array | np.ndarray | np.generic)
        else x
        for x in values
    ]
