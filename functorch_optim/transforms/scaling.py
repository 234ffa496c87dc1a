"""Transforms that multiply the updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from functorch_optim.core import checks, updating
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import is_number
from functorch_optim.core.counting import increment
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Number,
    Params,
    Scalar,
    Schedule,
    Updates,
    stateless,
)


@value_equal
def scale(factor: Number) -> GradientTransformation:
    """Multiplies the updates by a number or an array (`scale(-lr)` makes gradients a descent).

    Raises:
      TypeError: factor is not a number or an array; for a schedule see `scale_by_schedule`.
      ValueError: it is NaN, or an array of several elements.
    """
    checks.number("factor", factor)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return updating.scale(updates, factor if is_number(factor) else jnp.reshape(factor, ()))

    return stateless(changed)


class ScaleByScheduleState(NamedTuple):
    """`step` counts the updates made so far (int32, saturates at 2**31 - 1)."""

    step: Scalar


@value_equal
def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """Multiplies the updates by `schedule(step)`, where step is 0 at the first update.

    Raises:
      TypeError: schedule is not a function.
    """
    if not callable(schedule):
        raise TypeError(
            f"schedule should be a function of the step count, but got {schedule!r}; "
            "for a number see scale(factor)"
        )

    @abstract_aware
    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Updates, state: ScaleByScheduleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScaleByScheduleState]:
        checks.state("scale_by_schedule", ScaleByScheduleState, state)
        checks.scalars("scale_by_schedule", state, "step")
        step = jnp.asarray(state.step).astype(jnp.int32)
        return updating.scale(updates, schedule(step)), ScaleByScheduleState(increment(step))

    return GradientTransformation(init, update)
