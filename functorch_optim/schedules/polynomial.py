"""Decay to zero along a polynomial.

value(count) = lr * (1 - min(count, total_iters) / total_iters) ** power
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import arithmetic, checks
from functorch_optim.core.arithmetic import as_float, equal, is_number, minimum, subtract, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import check_length, schedule_factory

# XLA takes the power of both sides of a quotient, and those of longer ones are infinite.
FAR = 2**40


@schedule_factory
def polynomial_lr(lr: Number, total_iters: Number = 5, power: Number = 1.0) -> Schedule:
    """From `lr` to 0 in `total_iters` steps, as a power of the steps left (torch's PolynomialLR).

    Args:
      lr: the value at count 0.
      total_iters: the length of the decay in steps, an integer of at least 1.
      power: 1 decays along a line, more than 1 fast at first, less than 1 late.

    Raises:
      ValueError: total_iters is not a positive integer.
    """
    checks.real(lr=lr, power=power)
    check_length("total_iters", total_iters)

    def schedule(count: Any) -> Any:
        left = subtract(total_iters, minimum(count, total_iters))
        # 0 is left out of the power, whose derivative there may be infinite.
        over = equal(left, 0)
        base = as_float(where(over, 1, left)) / as_float(total_iters)
        if not is_number(base) and is_number(total_iters) and total_iters > FAR:
            base = 1.0 - as_float(count) / as_float(total_iters)
        at_end = where(equal(power, 0), 1.0, 0.0)
        return lr * where(over, at_end, arithmetic.power(base, power))

    return schedule
