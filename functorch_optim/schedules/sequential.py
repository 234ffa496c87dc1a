"""Schedules one after the other.

value(count) = schedules[k](count - milestones[k - 1])   from milestones[k - 1] on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from functorch_optim.core.arithmetic import at_least, is_number, maximum, subtract, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import members, points, result, schedule_factory


@schedule_factory
def sequential_lr(schedules: Sequence[Schedule], milestones: Sequence[Number]) -> Schedule:
    """Runs each schedule until its milestone, counted anew from 0 (torch's SequentialLR).

    Args:
      schedules: functions of the step count, at least one.
      milestones: the counts at which the second, third, ... schedule takes over, increasing.

    Raises:
      ValueError: no schedule, or not one milestone fewer than schedules.
    """
    schedules = members("schedules", schedules)
    milestones = points("milestones", milestones)
    if not schedules:
        raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
    if len(schedules) != len(milestones) + 1:
        raise ValueError(
            "Sequential Schedulers expects number of schedulers provided to be one more than the "
            f"number of milestone points, but got number of schedulers {len(schedules)} and the "
            f"number of milestones to be equal to {len(milestones)}"
        )

    def part(index: int, count: Any) -> Any:
        return result(f"schedules[{index}]", schedules[index](count))

    def schedule(count: Any) -> Any:
        if all(is_number(x) for x in (count, *milestones)):
            begins = (0, *milestones)
            active = max(k for k, begin in enumerate(begins) if k == 0 or count >= begin)
            return part(active, count - begins[active])
        value = part(0, count)
        for index, milestone in enumerate(milestones, 1):
            # A schedule that has not begun is asked for its start, never for a negative count.
            since = maximum(subtract(count, milestone), 0)
            value = where(at_least(count, milestone), part(index, since), value)
        return value

    return schedule
