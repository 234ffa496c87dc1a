"""Once up and once down, over a whole training."""

from __future__ import annotations

import math
from typing import Any

from functorch_optim.core import checks
from functorch_optim.schedules import annealing
from functorch_optim.stateful.lr_scheduler.base import Group, checked_optimizer
from functorch_optim.stateful.lr_scheduler.group_values import per_group
from functorch_optim.stateful.lr_scheduler.momentum import CyclesMomentum
from functorch_optim.stateful.optimizer import Optimizer

Phase = dict[str, Any]


class OneCycleLR(CyclesMomentum):
    """Raises the learning rate to `max_lr` and lowers it to far below its start.

    Smith, Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates", 2018. To be stepped after every batch. The bounds are kept in the groups: `initial_lr`
    (overwritten if there is one), `max_lr`, `min_lr`, `max_momentum` and `base_momentum`.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      max_lr: the highest learning rate, or a list of one for each group.
      total_steps: the number of steps of the training; or give epochs and steps_per_epoch. A step
        more than these raises ValueError; the first that is too many does not, and the learning
        rate is on its way up again then (as in torch).
      epochs: the number of epochs.
      steps_per_epoch: the number of steps in one.
      pct_start: the part of the steps on which the learning rate rises, a float.
      anneal_strategy: "cos" or "linear".
      cycle_momentum: whether momentum (or the first beta) goes down while the learning rate goes
        up.
      base_momentum: its lower bound, or a list of one for each group.
      max_momentum: its upper bound, or a list of one for each group.
      div_factor: `initial_lr = max_lr / div_factor`.
      final_div_factor: `min_lr = initial_lr / final_div_factor`.
      three_phase: go down to `initial_lr` as fast as up, and then on to `min_lr`; else go down in
        one.
      last_epoch: the step to go on from; -1 starts anew.

    Raises:
      ValueError: numbers of steps that are not positive integers or not given, pct_start that is
        not a float in [0, 1], an unknown strategy, a list of another length, or no momentum to
        cycle.
      TypeError: as LRScheduler.
      KeyError: last_epoch is not -1 and a group lacks what an earlier construction stores in it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        checked_optimizer(optimizer)
        self.total_steps = _total(total_steps, epochs, steps_per_epoch)
        if not isinstance(pct_start, float) or pct_start < 0 or pct_start > 1:
            raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        checks.flag("three_phase", three_phase)
        self._schedule_phases = _phases(self.total_steps, pct_start, three_phase)
        self._anneal_func_type = checked_strategy(anneal_strategy)
        checks.real(div_factor=div_factor, final_div_factor=final_div_factor)
        tops = per_group("max_lr", max_lr, optimizer)
        starts = [top / div_factor for top in tops]
        ends = [start / final_div_factor for start in starts]
        self._bounds = {"initial_lr": starts, "max_lr": tops, "min_lr": ends}
        self._choose_momentum(optimizer, cycle_momentum)
        if cycle_momentum:
            self._bounds["max_momentum"] = per_group("max_momentum", max_momentum, optimizer)
            self._bounds["base_momentum"] = per_group("base_momentum", base_momentum, optimizer)
        super().__init__(optimizer, last_epoch)

    def _prepare(self, groups: list[Group], anew: bool) -> None:
        bounds = self.__dict__.pop("_bounds")  # they are the groups' from here on
        for name, values in bounds.items() if anew else ():
            for group, value in zip(groups, values, strict=True):
                group[name] = value

    def _rates(self, current: list[Any]) -> list[Any]:
        return self._between("start_lr", "end_lr")

    def _momenta(self) -> list[Any]:
        return self._between("start_momentum", "end_momentum")

    def _described(self) -> dict[str, Any]:
        tops = [group.get("max_lr") for group in self.optimizer.param_groups]
        strategy = {"anneal_strategy": self._anneal_func_type}
        return {"max_lr": tops} | super()._described() | strategy

    def _between(self, first: str, last: str) -> list[Any]:
        step = self.last_epoch
        if step > self.total_steps:
            raise ValueError(
                f"Tried to step {step} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        begin = 0.0
        for phase in self._schedule_phases:
            if step <= phase["end_step"] or phase is self._schedule_phases[-1]:
                break
            begin = phase["end_step"]
        done = (step - begin) / (phase["end_step"] - begin)
        groups = self.optimizer.param_groups
        weight = anneal(self._anneal_func_type, done)
        return [
            group[phase[first]] + (group[phase[last]] - group[phase[first]]) * weight
            for group in groups
        ]


def checked_strategy(strategy: str) -> str:
    """An anneal_strategy.

    Raises:
      ValueError: it is neither "cos" nor "linear".
    """
    annealing.strategy(strategy)
    return strategy


def anneal(strategy: str, done: float) -> float:
    """How far a value has gone from its start (0) to its end (1), after a part of the way.

    The last digit is torch's; the schedules weigh both ends, accurate in float32 too.
    """
    return (1 - math.cos(math.pi * done)) / 2 if strategy == "cos" else done


def _total(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return _positive("total_steps", total_steps)
    if epochs is None or steps_per_epoch is None:
        raise ValueError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    return _positive("epochs", epochs) * _positive("steps_per_epoch", steps_per_epoch)


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"Expected positive integer {name}, but got {value}")
    return value


def _phases(total: int, pct_start: float, three: bool) -> list[Phase]:
    """torch's, which are part of the saved state: the bounds by their names in the groups."""
    turn = float(pct_start * total) - 1
    up = _phase(turn, "initial_lr max_lr max_momentum base_momentum")
    if not three:
        return [up, _phase(total - 1, "max_lr min_lr base_momentum max_momentum")]
    return [
        up,
        _phase(float(2 * pct_start * total) - 2, "max_lr initial_lr base_momentum max_momentum"),
        _phase(total - 1, "initial_lr min_lr max_momentum max_momentum"),
    ]


def _phase(end_step: float, bounds: str) -> Phase:
    names = ("start_lr", "end_lr", "start_momentum", "end_momentum")
    return {"end_step": end_step, **dict(zip(names, bounds.split(), strict=True))}
