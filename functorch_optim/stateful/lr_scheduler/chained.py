"""Several schedulers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.lr_scheduler.composite import Composite
from functorch_optim.stateful.optimizer import Optimizer


class ChainedScheduler(Composite):
    """Steps each of its members, one after the other: their factors multiply.

    As a member of a SequentialLR it starts from `initial_lr` with each member's initial step, as
    if constructed there. (torch fails with NotImplementedError where such a member takes over, and
    gives a first one an ordinary step, which advances some of its members too far.)

    Args:
      schedulers: the members, at least one, in the order of their construction.
      optimizer: their optimizer; that of the first if not given.

    Raises:
      ValueError: no member, a ReduceLROnPlateau among them, or different optimizers.
      TypeError: a member that is no scheduler.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None):
        members = list(schedulers)
        if not members:
            raise ValueError(
                "ChainedScheduler expects at least one scheduler to be chained, but got no "
                "scheduler."
            )
        self._check(members, optimizer or getattr(members[0], "optimizer", None))
        self._schedulers = members
        self.optimizer = members[0].optimizer
        self._remember()

    def step(self) -> None:  # type: ignore[override]  # torch's takes no epoch either
        """Advances every member by one epoch."""
        with self._unchanged_on_error():
            for scheduler in self._schedulers:
                scheduler.step()
            self._remember()

    def _described(self) -> dict[str, Any]:
        return {"schedulers": self._schedulers}

    def _begin(self) -> None:
        for scheduler in self._schedulers:
            scheduler._begin()
        self._remember()

    def _undo(self) -> None:
        for scheduler in self._schedulers:
            scheduler._undo()

    def _restart(self) -> None:
        self._reset_rates()
        self._begin()
