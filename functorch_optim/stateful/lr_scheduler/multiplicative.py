"""The learning rate times a function of the epoch, at each step."""

from __future__ import annotations

from typing import Any

from functorch_optim.stateful.lr_scheduler.lambda_lr import ByFunctions, EpochFunction


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

    def _functions(self, given: Any, count: int) -> list[EpochFunction]:
        functions = super()._functions(given, count)
        for function in functions:
            if not callable(function):
                raise TypeError(
                    f"lr_lambda should be a function, but got {type(function).__name__}"
                )
        return functions

    def _rates(self, current: list[Any]) -> list[Any]:
        if self._is_initial:
            return current
        pairs = zip(self.lr_lambdas, current, strict=True)
        return [lr * function(self.last_epoch) for function, lr in pairs]
