"""A linear ramp of the learning rate.

done = min(count, total_iters) / total_iters
value(count) = lr * (start_factor * (1 - done) + end_factor * done)
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, minimum
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import along_line
from functorch_optim.schedules.factory import check_length, schedule_factory


@schedule_factory
def linear_lr(
    lr: Number, start_factor: Number = 1 / 3, end_factor: Number = 1.0, total_iters: Number = 5
) -> Schedule:
    """From `lr * start_factor` to `lr * end_factor` in `total_iters` steps (torch's LinearLR).

    Args:
      lr: what the factors multiply.
      start_factor: at count 0, in (0, 1].
      end_factor: from count `total_iters` on, in [0, 1].
      total_iters: the length of the ramp in steps, an integer of at least 1.

    Raises:
      ValueError: start_factor is not in (0, 1], end_factor not in [0, 1], or total_iters is not a
        positive integer.
    """
    checks.real(lr=lr, start_factor=start_factor, end_factor=end_factor)
    if is_number(start_factor) and not 0 < start_factor <= 1:
        raise ValueError(
            "Starting multiplicative factor expected to be greater than 0 and less or equal to 1."
        )
    if is_number(end_factor) and not 0 <= end_factor <= 1:
        raise ValueError("Ending multiplicative factor expected to be between 0 and 1.")
    check_length("total_iters", total_iters)

    def schedule(count: Any) -> Any:
        done = minimum(count, total_iters)
        return lr * along_line(start_factor, end_factor, done, total_iters)

    return schedule
