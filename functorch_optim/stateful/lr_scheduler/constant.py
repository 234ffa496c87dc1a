"""A factor on the learning rate for a number of epochs."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.schedules.constant import factor_at
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_epochs
from functorch_optim.stateful.optimizer import Optimizer


class ConstantLR(LRScheduler):
    """The learning rate times `factor` for the first `total_iters` epochs.

    Resuming with `last_epoch` at the end keeps the learning rate, which is at its full value
    already (torch divides it by the factor once more).

    Args:
      optimizer: the optimizer whose groups are adjusted.
      factor: in [0, 1]. The rate is divided by it at the end, so that 0 fails there with
        ZeroDivisionError.
      total_iters: the number of epochs.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: factor is not in [0, 1], or total_iters is below 0.
      TypeError: an argument that is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        checks.real(factor=factor)
        check_epochs("total_iters", total_iters, zero=True)
        if factor > 1 or factor < 0:
            raise ValueError("Constant multiplicative factor expected to be between 0 and 1.")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        if self.last_epoch == 0:
            return [lr * self.factor for lr in current]
        if self._is_initial or self.last_epoch != self.total_iters:
            return current
        return [lr * (1.0 / self.factor) for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        factor = factor_at(self.last_epoch, self.factor, self.total_iters)
        return [base * factor for base in self.base_lrs]
