"""Several schedulers one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from functorch_optim.schedules.factory import points
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, check_last_epoch
from functorch_optim.stateful.lr_scheduler.composite import Composite
from functorch_optim.stateful.optimizer import Optimizer


class SequentialLR(Composite):
    """Steps one of its members at a time; each milestone brings the next, at its epoch 0.

    At a milestone a scheduler with a closed form starts from its starting rate; one without
    (MultiplicativeLR) goes on from the current one.

    A SequentialLR among the members is as if its members were listed in its place (torch fails
    with NotImplementedError where it takes over, and advances a first one twice). A
    ChainedScheduler among them starts as at its construction.

    Args:
      optimizer: the members' optimizer.
      schedulers: the members, at least one, in the order of their construction.
      milestones: the epochs at which the second, third, ... takes over, increasing.
      last_epoch: only a number to count on from; as in torch the first member starts anew.

    Raises:
      ValueError: no member, a ReduceLROnPlateau among them, different optimizers, or not one
        milestone fewer than members.
      TypeError: a member that is no scheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ):
        members, epochs = list(schedulers), list(points("milestones", milestones))
        check_last_epoch(last_epoch)
        if not members:
            raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
        self._check(members, optimizer)
        if len(members) != len(epochs) + 1:
            raise ValueError(
                "Sequential Schedulers expects number of schedulers provided to be one more than "
                f"the number of milestone points, but got number of schedulers {len(members)} and "
                f"the number of milestones to be equal to {len(epochs)}"
            )
        self._schedulers = members
        self._milestones = epochs
        self.last_epoch = last_epoch
        self.optimizer = optimizer
        with self._unchanged_on_error():
            self._reset_rates()
            for scheduler in members:  # what their constructions did
                scheduler._undo()
            self._begin()

    def step(self) -> None:  # type: ignore[override]  # torch's takes no epoch either
        """Advances the member whose turn it is by one epoch."""
        with self._unchanged_on_error():
            self.last_epoch += 1
            index = bisect_right(self._milestones, self.last_epoch)
            if index > 0 and self._milestones[index - 1] == self.last_epoch:
                self._schedulers[index]._restart()
            else:
                self._schedulers[index].step()
            self._remember()

    def _described(self) -> dict[str, Any]:
        return {
            "schedulers": self._schedulers,
            "milestones": self._milestones,
            "last_epoch": self.last_epoch,
        }

    def _first(self) -> LRScheduler:
        return self._schedulers[bisect_right(self._milestones, 0)]

    def _begin(self) -> None:
        self.last_epoch += 1
        self._first()._begin()
        self._remember()

    def _undo(self) -> None:
        self.last_epoch -= 1
        self._first()._undo()  # the others have not begun

    def _restart(self) -> None:
        self.last_epoch = 0
        self._first()._restart()
        self._remember()
