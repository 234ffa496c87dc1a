"""The learning rate times a function of the epoch, at each step."""

from __future__ import annotations

from typing import Any

from functorch_optim.stateful.lr_scheduler.lambda_lr import ByFunctions


class MultiplicativeLR(ByFunctions):
    """The learning rate times `lr_lambda(epoch)` at each step.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      lr_lambda: a function of the epoch, or a list of one for each group.
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: not one function for each group.
      TypeError: what should be a function cannot be called; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def _rates(self, current: list[Any]) -> list[Any]:
        if self._is_initial:
            return current
        pairs = zip(self.lr_lambdas, current, strict=True)
        return [lr * self._factor(function) for function, lr in pairs]
