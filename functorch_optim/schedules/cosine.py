"""Half a cosine from the learning rate to its minimum, and back.

    value(count) = eta_min + (lr - eta_min) * (1 + cos(pi * count / T_max)) / 2

Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import equal, quotient, remainder, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import along_cosine
from functorch_optim.schedules.factory import check_length, schedule_factory


@schedule_factory
def cosine_annealing_lr(lr: Number, T_max: Number, eta_min: Number = 0.0) -> Schedule:
    """From `lr` to `eta_min` in `T_max` steps along half a cosine (torch's CosineAnnealingLR).

    It rises again after `T_max` steps, with period `2 * T_max`.

    Args:
      lr: the value at count 0.
      T_max: the length of the fall in steps, an integer of at least 1.
      eta_min: the value at count `T_max`.

    Raises:
      ValueError: T_max is not a positive integer.
    """
    checks.real(lr=lr, eta_min=eta_min)
    check_length("T_max", T_max)

    def schedule(count: Any) -> Any:
        # Reduced in whole numbers where both are, which keeps float32 accurate late. Falls and
        # rises are told apart by their number: a whole period may not fit into an int32.
        count = abs(count)
        within, rises = remainder(count, T_max), equal(remainder(quotient(count, T_max), 2), 1)
        falling = along_cosine(lr, eta_min, within, T_max)
        return where(rises, along_cosine(eta_min, lr, within, T_max), falling)

    return schedule
