"""To the learning rate of stochastic weight averaging, where it stays."""

from __future__ import annotations

from typing import Any

from functorch_optim.stateful.lr_scheduler.base import Group, LRScheduler, checked_optimizer
from functorch_optim.stateful.lr_scheduler.group_values import per_group
from functorch_optim.stateful.lr_scheduler.one_cycle import anneal, checked_strategy
from functorch_optim.stateful.optimizer import Optimizer


class SWALR(LRScheduler):
    """Anneals the learning rate to `swa_lr` and keeps it there.

    It goes on from the current learning rate, so that it combines with a scheduler before it.

    Resuming with `last_epoch` goes on with the annealing (torch begins a new one there, from the
    learning rate that it finds).

    Args:
      optimizer: the optimizer whose groups are adjusted; each keeps its `swa_lr`.
      swa_lr: the learning rate to go to, or a list of one for each group.
      anneal_epochs: the number of epochs it takes.
      anneal_strategy: "cos" or "linear".
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: a list of another length, an unknown strategy, or anneal_epochs that is no
        integer from 0 on.
      TypeError, KeyError: as LRScheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ):
        targets = per_group("swa_lr", swa_lr, checked_optimizer(optimizer))
        self._anneal_strategy = checked_strategy(anneal_strategy)
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        self.anneal_epochs = anneal_epochs
        self._targets = targets
        super().__init__(optimizer, last_epoch)

    def _prepare(self, groups: list[Group], anew: bool) -> None:
        # On resuming too: the groups of a checkpoint may have others.
        for group, target in zip(groups, self.__dict__.pop("_targets"), strict=True):
            group["swa_lr"] = target

    def _rates(self, current: list[Any]) -> list[Any]:
        if self._is_initial and self.last_epoch > 0:
            self._step_count = self.last_epoch + 1  # as if it had made the steps itself
            return current
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._alpha(step - 1), self._alpha(step)
        targets = [group["swa_lr"] for group in self.optimizer.param_groups]
        if before == 1:
            return targets
        # What the learning rate is annealed from, found in the current one.
        starts = [
            (lr - before * target) / (1 - before)
            for lr, target in zip(current, targets, strict=True)
        ]
        return [
            target * now + start * (1 - now) for start, target in zip(starts, targets, strict=True)
        ]

    def _described(self) -> dict[str, Any]:
        targets = [group.get("swa_lr") for group in self.optimizer.param_groups]
        strategy = {"anneal_strategy": self._anneal_strategy}
        return {"swa_lr": targets} | super()._described() | strategy

    def _alpha(self, step: int) -> float:
        return anneal(self._anneal_strategy, max(0, min(1, step / max(1, self.anneal_epochs))))
