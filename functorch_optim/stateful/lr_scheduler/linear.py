"""A factor that goes along a line, and stays."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_epochs
from functorch_optim.stateful.optimizer import Optimizer


class LinearLR(LRScheduler):
    """From `start_factor` to `end_factor` times the learning rate, along a line.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      start_factor: in (0, 1].
      end_factor: in [0, 1].
      total_iters: the number of epochs it takes.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: start_factor is not in (0, 1], end_factor not in [0, 1], or total_iters is
        below 0.
      TypeError: an argument that is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        checks.real(start_factor=start_factor, end_factor=end_factor)
        check_epochs("total_iters", total_iters, zero=True)
        if start_factor > 1 or start_factor <= 0:
            raise ValueError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal "
                "to 1."
            )
        if end_factor > 1 or end_factor < 0:
            raise ValueError("Ending multiplicative factor expected to be between 0 and 1.")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in current]
        if self._is_initial or self.last_epoch > self.total_iters:
            return current
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * rise
        return [lr * (1.0 + rise / before) for lr in current]

    def _get_closed_form_lr(self) -> list[Any]:
        # Its last digit is torch's; linear_lr is exact at both ends instead.
        rise = self.end_factor - self.start_factor
        done = min(self.total_iters, self.last_epoch)
        factor = self.start_factor + rise * done / self.total_iters
        return [base * factor for base in self.base_lrs]
