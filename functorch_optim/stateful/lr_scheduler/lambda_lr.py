"""The starting learning rate times a function of the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, checked_optimizer
from functorch_optim.stateful.optimizer import Optimizer

EpochFunction = Callable[[int], Any]


class ByFunctions(LRScheduler):
    """One function of the epoch for each group. A callable object's attributes are saved."""

    _unsaved = ("optimizer", "lr_lambdas")

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: EpochFunction | Sequence[EpochFunction],
        last_epoch: int = -1,
    ):
        count = len(checked_optimizer(optimizer).param_groups)
        self.lr_lambdas = self._functions(lr_lambda, count)
        super().__init__(optimizer, last_epoch)

    def _functions(self, given: Any, count: int) -> list[EpochFunction]:
        if not isinstance(given, list | tuple):
            check_callable(given)
            return [given] * count
        _check_count(len(given), count)
        for function in given:
            check_callable(function)
        return list(given)

    def _factor(self, function: EpochFunction) -> Any:
        return checks.returned("lr_lambda", function(self.last_epoch))

    def _described(self) -> dict[str, Any]:
        return {"lr_lambda": self.lr_lambdas} | super()._described()

    def state_dict(self) -> dict[str, Any]:
        """As the base class, and "lr_lambdas": for each function its attributes.

        `None` for a plain function, and for a callable that has no attributes.
        """
        saved = [
            None if isinstance(f, FunctionType) or not hasattr(f, "__dict__") else dict(vars(f))
            for f in self.lr_lambdas
        ]
        return super().state_dict() | {"lr_lambdas": saved}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class, and gives callable objects their saved attributes.

        Raises:
          KeyError: there is no "lr_lambdas".
          ValueError: its length is not the number of groups. Nothing is changed then.
        """
        saved = list(state_dict["lr_lambdas"])
        _check_count(len(saved), len(self.lr_lambdas))
        super().load_state_dict(state_dict)
        for function, attributes in zip(self.lr_lambdas, saved, strict=True):
            if attributes is not None:
                function.__dict__.update(attributes)


def check_callable(function: Any) -> None:
    """Raises TypeError, in torch's words for each of the two classes."""
    if not callable(function):
        kind = type(function).__name__
        raise TypeError(
            f"lr_lambda should be a function, but got {kind}: '{kind}' object is not callable"
        )


def _check_count(given: int, wanted: int) -> None:
    if given != wanted:
        raise ValueError(f"Expected {wanted} lr_lambdas, but got {given}")


class LambdaLR(ByFunctions):
    """The starting learning rate times `lr_lambda(epoch)`.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      lr_lambda: a function of the epoch, or a list of one for each group. Pickling and saving a
        scheduler ask of it what they ask of any function: `state_dict` keeps the attributes of a
        callable object and nothing of a function. (torch cannot save a scheduler whose callable
        has no attributes, as `math.sqrt`.)
      last_epoch: the epoch to go on from; -1 starts anew.

    Raises:
      ValueError: not one function for each group.
      TypeError: a function that cannot be called; and as LRScheduler.
      KeyError: as LRScheduler.
    """

    def _rates(self, current: list[Any]) -> list[Any]:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * self._factor(function) for base, function in pairs]
