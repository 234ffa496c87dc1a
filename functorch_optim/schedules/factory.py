"""What all schedule factories share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from functorch_optim.base import Schedule, value_equal
from functorch_optim.scalars import as_float

P = ParamSpec("P")


def schedule_factory(build: Callable[P, Schedule]) -> Callable[P, Schedule]:
    """Gives equal arguments the same schedule, and arrays among them one float dtype."""
    build = value_equal(build)

    @functools.wraps(build)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        return build(*map(_normal, args), **{name: _normal(x) for name, x in kwargs.items()})

    return factory


def _normal(x: Any) -> Any:
    if isinstance(x, list):
        return tuple(x)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
        return as_float(x)
    return x
