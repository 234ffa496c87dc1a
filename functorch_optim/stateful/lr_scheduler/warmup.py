"""A given number of epochs at a factor, along a line or along a power; constant from then on."""

from __future__ import annotations

from typing import Any

from functorch_optim.stateful.lr_scheduler.base import LRScheduler
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
      ValueError: factor is not in [0, 1].
      TypeError, KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
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
        factor = self.factor + (self.last_epoch >= self.total_iters) * (1 - self.factor)
        return [base * factor for base in self.base_lrs]


class LinearLR(LRScheduler):
    """From `start_factor` to `end_factor` times the learning rate, along a line.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      start_factor: in (0, 1].
      end_factor: in [0, 1].
      total_iters: the number of epochs it takes.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: start_factor is not in (0, 1], or end_factor not in [0, 1].
      TypeError, KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
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
        done = min(self.total_iters, self.last_epoch) / self.total_iters
        factor = self.start_factor + (self.end_factor - self.start_factor) * done
        return [base * factor for base in self.base_lrs]


class PolynomialLR(LRScheduler):
    """The learning rate times `(1 - epoch / total_iters) ** power`, 0 from `total_iters` on.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      total_iters: the number of epochs it takes.
      power: of the polynomial.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      TypeError, KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
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
        left = 1.0 - min(self.total_iters, self.last_epoch) / self.total_iters
        return [base * left**self.power for base in self.base_lrs]
