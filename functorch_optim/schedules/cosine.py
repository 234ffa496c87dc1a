"""Half a cosine from the learning rate to its minimum, and back."""

from __future__ import annotations

import math
from typing import Any

from functorch_optim.base import Number, Schedule
from functorch_optim.scalars import as_float, cos, remainder
from functorch_optim.schedules.factory import schedule_factory


@schedule_factory
def cosine_annealing_lr(lr: Number, T_max: Number, eta_min: Number = 0.0) -> Schedule:
    """`eta_min + (lr - eta_min) * (1 + cos(pi * count / T_max)) / 2` (torch's CosineAnnealingLR).

    It rises again after `T_max` steps, with period `2 * T_max`.
    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """

    def schedule(count: Any) -> Any:
        # The remainder, taken in whole numbers where both are, keeps float32 accurate late.
        phase = as_float(remainder(count, 2 * T_max)) / as_float(T_max)
        return eta_min + (lr - eta_min) * (1 + cos(math.pi * phase)) / 2

    return schedule
