"""The learning rate times a product of factors, one for each step so far.

value(count) = lr * lr_lambda(1) * lr_lambda(2) * ... * lr_lambda(count)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import as_float, is_number
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import result, schedule_factory
from functorch_optim.schedules.lambda_lr import check_function

BLOCK = 1024  # factors at a time


@schedule_factory
def multiplicative_lr(lr: Number, lr_lambda: Callable[[Any], Any]) -> Schedule:
    """`lr` times `lr_lambda(1) * ... * lr_lambda(count)` (torch's MultiplicativeLR).

    Every value is computed from the beginning: `count` factors, each rounded to float32 when
    traced. For a factor that never changes, `exponential_lr` is exact and takes no time.

    Args:
      lr: the value at count 0.
      lr_lambda: a function of the step count, which is traced inside jit. Reverse-mode derivatives
        with respect to what it closes over are not available there, forward-mode ones are.

    Raises:
      TypeError: lr_lambda is not a function.
    """
    checks.real(lr=lr)
    check_function(lr_lambda)

    def factor(step: Any) -> Any:
        return result("lr_lambda", lr_lambda(step))

    def product(count: Any) -> Any:
        def block(index: Any, so_far: Any) -> Any:
            before = index * BLOCK + jnp.arange(BLOCK, dtype=count.dtype)
            factors = jax.vmap(factor)(jnp.minimum(before, count - 1) + 1)
            return so_far * jnp.prod(jnp.where(before < count, factors, 1.0))

        blocks = count // BLOCK + jnp.minimum(count % BLOCK, 1)
        return jax.lax.fori_loop(0, blocks, block, as_float(jnp.ones(())))

    def schedule(count: Any) -> Any:
        if is_number(count):
            return lr * math.prod(factor(step) for step in range(1, int(count) + 1))
        return lr * jnp.vectorize(product)(count.astype(int))

    return schedule
