"""Schedules all at once.

value(count) = schedules[0](count) * schedules[1](count) * ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from functorch_optim.core.pair import Schedule
from functorch_optim.schedules.factory import members, result, schedule_factory


@schedule_factory
def chained(schedules: Sequence[Schedule]) -> Schedule:
    """The product of schedules (torch's ChainedScheduler).

    Give the learning rate to one of them, and 1.0 to the others: they are factors then.
    torch's schedulers multiply one value by turns, which comes to the same for those that only
    multiply: not for a cosine whose eta_min is not 0.

    Args:
      schedules: functions of the step count, at least one.

    Raises:
      ValueError: no schedule.
      TypeError: one is not a function, or returns something else than a number or an array.
    """
    schedules = members("schedules", schedules)
    if not schedules:
        raise ValueError(
            "ChainedScheduler expects at least one scheduler to be chained, but got no scheduler."
        )

    def schedule(count: Any) -> Any:
        return math.prod(result(f"schedules[{k}]", part(count)) for k, part in enumerate(schedules))

    return schedule
