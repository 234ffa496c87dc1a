"""A factor on the learning rate for a number of steps.

value(count) = lr * factor   for count < total_iters
               lr            from then on
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import at_least, is_number, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import check_length, schedule_factory


@schedule_factory
def constant_lr(lr: Number, factor: Number = 1 / 3, total_iters: Number = 5) -> Schedule:
    """`lr * factor` for the first `total_iters` steps, `lr` from then on (torch's ConstantLR).

    Args:
      lr: the value after the first steps.
      factor: what it is multiplied by before, in [0, 1].
      total_iters: the number of first steps, an integer of at least 0.

    Raises:
      ValueError: factor is not in [0, 1], or total_iters is not a non-negative integer.
    """
    checks.real(lr=lr, factor=factor)
    if is_number(factor) and not 0 <= factor <= 1:
        raise ValueError("Constant multiplicative factor expected to be between 0 and 1.")
    check_length("total_iters", total_iters, least=0)

    return lambda count: lr * factor_at(count, factor, total_iters)


def factor_at(count: Any, factor: Any, total_iters: Any) -> Any:
    """What the learning rate is multiplied by at a count."""
    return where(at_least(count, total_iters), 1.0, factor)
