"""Decay to zero along a polynomial."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_epochs
from functorch_optim.stateful.optimizer import Optimizer


class PolynomialLR(LRScheduler):
    """The learning rate times `(1 - epoch / total_iters) ** power`, 0 from `total_iters` on.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      total_iters: the number of epochs it takes.
      power: of the polynomial.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: total_iters is below 0.
      TypeError: an argument that is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
        check_epochs("total_iters", total_iters, zero=True)
        checks.real(power=power)
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        if self._is_initial or self.last_epoch > self.total_iters:
            return current
        left = 1.0 - self.last_epoch / self.total_iters
        before = 1.0 - (self.last_epoch - 1) / self.total_iters
        return [lr * (left / before) ** self.power for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        # Its last digit is torch's; polynomial_lr divides the steps that are left.
        left = 1.0 - min(self.total_iters, self.last_epoch) / self.total_iters
        return [base * left**self.power for base in self.base_lrs]
