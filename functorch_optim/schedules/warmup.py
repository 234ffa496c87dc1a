"""A linear warm-up in front of a schedule, which then begins.

value(count) = schedule(0) * (start_factor + (1 - start_factor) * count / steps)  count < steps
               schedule(count - steps)                                     from then on
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import at_least, is_number, maximum, minimum, subtract, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import along_line
from functorch_optim.schedules.factory import check_length, result, schedule_factory


@schedule_factory
def warmup(schedule: Schedule, steps: Number, start_factor: Number = 0.0) -> Schedule:
    """`schedule`, begun after `steps` steps that lead up to its first value along a line.

    Nothing of the schedule is skipped: it is delayed. So a cosine of `T_max` steps behind `steps`
    steps of warm-up is at its end at count `steps + T_max`.

    Args:
      schedule: a function of the step count.
      steps: the length of the warm-up, an integer of at least 0.
      start_factor: at count 0 the value is `start_factor * schedule(0)`. With 0 the first update
        changes nothing; `1 / steps` makes it a first step instead.

    Raises:
      ValueError: steps is not a non-negative integer, or start_factor is below 0.
    """
    checks.function("schedule", schedule)
    checks.real(start_factor=start_factor)
    check_length("steps", steps, least=0)
    if is_number(start_factor) and not start_factor >= 0:
        raise ValueError(f"Expected non-negative start_factor, but got {start_factor}")

    def warmed(count: Any) -> Any:
        # Before its turn the schedule is asked for its first value.
        value = result("schedule", schedule(maximum(subtract(count, steps), 0)))
        factor = along_line(start_factor, 1.0, minimum(count, steps), steps)
        return where(at_least(count, steps), value, value * factor)

    return warmed
