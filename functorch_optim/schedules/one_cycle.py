"""One cycle: up to a maximum, then down to almost nothing.

    count           0 ... pct_start * total_steps - 1 ... total_steps - 1
    learning rate   max_lr / div_factor -> max_lr -> max_lr / div_factor / final_div_factor
    momentum        max_momentum -> base_momentum -> max_momentum

With three phases the way down takes as long as the way up and ends where that began, and the rest
of the steps lead to the minimum (the momentum rests). Each arrow is half a cosine, or a line.

Smith, Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
Rates", 2018. The three phases are the paper's.
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import as_float, at_least, is_number, subtract, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import strategy
from functorch_optim.schedules.factory import check_length, is_array, schedule_factory


@schedule_factory
def one_cycle_lr(
    max_lr: Number,
    total_steps: Number | None = None,
    epochs: Number | None = None,
    steps_per_epoch: Number | None = None,
    pct_start: Number = 0.3,
    anneal_strategy: str = "cos",
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """The learning rate of torch's OneCycleLR.

    As in torch, count `total_steps` is one more than the cycle has, and goes on along the last
    curve. A traced count beyond that, which cannot raise, has the value of the cycle's end.

    Args:
      max_lr: the highest value.
      total_steps: the length of the cycle, an integer of at least 1.
      epochs: with steps_per_epoch, another way to say total_steps.
      steps_per_epoch: the steps in an epoch.
      pct_start: the part of the cycle that is spent on the way up, a float in [0, 1].
      anneal_strategy: "cos" or "linear".
      div_factor: the first value is `max_lr / div_factor`.
      final_div_factor: the last value is the first one divided by this.
      three_phase: down to the first value at the speed of the way up, then to the last.

    Raises:
      ValueError: a length is missing or is not a positive integer, pct_start is not a float in
        [0, 1] or anneal_strategy is unknown; and, when the schedule is called, a number above
        total_steps.
    """
    checks.real(max_lr=max_lr, div_factor=div_factor, final_div_factor=final_div_factor)
    first = max_lr / div_factor
    values = (first, max_lr, *((first,) if three_phase else ()), first / final_div_factor)
    total = _total(total_steps, epochs, steps_per_epoch)
    return _phases(values, total, pct_start, anneal_strategy, three_phase)


@schedule_factory
def one_cycle_momentum(
    total_steps: Number | None = None,
    epochs: Number | None = None,
    steps_per_epoch: Number | None = None,
    pct_start: Number = 0.3,
    anneal_strategy: str = "cos",
    base_momentum: Number = 0.85,
    max_momentum: Number = 0.95,
    three_phase: bool = False,
) -> Schedule:
    """The momentum of torch's OneCycleLR: lowest where the learning rate is highest.

    For `momentum` of SGD, or as the first of Adam's `betas`.

    Args:
      total_steps: as in `one_cycle_lr`.
      epochs: as in `one_cycle_lr`.
      steps_per_epoch: as in `one_cycle_lr`.
      pct_start: as in `one_cycle_lr`.
      anneal_strategy: as in `one_cycle_lr`.
      base_momentum: the lowest value.
      max_momentum: the first value and the last.
      three_phase: as in `one_cycle_lr`.

    Raises:
      ValueError: as in `one_cycle_lr`.
    """
    checks.real(base_momentum=base_momentum, max_momentum=max_momentum)
    rest = (max_momentum,) * (2 if three_phase else 1)
    total = _total(total_steps, epochs, steps_per_epoch)
    values = (max_momentum, base_momentum, *rest)
    return _phases(values, total, pct_start, anneal_strategy, three_phase)


def _total(total_steps: Any, epochs: Any, steps_per_epoch: Any) -> Any:
    if total_steps is not None:
        check_length("total_steps", total_steps)
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ValueError("You must define either total_steps OR (epochs AND steps_per_epoch)")
    check_length("epochs", epochs)
    check_length("steps_per_epoch", steps_per_epoch)
    return epochs * steps_per_epoch


def _phases(
    values: tuple[Any, ...], total: Any, pct_start: Any, anneal_strategy: str, three_phase: bool
) -> Schedule:
    """Through the values, one after the other."""
    checks.flag("three_phase", three_phase)
    if is_array(pct_start):
        checks.real(pct_start=pct_start)
    elif not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
        raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
    anneal = strategy(anneal_strategy)
    steps_up = pct_start * as_float(total)
    middle = (2 * steps_up - 2,) if three_phase else ()
    bounds = (0, steps_up - 1, *middle, subtract(total, 1))
    phases = list(zip(bounds, bounds[1:], values, values[1:], strict=False))

    def schedule(count: Any) -> Any:
        if is_number(count) and is_number(total) and count > total:
            raise ValueError(
                f"Tried to step {count} times. The specified number of total steps is {total}"
            )
        value: Any = None
        for begin, end, start, goal in reversed(phases):
            here = anneal(start, goal, subtract(count, begin), subtract(end, begin))
            value = here if value is None else where(at_least(end, count), here, value)
        return where(at_least(total, count), value, values[-1])

    return schedule
