"""A linear ramp of the learning rate."""

from __future__ import annotations

from typing import Any

from functorch_optim.base import Number, Schedule
from functorch_optim.scalars import as_float, is_number, minimum
from functorch_optim.schedules.factory import schedule_factory


@schedule_factory
def linear_lr(
    lr: Number, start_factor: Number = 1 / 3, end_factor: Number = 1.0, total_iters: Number = 5
) -> Schedule:
    """From `lr * start_factor` to `lr * end_factor` in `total_iters` steps (torch's LinearLR).

    Raises:
      ValueError: start_factor is not in (0, 1], or end_factor not in [0, 1].
    """
    if is_number(start_factor) and not 0 < start_factor <= 1:
        raise ValueError(
            "Starting multiplicative factor expected to be greater than 0 and less or equal to 1."
        )
    if is_number(end_factor) and not 0 <= end_factor <= 1:
        raise ValueError("Ending multiplicative factor expected to be between 0 and 1.")

    def schedule(count: Any) -> Any:
        done = as_float(minimum(count, total_iters)) / as_float(total_iters)
        return lr * (start_factor + (end_factor - start_factor) * done)

    return schedule
