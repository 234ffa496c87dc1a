"""A scheduler of any pure schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.pair import Schedule
from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.optimizer import Optimizer


def from_schedule(
    optimizer: Optimizer,
    schedule: Schedule | Callable[..., Schedule],
    *args: Any,
    last_epoch: int = -1,
    **kwargs: Any,
) -> ScheduleLR:
    """Sets the learning rate of each group to the value of a schedule at `last_epoch`.

    `from_schedule(opt, fo.cosine_annealing_lr, T_max=50)` builds for each group
    `fo.cosine_annealing_lr(initial_lr, T_max=50)`. What is given may be

    - a factory with its arguments after the first, which is the group's `initial_lr`;
    - a factory of that one argument: `lambda lr: fo.warmup(fo.step_lr(lr, 30), 5)`;
    - a function of the step count, which all groups share: `fo.one_cycle_lr(0.1, 1000)`.

    The last two are told apart by a call with 0: a factory returns a function.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      schedule: a factory or a schedule.
      *args: the factory's arguments after the learning rate.
      last_epoch: the epoch to go on from; -1 starts anew.
      **kwargs: as args, by name.

    Returns:
      A scheduler like the others: it is stepped, saved, pickled, and a member of SequentialLR and
      ChainedScheduler. It sets the learning rate, and takes nothing over from the current one.

    Raises:
      TypeError: schedule is neither a factory nor a schedule, or the factory refuses its
        arguments; and as LRScheduler.
      ValueError: the factory refuses its arguments; and as LRScheduler.
      KeyError: as LRScheduler.
    """
    return ScheduleLR(optimizer, schedule, args, kwargs, last_epoch)


class ScheduleLR(LRScheduler):
    """What `from_schedule` returns.

    A group that is added later has a schedule of its own from the next step on, which it enters at
    the epoch of the others. (torch's schedulers of a closed form fail there.)

    Args:
      optimizer: the optimizer whose groups are adjusted.
      schedule: as in `from_schedule`.
      args: as there.
      kwargs: as there.
      last_epoch: as there.
    """

    # A schedule is not saved, as a function is not; it is built anew from the saved `base_lrs`.
    _unsaved = ("optimizer", "_schedule", "_args", "_kwargs", "_is_factory", "_by_group")

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule | Callable[..., Schedule],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        last_epoch: int = -1,
    ):
        checks.function("schedule", schedule, "the step count, or a factory of one")
        self._schedule = schedule
        self._args = tuple(args)
        self._kwargs = dict(kwargs or {})
        self._is_factory = bool(args or kwargs) or callable(schedule(0))
        self._by_group: list[Schedule] = []
        super().__init__(optimizer, last_epoch)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class, and builds the schedules from the saved `base_lrs`.

        Raises:
          ValueError: there are more of them than groups. Nothing is changed then.
        """
        saved, groups = state_dict.get("base_lrs", self.base_lrs), self.optimizer.param_groups
        if len(saved) > len(groups):
            raise ValueError(
                f"loaded state dict has {len(saved)} base_lrs, but the optimizer has "
                f"{len(groups)} param_groups"
            )
        with self._unchanged_on_error():
            super().load_state_dict(state_dict)
            self._by_group = [self._built(lr) for lr in self.base_lrs]

    def _rates(self, current: list[Any]) -> list[Any]:
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            group.setdefault("initial_lr", group["lr"])
        # New lists: an error leaves the old ones.
        added = [group["initial_lr"] for group in groups[len(self.base_lrs) :]]
        self.base_lrs = [*self.base_lrs, *added]
        lacking = self.base_lrs[len(self._by_group) :]
        self._by_group = [*self._by_group, *map(self._built, lacking)]
        return [
            checks.returned("schedule", schedule(self.last_epoch)) for schedule in self._by_group
        ]

    def _built(self, lr: Any) -> Schedule:
        if not self._is_factory:
            return self._schedule
        schedule = self._schedule(lr, *self._args, **self._kwargs)
        checks.function("what the schedule factory returns", schedule)
        return schedule

    def _described(self) -> dict[str, Any]:
        return {**self._kwargs, "last_epoch": self.last_epoch}

    def __repr__(self) -> str:
        name = getattr(self._schedule, "__name__", repr(self._schedule))
        words = [name if self._is_factory else repr(self._schedule), *map(repr, self._args)]
        words += [f"{key}={value!r}" for key, value in self._described().items()]
        return f"from_schedule({', '.join(words)})"
