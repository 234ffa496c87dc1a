"""A schedule that counts epochs, asked with a count of steps.

value(count) = schedule(floor(count / steps_per_epoch))    or, fractional,
               schedule(count / steps_per_epoch)
"""

from __future__ import annotations

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import as_float, quotient
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import check_length, result, schedule_factory


@schedule_factory
def per_epoch(schedule: Schedule, steps_per_epoch: Number, fractional: bool = False) -> Schedule:
    """`schedule` with epochs as its unit: it changes once every `steps_per_epoch` steps.

    Args:
      schedule: a function of the number of epochs.
      steps_per_epoch: an integer of at least 1.
      fractional: change within epochs, too: schedule is called with a float. In float32 that has
        24 bits, and epoch 1000 parts of 1/16000; a schedule whose lengths are in steps has more.

    Raises:
      ValueError: steps_per_epoch is not a positive integer.
    """
    checks.function("schedule", schedule, "the number of epochs")
    checks.flag("fractional", fractional)
    check_length("steps_per_epoch", steps_per_epoch)
    if fractional:
        return lambda count: result(
            "schedule", schedule(as_float(count) / as_float(steps_per_epoch))
        )
    return lambda count: result("schedule", schedule(quotient(count, steps_per_epoch)))
