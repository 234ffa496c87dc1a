"""What the schedulers share that step other schedulers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.lr_scheduler.plateau import ReduceLROnPlateau


class Composite(LRScheduler):
    """Members of one optimizer, which are saved and loaded with it."""

    _schedulers: list[LRScheduler]
    _unsaved = ("optimizer", "_schedulers")

    def state_dict(self) -> dict[str, Any]:
        """The state of its own, and "_schedulers": a list with that of each member."""
        return super().state_dict() | {"_schedulers": [s.state_dict() for s in self._schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a `state_dict()`, of this library or of torch, which stays as it is.

        Raises:
          KeyError: there is no "_schedulers".
          ValueError: it has another number of members. Nothing is changed then.
        """
        saved = list(state_dict["_schedulers"])
        if len(saved) != len(self._schedulers):
            raise ValueError(
                f"loaded state dict has {len(saved)} schedulers, but this {type(self).__name__} "
                f"has {len(self._schedulers)}"
            )
        with self._unchanged_on_error():
            super().load_state_dict(state_dict)
            for scheduler, state in zip(self._schedulers, saved, strict=True):
                scheduler.load_state_dict(state)

    def _everyone(self) -> Iterator[LRScheduler]:
        yield self
        for scheduler in getattr(self, "_schedulers", ()):
            yield from scheduler._everyone()

    def _check(self, schedulers: Sequence[Any], optimizer: Any) -> None:
        """Refuses members that cannot be stepped together.

        Raises:
          TypeError: one is no scheduler.
          ValueError: one needs a metric, or has another optimizer.
        """
        name = type(self).__name__
        for index, scheduler in enumerate(schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(
                    f"{name} at index {index} should have `optimizer` as its attribute."
                )
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{name} does not support `ReduceLROnPlateau` scheduler as it requires "
                    "additional kwargs to be specified when calling `step`, but got one at index "
                    f"{index} in the given schedulers sequence."
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    f"{name} expects all schedulers to belong to the same optimizer, but got "
                    f"scheduler {type(scheduler).__name__} at index {index} has "
                    f"{scheduler.optimizer}, which is different from {type(optimizer).__name__}."
                )

    def _reset_rates(self) -> None:
        """Back to where the members started from."""
        self._assign([group["initial_lr"] for group in self.optimizer.param_groups])
