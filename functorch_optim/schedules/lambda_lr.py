"""The learning rate times any function of the step count.

value(count) = lr * lr_lambda(count)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import result, schedule_factory


@schedule_factory
def lambda_lr(lr: Number, lr_lambda: Callable[[Any], Any]) -> Schedule:
    """`lr * lr_lambda(count)` (torch's LambdaLR).

    Args:
      lr: what the function's value multiplies.
      lr_lambda: a function of the step count. Inside jit the count is traced: use `jnp.where`
        there, not `if`.

    Raises:
      TypeError: lr_lambda is not a function, or returns something else than a number or an array.
    """
    checks.real(lr=lr)
    check_function(lr_lambda)
    return lambda count: lr * result("lr_lambda", lr_lambda(count))


def check_function(lr_lambda: Any) -> None:
    """Raises torch's TypeError for what cannot be called."""
    if not callable(lr_lambda):
        raise TypeError(f"lr_lambda should be a function, but got {type(lr_lambda).__name__}")
