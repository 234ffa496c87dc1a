"""Half a cosine from the learning rate to its minimum, and back."""

from __future__ import annotations

import math
from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_epochs
from functorch_optim.stateful.optimizer import Optimizer


class CosineAnnealingLR(LRScheduler):
    """Follows half a cosine from the learning rate to `eta_min` in `T_max` epochs, then back.

    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    without the restarts.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      T_max: the number of epochs of half a period.
      eta_min: the smallest learning rate.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: T_max is not above 0.
      TypeError: an argument that is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        check_epochs("T_max", T_max)
        checks.real(eta_min=eta_min)
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        epoch, T_max, eta_min = self.last_epoch, self.T_max, self.eta_min
        if self._is_initial:
            return current
        if self._step_count == 1 and epoch > 0:
            return self._get_closed_form_lr()
        if (epoch - 1 - T_max) % (2 * T_max) == 0:
            # from the minimum, where the distance to it tells nothing: from the starting rates
            rise = (1 - math.cos(math.pi / T_max)) / 2
            pairs = zip(self.base_lrs, current, strict=True)
            return [lr + (base - eta_min) * rise for base, lr in pairs]
        ratio = (1 + math.cos(math.pi * epoch / T_max)) / (
            1 + math.cos(math.pi * (epoch - 1) / T_max)
        )
        return [ratio * (lr - eta_min) + eta_min for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        # Its last digit is torch's; cosine_annealing_lr squares a sine, accurate in float32 too.
        weight = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * weight for base in self.base_lrs]
