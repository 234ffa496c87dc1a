"""Multiplication by a constant every so many epochs."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.schedules.step import factor_at
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_epochs
from functorch_optim.stateful.optimizer import Optimizer


class StepLR(LRScheduler):
    """Multiplies the learning rate by `gamma` every `step_size` epochs.

    Resuming with `last_epoch` at a boundary keeps the learning rate, which has been multiplied
    already (torch multiplies it once more).

    Args:
      optimizer: the optimizer whose groups are adjusted.
      step_size: epochs between two multiplications.
      gamma: the factor.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: step_size is not above 0.
      TypeError: an argument that is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        check_epochs("step_size", step_size)
        checks.real(gamma=gamma)
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        if self.last_epoch == 0 or self._is_initial or self.last_epoch % self.step_size != 0:
            return current
        return [lr * self.gamma for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        factor = factor_at(self.last_epoch, self.step_size, self.gamma)
        return [base * factor for base in self.base_lrs]
