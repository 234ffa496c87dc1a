"""To the learning rate of stochastic weight averaging, where it stays.

    done = min(count, anneal_epochs) / anneal_epochs
    value(count) = swa_lr + (lr - swa_lr) * (1 + cos(pi * done)) / 2    (or along a line)

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
"""

from __future__ import annotations

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import minimum
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import strategy
from functorch_optim.schedules.factory import is_array, schedule_factory


@schedule_factory
def swa_lr(
    lr: Number, swa_lr: Number, anneal_epochs: Number = 10, anneal_strategy: str = "cos"
) -> Schedule:
    """From `lr` to `swa_lr` in `anneal_epochs` steps (torch's SWALR).

    torch's scheduler starts from whatever another one left behind. Say that with
    `sequential_lr([main, swa_lr(main(start), 0.05)], [start])`.

    Args:
      lr: the value at count 0.
      swa_lr: the value from count `anneal_epochs` on.
      anneal_epochs: the length of the way in steps, an integer of at least 0.
      anneal_strategy: "cos" or "linear".

    Raises:
      ValueError: anneal_epochs is not a non-negative integer, or anneal_strategy is unknown.
    """
    checks.real(lr=lr, swa_lr=swa_lr)
    anneal = strategy(anneal_strategy)
    if is_array(anneal_epochs):
        checks.real(anneal_epochs=anneal_epochs)
    elif not isinstance(anneal_epochs, int) or anneal_epochs < 0:
        raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
    return lambda count: anneal(lr, swa_lr, minimum(count, anneal_epochs), anneal_epochs)
