"""Schedules one after the other.

value(count) = schedules[k](count - milestones[k - 1])   from milestones[k - 1] on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from functorch_optim.core.arithmetic import at_least, is_number, maximum, subtract, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import schedule_factory


@schedule_factory
def sequential_lr(schedules: Sequence[Schedule], milestones: Sequence[Number]) -> Schedule:
    """Runs each schedule until its milestone, counted anew from 0 (torch's SequentialLR).

    Args:
      schedules: functions of the step count, at least one.
      milestones: the counts at which the second, third, ... schedule takes over, increasing.

    Raises:
      ValueError: no schedule, or not one milestone fewer than schedules.
    """
    schedules, milestones = tuple(schedules), tuple(milestones)  # an array of milestones, too
    if not schedules:
        raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
    if len(schedules) != len(milestones) + 1:
        raise ValueError(
            "Sequential Schedulers expects number of schedulers provided to be one more than the "
            f"number of milestone points, but got number of schedulers {len(schedules)} and the "
            f"number of milestones to be equal to {len(milestones)}"
        )

    def schedule(count: Any) -> Any:
        if all(is_number(x) for x in (count, *milestones)):
            begins = (0, *milestones)
            active = max(k for k, begin in enumerate(begins) if k == 0 or count >= begin)
            return schedules[active](count - begins[active])
        value = schedules[0](count)
        for following, milestone in zip(schedules[1:], milestones, strict=True):
            # A schedule that has not begun is asked for its start, never for a negative count.
            since = maximum(subtract(count, milestone), 0)
            value = where(at_least(count, milestone), following(since), value)
        return value

    return schedule
