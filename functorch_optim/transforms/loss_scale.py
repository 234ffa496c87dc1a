"""A loss scale that follows the range of the gradients, by the rules of torch.amp.GradScaler.

    not finite:  the step is skipped;  scale <- scale * backoff_factor
    finite:      the step is taken with g * (1 / scale);  after growth_interval of them in a row
                 scale <- scale * growth_factor
    always:      min_scale <= scale <= max_scale

Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import as_float, is_number
from functorch_optim.core.counting import increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Number,
    Pair,
    Params,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.transforms.nonfinite import all_finite
from functorch_optim.transforms.support.wrapping import update_if


class LossScaleState(NamedTuple):
    """The scale (float32), finite steps since it changed (int32), and the inner state.

    The count saturates at 2**31 - 1.
    """

    scale: Scalar
    growth_tracker: Scalar
    inner_state: State


@value_equal
def dynamic_loss_scale(
    tx: Pair,
    init_scale: Number = 2.0**16,
    growth_factor: Number = 2.0,
    backoff_factor: Number = 0.5,
    growth_interval: int | jax.Array = 2000,
    min_scale: Number | None = None,
    max_scale: Number = 2.0**127,
) -> GradientTransformation:
    """Takes the gradients of a scaled loss: those of `loss * state.scale`.

    Small float16 gradients become 0 unless the loss is scaled up, and too large a scale makes them
    infinite. `update` multiplies the gradients by 1 / scale, in float32 at least, which is what the
    inner pair sees; it skips the step as a whole when any of them is not finite, and adapts the
    scale.

    Args:
      tx: the inner pair; `master_weights(...)` for float16 parameters.
      init_scale: the first scale.
      growth_factor: what the scale is multiplied by after `growth_interval` steps in a row with
        finite gradients; above 1.
      backoff_factor: what it is multiplied by after a step without; above 0 and below 1.
      growth_interval: steps; a whole number.
      min_scale: the scale does not fall below it, however many steps in a row are skipped. (torch's
        scale falls to 0 after 165 of them, and the next step is NaN.) Default: `None`, 2**-24, the
        smallest number of float16, or init_scale if that is smaller.
      max_scale: it does not rise above it. Default: 2**127, the largest power of 2 in float32.

    Returns:
      A pair whose state is `LossScaleState`.

    Raises:
      AssertionError: a factor that torch refuses, in torch's words. TypeError: tx is not a pair, or
        an argument is not a number or an array. ValueError: a number is out of its range: the
        scales are above 0 and finite in float32, with min_scale <= init_scale <= max_scale.
    """
    inner = member(tx, "the transform of dynamic_loss_scale")
    checks.number("growth_factor", growth_factor)
    checks.number("backoff_factor", backoff_factor, above=0.0)
    if is_number(growth_factor) and growth_factor <= 1.0:
        raise AssertionError("The growth factor must be > 1.0.")
    if is_number(backoff_factor) and backoff_factor >= 1.0:
        raise AssertionError("The backoff factor must be < 1.0.")
    checks.number("growth_interval", growth_interval)
    checks.length("growth_interval", growth_interval)
    _check_limits(min_scale, init_scale, max_scale)
    inner_update = update_if(inner, guards=True, prepare=_unscaled)

    @abstract_aware
    def init(params: Params) -> LossScaleState:
        scale = jnp.array(init_scale, jnp.float32).reshape(())
        return LossScaleState(scale, jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        grads: Updates, state: LossScaleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LossScaleState]:
        checks.state("dynamic_loss_scale", LossScaleState, state)
        checks.scalars("dynamic_loss_scale", state, "scale", "growth_tracker")
        now = jnp.asarray(state.scale, jnp.float32)
        finite = all_finite(grads)
        updates, inner_state = inner_update(finite, grads, state.inner_state, params, extra, now)
        tracker = jnp.where(finite, increment(state.growth_tracker), 0)
        grown = tracker >= jnp.asarray(growth_interval, jnp.int32).reshape(())
        larger = jnp.where(grown, _product(now, growth_factor), now)
        scale = jnp.where(finite, larger, _product(now, backoff_factor))
        first, largest = (jnp.asarray(x, jnp.float32).reshape(()) for x in (init_scale, max_scale))
        lowest = jnp.minimum(first, 2.0**-24) if min_scale is None else min_scale
        smallest = jnp.asarray(lowest, jnp.float32).reshape(())
        scale = jnp.clip(scale, smallest, largest)
        return updates, LossScaleState(scale, jnp.where(grown, 0, tracker), inner_state)

    return GradientTransformation(init, update)


def _check_limits(min_scale: Number | None, init_scale: Number, max_scale: Number) -> None:
    limits: dict[str, Any] = {"init_scale": init_scale, "max_scale": max_scale}
    if min_scale is not None:
        limits = {"min_scale": min_scale, **limits}
    largest = float(jnp.finfo(jnp.float32).max)
    for name, value in limits.items():
        checks.number(name, value, least=float(jnp.finfo(jnp.float32).tiny), most=largest)
    known = {name: value for name, value in limits.items() if is_number(value)}
    if list(known.values()) != sorted(known.values()):
        values = ", ".join(f"{name}={value}" for name, value in known.items())
        raise ValueError(
            f"dynamic_loss_scale: min_scale <= init_scale <= max_scale is needed, but got {values}"
        )


def _unscaled(grads: Updates, scale: jax.Array) -> Updates:
    return trees.map_updates(lambda g: _unscaled_leaf(g, scale), grads)


def _unscaled_leaf(g: Any, scale: jax.Array) -> jax.Array:
    # The reciprocal of a scale above 2**126 is subnormal, which XLA takes for 0 on some devices: it
    # is applied in two parts, the first of them exact.
    g = jnp.asarray(g)
    dtype = real_dtype(g.dtype)
    first = jnp.where(scale > 2.0**64, jnp.float32(2.0**-64), jnp.float32(1))
    second = (1 / as_float(scale * first)).astype(jnp.float32)
    unscaled = to_real(g, dtype) * first.astype(dtype) * second.astype(dtype)
    return from_real(unscaled, widest(g.dtype))


def _product(scale: jax.Array, factor: Any) -> jax.Array:
    wide = as_float(scale)
    return (wide * jnp.asarray(factor, wide.dtype).reshape(())).astype(jnp.float32)
