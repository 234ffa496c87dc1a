"""Less learning rate when a metric stops improving.

    an epoch is bad unless the metric is better than the best so far by more than the threshold
    after more than `patience` bad epochs in a row:  lr <- max(lr * factor, min_lr)
    and for `cooldown` epochs after that no epoch counts as bad

It depends on what was measured and not on the step count alone, so it is a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import at_least, float_dtype, is_number, maximum, where
from functorch_optim.core.counting import increment
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import Number, Scalar
from functorch_optim.core.recipe import Recorded


class PlateauState(NamedTuple):
    """What torch's ReduceLROnPlateau knows, under its names.

    Attributes:
      lr: the value now.
      best: the best metric so far.
      num_bad_epochs: bad epochs since the last good one, or since the cooldown.
      cooldown_counter: epochs of cooldown that are left.
      last_epoch: metrics seen so far.

    The counts are int32 and saturate at 2**31 - 1.
    """

    lr: Scalar
    best: Scalar
    num_bad_epochs: Scalar
    cooldown_counter: Scalar
    last_epoch: Scalar


class _Fields(NamedTuple):
    init: Callable[[], PlateauState]
    update: Callable[[Any, PlateauState], tuple[jax.Array, PlateauState]]


class Plateau(Recorded, _Fields):
    """A pure pair that follows a metric.

    Attributes:
      init: `init() -> state`.
      update: `update(metric, state) -> (lr, state)`, once for each epoch.
    """


@value_equal
def reduce_lr_on_plateau(
    lr: Number,
    mode: str = "min",
    factor: Number = 0.1,
    patience: Number = 10,
    threshold: Number = 1e-4,
    threshold_mode: str = "rel",
    cooldown: Number = 0,
    min_lr: Number = 0.0,
    eps: Number = 1e-8,
) -> Plateau:
    """A learning rate that falls when a metric stops improving (torch's ReduceLROnPlateau).

    Computed in the widest float in use. A metric that is NaN is bad.

    Args:
      lr: the first value.
      mode: "min" where a lower metric is better, "max" where a higher one is.
      factor: what the learning rate is multiplied by, less than 1.
      patience: bad epochs in a row that are let pass.
      threshold: by how much a metric must be better.
      threshold_mode: "rel", a part of the best metric, or "abs". As in torch, "rel" asks of a
        metric below 0 that it be a little worse, or better.
      cooldown: epochs after a fall during which no epoch counts as bad.
      min_lr: the lowest value.
      eps: a fall by no more than this is left out.

    Returns:
      A pair: `init() -> state`, `update(metric, state) -> (lr, state)`.

    Raises:
      ValueError: factor is not below 1, patience or cooldown is below 0, or a mode is unknown.
      TypeError: an argument that should be a number is none.
    """
    checks.real(lr=lr, min_lr=min_lr)
    check_limits(mode, factor, patience, threshold, threshold_mode, cooldown, eps)
    if is_number(cooldown):
        cooldown = min(cooldown, jnp.iinfo(jnp.int32).max)
    sign = 1 if mode == "max" else -1

    def init() -> PlateauState:
        best = jnp.asarray(-sign * jnp.inf, float_dtype())
        # Arrays of its own, so that the state can be donated.
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))
        return PlateauState(jnp.array(lr, float_dtype()), best, *counts)

    def update(metric: Any, state: PlateauState) -> tuple[jax.Array, PlateauState]:
        current = one_metric("metric", metric)
        margin = sign * jnp.asarray(threshold, float_dtype())
        bar = state.best * (1 + margin) if threshold_mode == "rel" else state.best + margin
        better = sign * current > sign * bar
        cooling = state.cooldown_counter > 0
        bad = jnp.where(better | cooling, 0, increment(state.num_bad_epochs))
        over = ~at_least(patience, bad)
        lower = maximum(state.lr * jnp.asarray(factor, float_dtype()), min_lr)
        falls = over & (state.lr - lower > jnp.asarray(eps, float_dtype()))
        cooled = jnp.where(cooling, state.cooldown_counter - 1, state.cooldown_counter)
        state = PlateauState(
            where(falls, lower, state.lr),
            where(better, current, state.best),
            jnp.where(over, 0, bad),
            jnp.where(over, jnp.asarray(cooldown, jnp.int32), cooled),
            increment(state.last_epoch),
        )
        return state.lr, state

    return Plateau(init, update)


def check_limits(
    mode: Any, factor: Any, patience: Any, threshold: Any, threshold_mode: Any, *others: Any
) -> None:
    """Checks what says when and how a learning rate falls; others are the cooldown and eps.

    Raises:
      TypeError: one is neither a number nor an array.
      ValueError: factor is not below 1, patience or cooldown is below 0, or a mode is unknown.
    """
    cooldown, eps = others
    checks.real(factor=factor, patience=patience, threshold=threshold, cooldown=cooldown, eps=eps)
    if is_number(factor) and factor >= 1.0:
        raise ValueError("Factor should be < 1.0.")
    checks.not_negative(patience=patience, cooldown=cooldown)
    if not isinstance(mode, str) or mode not in ("min", "max"):
        raise ValueError(f"mode {mode} is unknown!")
    if not isinstance(threshold_mode, str) or threshold_mode not in ("rel", "abs"):
        raise ValueError(f"threshold mode {threshold_mode} is unknown!")


def one_metric(name: str, value: Any) -> jax.Array:
    """A measured number, from an array of one element of any shape too.

    Raises:
      TypeError: it is no number. ValueError: it is an array of several.
    """
    if hasattr(value, "__array__") and not isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value)  # a Parameter, say
    checks.number_or_array(name, value)
    if np.size(value) != 1:
        raise ValueError(
            f"{name} should be one number, but got an array of shape {np.shape(value)}"
        )
    return jnp.asarray(value).astype(float_dtype()).reshape(())
