"""Half cosines that start anew, each longer than the one before."""

from __future__ import annotations

import math
from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_last_epoch
from functorch_optim.stateful.optimizer import Optimizer


class CosineAnnealingWarmRestarts(LRScheduler):
    """Follows half a cosine from the starting learning rate to `eta_min`, again and again.

    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Resuming with `last_epoch` finds the period that the epoch is in (torch starts a first one
    there). So does `step(epoch)`, in whole numbers where torch takes a logarithm, whose rounding
    can miss a restart.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      T_0: the number of epochs of the first period.
      T_mult: how much longer each period is than the one before.
      eta_min: the smallest learning rate.
      last_epoch: the epoch to go on from; -1 starts anew.

    Attributes:
      T_i: the number of epochs of the current period.
      T_cur: the number of epochs since it began.

    Raises:
      ValueError: T_0 or T_mult is no positive integer, or eta_min no number.
      TypeError, KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        if not isinstance(T_0, int) or T_0 <= 0:
            raise ValueError(f"Expected positive integer T_0, but got {T_0}")
        if not isinstance(T_mult, int) or T_mult < 1:
            raise ValueError(f"Expected integer T_mult >= 1, but got {T_mult}")
        if not isinstance(eta_min, float | int):
            raise ValueError(
                f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}"
            )
        checks.real(eta_min=eta_min)
        check_last_epoch(last_epoch)
        self.T_0 = T_0
        self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Advances by one epoch, or to `epoch`, and writes the learning rates.

        Args:
          epoch: may have a fraction, as `epoch + batch / batches`.

        Raises:
          ValueError: epoch is negative. Nothing is changed then.
        """
        if epoch is not None and epoch < 0:
            raise ValueError(f"Expected non-negative epoch, but got {epoch}")
        with self._unchanged_on_error():
            if epoch is not None:
                self._place(epoch)
            elif self._is_initial or self.last_epoch < 0:
                self._place(self.last_epoch + 1)
            else:
                self.last_epoch += 1
                self.T_cur += 1
                if self.T_cur >= self.T_i:
                    self.T_cur %= self.T_i
                    self.T_i *= self.T_mult
            self._assign(self._within_step(self.get_lr))

    def _restart(self) -> None:
        self._place(0)
        self._assign(self._within_step(self.get_lr))

    def _place(self, epoch: float) -> None:
        self.T_i, self.T_cur = self.T_0, epoch
        if self.T_mult == 1:
            self.T_cur %= self.T_0
        while self.T_cur >= self.T_i:
            self.T_cur -= self.T_i
            self.T_i *= self.T_mult
        self.last_epoch = math.floor(epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        # The last digit is torch's, as in CosineAnnealingLR.
        weight = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * weight for base in self.base_lrs]
