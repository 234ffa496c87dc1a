"""Half cosines that start over, each longer than the one before.

    value(count) = eta_min + (lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2

where cycle i is T_i = T_0 * T_mult**i steps long and T_cur counts the steps since it began.

Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import align, as_float, float_dtype, is_number, remainder
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.annealing import along_cosine
from functorch_optim.schedules.factory import FOREVER, check_length, is_array, schedule_factory


@schedule_factory
def cosine_annealing_warm_restarts(
    lr: Number, T_0: Number, T_mult: Number = 1, eta_min: Number = 0.0
) -> Schedule:
    """`lr` falls to `eta_min` again and again (torch's CosineAnnealingWarmRestarts).

    Args:
      lr: the value at the beginning of each cycle.
      T_0: the length of the first cycle in steps, an integer of at least 1.
      T_mult: how many times longer each cycle is than the one before, an integer of at least 1.
      eta_min: what a cycle falls to. It starts over just before it gets there.

    Returns:
      A function of the step count, or of a float epoch with T_0 in epochs.

    Raises:
      ValueError: T_0 or T_mult is not a positive integer or eta_min is not a number; and, when the
        schedule is called, a number below 0.
    """
    checks.real(lr=lr)
    check_length("T_0", T_0)
    if is_array(T_mult):
        checks.real(T_mult=T_mult)
    elif not isinstance(T_mult, int) or T_mult < 1:
        raise ValueError(f"Expected integer T_mult >= 1, but got {T_mult}")
    if not is_array(eta_min) and not isinstance(eta_min, float | int):
        raise ValueError(
            f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}"
        )
    checks.real(eta_min=eta_min)

    def schedule(count: Any) -> Any:
        if is_number(count) and count < 0:
            raise ValueError(f"Expected non-negative epoch, but got {count}")
        return along_cosine(lr, eta_min, *_place_in_cycle(count, T_0, T_mult))

    return schedule


def _place_in_cycle(count: Any, first: Any, factor: Any) -> tuple[Any, Any]:
    """The steps since the cycle began, and the length of the cycle."""
    count, first, factor = align(count, first, factor)
    if is_number(factor) and factor == 1:
        return remainder(count, first), first
    if all(is_number(x) for x in (count, first, factor)):
        while count >= first:
            count, first = count - first, first * factor
        return count, first
    dtype = jnp.result_type(*(x for x in (count, first, factor) if is_array(x)))
    by_numbers = is_number(first) and is_number(factor)
    if jnp.issubdtype(dtype, jnp.integer) and not by_numbers:
        plain = [x for x in (count, first, factor) if is_number(x)]
        if any(x > jnp.iinfo(dtype).max for x in plain):
            dtype = float_dtype()  # beside an array, a number that its integers do not reach
    whole = jnp.issubdtype(dtype, jnp.integer)
    longest = jnp.iinfo(dtype).max if whole else 2.0**62
    count = jnp.asarray(count, dtype)
    if by_numbers:
        table = _table_of_numbers(first, factor, longest)
    else:
        first, factor = jnp.asarray(first, dtype), jnp.asarray(factor, dtype)
        # Cycles of one length are done with here; of others, few begin in any count.
        count = jnp.where(factor == 1, count % first, count)
        table = _table_of_arrays(first, factor, longest)
    begins, lengths = jnp.asarray(table[0], dtype), jnp.asarray(table[1], float_dtype())
    cycle = jnp.searchsorted(begins, count, side="right", method="compare_all") - 1
    return count - begins[cycle], lengths[cycle]


def _table_of_numbers(first: Any, factor: Any, longest: Any) -> tuple[Any, Any]:
    """Where each cycle begins, up to `longest`, and how long it is."""
    begins, lengths = [0], [first]
    while begins[-1] + lengths[-1] <= longest:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(min(lengths[-1] * factor, FOREVER))
    return begins, list(map(float, lengths))


def _table_of_arrays(first: Any, factor: Any, longest: Any) -> tuple[Any, Any]:
    """The same; what is beyond `longest`, as it cannot be counted, is put there."""

    def following(cycle: Any, _: None) -> tuple[Any, Any]:
        begin, length, width = cycle
        next_begin = jnp.where(length <= longest - begin, begin + length, longest)
        next_length = jnp.where(length <= longest // factor, length * factor, longest)
        return (next_begin, next_length, width * as_float(factor)), (begin, width)

    start = jnp.zeros_like(first), first, as_float(first)
    _, table = jax.lax.scan(following, start, length=64 if longest > 2**31 else 32)
    return table
