"""Multiplication by a constant at given epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from functorch_optim.core import checks
from functorch_optim.schedules.factory import points
from functorch_optim.schedules.multi_step import factor_at
from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.optimizer import Optimizer


class MultiStepLR(LRScheduler):
    """Multiplies the learning rate by `gamma` at each milestone.

    Resuming with `last_epoch` at a milestone keeps the learning rate, which has been multiplied
    already (torch multiplies it once more).

    Args:
      optimizer: the optimizer whose groups are adjusted.
      milestones: epochs. One that is given twice multiplies twice.
      gamma: the factor.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      TypeError: milestones is not iterable, or an argument is no number; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ):
        checks.real(gamma=gamma)
        self.milestones = Counter(points("milestones", milestones))
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _rates(self, current: list[Any]) -> list[Any]:
        resumes = self._is_initial and self.last_epoch > 0
        if resumes or self.last_epoch not in self.milestones:
            return current
        factor = self.gamma ** self.milestones[self.last_epoch]
        return [lr * factor for lr in current]

    def _described(self) -> dict[str, Any]:
        return super()._described() | {"milestones": sorted(self.milestones.elements())}

    def _get_closed_form_lr(self) -> list[Any]:
        factor = factor_at(self.last_epoch, self.milestones.elements(), self.gamma)
        return [base * factor for base in self.base_lrs]
