"""Triangles between two bounds.

    cycle = floor(count / (up + down)),  within = count mod (up + down)
    height = within / up             on the way up, within <= up
             (up + down - within) / down   on the way down
    value(count) = base + (top - base) * height * scale

where scale is 1 (triangular), 2**-cycle (triangular2) or gamma**count (exp_range).

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import (
    as_float,
    at_least,
    power,
    quotient,
    remainder,
    subtract,
    where,
)
from functorch_optim.core.pair import Number, Schedule
from functorch_optim.schedules.factory import is_array, result, schedule_factory

Scale = Callable[[Any], Any]


@schedule_factory
def cyclic_lr(
    base_lr: Number,
    max_lr: Number,
    step_size_up: Number = 2000,
    step_size_down: Number | None = None,
    mode: str = "triangular",
    gamma: Number = 1.0,
    scale_fn: Scale | None = None,
    scale_mode: str = "cycle",
) -> Schedule:
    """From `base_lr` up to `max_lr` and down again, forever (torch's CyclicLR).

    Args:
      base_lr: the lower bound, the value at count 0.
      max_lr: the upper bound, which later cycles reach only with scale 1.
      step_size_up: the steps on the way up, more than 0.
      step_size_down: the steps on the way down; None is as many.
      mode: "triangular", "triangular2" (half the height at each cycle) or "exp_range" (the height
        times `gamma ** count`). Unused with scale_fn.
      gamma: the base of "exp_range".
      scale_fn: gives the factor on the height, from the cycle (1, 2, ...) or from the count.
      scale_mode: which: "cycle" or "iterations".

    Raises:
      ValueError: mode is unknown and there is no scale_fn, or a step size is not above 0.
    """
    checks.real(base_lr=base_lr, max_lr=max_lr)
    return _triangles(
        base_lr, max_lr, step_size_up, step_size_down, _scale(mode, gamma, scale_fn, scale_mode)
    )


@schedule_factory
def cyclic_momentum(
    base_momentum: Number = 0.8,
    max_momentum: Number = 0.9,
    step_size_up: Number = 2000,
    step_size_down: Number | None = None,
    mode: str = "triangular",
    gamma: Number = 1.0,
    scale_fn: Scale | None = None,
    scale_mode: str = "cycle",
) -> Schedule:
    """The momentum of torch's CyclicLR: lowest where the learning rate of `cyclic_lr` is highest.

    For `momentum` of SGD, or as the first of Adam's `betas`.

    Args:
      base_momentum: the lower bound.
      max_momentum: the upper bound, the value at count 0.
      step_size_up: as in `cyclic_lr`: the steps on the way down, here.
      step_size_down: as in `cyclic_lr`.
      mode: as in `cyclic_lr`.
      gamma: as in `cyclic_lr`.
      scale_fn: as in `cyclic_lr`.
      scale_mode: as in `cyclic_lr`.

    Raises:
      ValueError: as in `cyclic_lr`.
    """
    checks.real(base_momentum=base_momentum, max_momentum=max_momentum)
    scale = _scale(mode, gamma, scale_fn, scale_mode)
    return _triangles(max_momentum, base_momentum, step_size_up, step_size_down, scale)


def _triangles(base: Any, top: Any, up: Any, down: Any, scale: Callable[..., Any]) -> Schedule:
    up = _step_size("step_size_up", up)
    down = up if down is None else _step_size("step_size_down", down)
    period = subtract(up, subtract(0, down))

    def schedule(count: Any) -> Any:
        within, cycle = remainder(count, period), quotient(count, period)
        rising = as_float(within) / as_float(up)
        falling = as_float(subtract(period, within)) / as_float(down)
        height = where(at_least(up, within), rising, falling)
        return base + (top - base) * (height * scale(count, cycle))

    return schedule


def _step_size(name: str, size: Any) -> Any:
    """The size, whole if it can be: whole numbers are exact at any count."""
    if is_array(size):
        checks.real(**{name: size})
        return size
    if not isinstance(size, float | int) or not 0 < size < math.inf:
        raise ValueError(f"Expected positive {name}, but got {size}")
    return int(size) if size == int(size) else size


def _scale(mode: str, gamma: Any, scale_fn: Scale | None, scale_mode: str) -> Callable[..., Any]:
    checks.real(gamma=gamma)
    if not isinstance(scale_mode, str) or scale_mode not in ("cycle", "iterations"):
        raise ValueError(f'scale_mode should be "cycle" or "iterations", but got {scale_mode!r}')
    if scale_fn is not None:
        checks.function("scale_fn", scale_fn)
        if scale_mode == "cycle":
            return lambda count, cycle: result("scale_fn", scale_fn(cycle + 1))
        return lambda count, cycle: result("scale_fn", scale_fn(count))
    scales: dict[str, Callable[..., Any]] = {
        "triangular": lambda count, cycle: 1.0,
        "triangular2": lambda count, cycle: power(0.5, cycle),
        "exp_range": lambda count, cycle: power(gamma, count),
    }
    if not isinstance(mode, str) or mode not in scales:
        raise ValueError("mode is invalid and scale_fn is None")
    return scales[mode]
