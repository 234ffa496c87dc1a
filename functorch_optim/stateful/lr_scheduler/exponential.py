"""Multiplication by a constant every epoch."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import power
from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.optimizer import Optimizer


class ExponentialLR(LRScheduler):
    """Multiplies the learning rate by `gamma` every epoch.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      gamma: the factor.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      TypeError: gamma is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        checks.real(gamma=gamma)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        return current if self._is_initial else [lr * self.gamma for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        factor = power(self.gamma, self.last_epoch)
        return [base * factor for base in self.base_lrs]
