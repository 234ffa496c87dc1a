"""A stair with steps of one length.

value(count) = lr * gamma ** floor(count / step_size)
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import power, quotient
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import check_length, schedule_factory


@schedule_factory
def step_lr(lr: Number, step_size: Number, gamma: Number = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` every `step_size` steps (torch's StepLR).

    Args:
      lr: the value at count 0.
      step_size: steps between two changes, an integer of at least 1.
      gamma: the factor.

    Raises:
      ValueError: step_size is not a positive integer.
    """
    checks.real(lr=lr, gamma=gamma)
    check_length("step_size", step_size)
    return lambda count: lr * factor_at(count, step_size, gamma)


def factor_at(count: Any, step_size: Any, gamma: Any) -> Any:
    """What the learning rate is multiplied by at a count."""
    return power(gamma, quotient(count, step_size))
