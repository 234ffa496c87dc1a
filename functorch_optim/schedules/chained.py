"""Schedules all at once.

value(count) = schedules[0](count) * schedules[1](count) * ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from functorch_optim.core.arithmetic import as_float
from functorch_optim.core.pair import Schedule
from functorch_optim.schedules.factory import schedule_factory


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
    """
    if not schedules:
        raise ValueError(
            "ChainedScheduler expects at least one scheduler to be chained, but got no scheduler."
        )

    def schedule(count: Any) -> Any:
        return math.prod(as_float(part(count)) for part in schedules)

    return schedule
