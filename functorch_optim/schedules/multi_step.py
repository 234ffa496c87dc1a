"""A stair that falls at given counts.

value(count) = lr * gamma ** (the number of milestones at or below count)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import at_least, power, where
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import points, schedule_factory


@schedule_factory
def multi_step_lr(
    lr: Number, milestones: Sequence[Number] | jax.Array, gamma: Number = 0.1
) -> Schedule:
    """`lr`, multiplied by `gamma` at each milestone (torch's MultiStepLR).

    Args:
      lr: the value at count 0.
      milestones: counts in any order, or an array of them; one that is there twice counts twice.
      gamma: the factor.
    """
    checks.real(lr=lr, gamma=gamma)
    milestones = points("milestones", milestones)
    return lambda count: lr * factor_at(count, milestones, gamma)


def factor_at(count: Any, milestones: Iterable[Any], gamma: Any) -> Any:
    """What the learning rate is multiplied by at a count."""
    passed = sum(where(at_least(count, milestone), 1, 0) for milestone in milestones)
    return power(gamma, passed)
