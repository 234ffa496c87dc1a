"""Exponential decay.

value(count) = lr * gamma ** count
"""

from __future__ import annotations

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import power
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import schedule_factory


@schedule_factory
def exponential_lr(lr: Number, gamma: Number) -> Schedule:
    """`lr * gamma ** count` (torch's ExponentialLR).

    Args:
      lr: the value at count 0.
      gamma: the factor of each step.
    """
    checks.real(lr=lr, gamma=gamma)
    return lambda count: lr * power(gamma, count)
