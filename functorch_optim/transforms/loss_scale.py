"""A loss scale that follows the range of the gradients, by the rules of torch.amp.GradScaler.

    not finite:  the step is skipped;  scale <- scale * backoff_factor
    finite:      the step is taken with g * (1 / scale);  after growth_interval of them in a row
                 scale <- scale * growth_factor

Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.arithmetic import as_float, is_number
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Number,
    Params,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.transforms.nonfinite import all_finite
from functorch_optim.transforms.support.wrapping import update_if, zeros_unless


class LossScaleState(NamedTuple):
    """The scale (float32), finite steps since it changed (int32), and the inner state."""

    scale: Scalar
    growth_tracker: Scalar
    inner_state: State


@value_equal
def dynamic_loss_scale(
    tx: GradientTransformation,
    init_scale: Number = 2.0**16,
    growth_factor: Number = 2.0,
    backoff_factor: Number = 0.5,
    growth_interval: Number = 2000,
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
        finite gradients; above 1. A scale that would become infinite stays.
      backoff_factor: what it is multiplied by after a step without; below 1.
      growth_interval: steps.

    Returns:
      A pair whose state is `LossScaleState`.

    Raises:
      AssertionError: a factor that torch refuses, in torch's words. TypeError: tx is not a pair, or
        an argument is not a number or an array.
    """
    inner = member(tx, "the transform of dynamic_loss_scale")
    for name, value in (
        ("init_scale", init_scale),
        ("growth_factor", growth_factor),
        ("backoff_factor", backoff_factor),
        ("growth_interval", growth_interval),
    ):
        checks.number_or_array(name, value)
    if is_number(growth_factor) and growth_factor <= 1.0:
        raise AssertionError("The growth factor must be > 1.0.")
    if is_number(backoff_factor) and backoff_factor >= 1.0:
        raise AssertionError("The backoff factor must be < 1.0.")
    inner_update = update_if(inner)

    def init(params: Params) -> LossScaleState:
        scale = jnp.array(init_scale, jnp.float32).reshape(())
        return LossScaleState(scale, jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        grads: Updates, state: LossScaleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LossScaleState]:
        checks.state("dynamic_loss_scale", LossScaleState, state)
        finite = all_finite(grads)
        unscaled = trees.map_updates(
            lambda g: _unscaled(g, state.scale), zeros_unless(finite, grads)
        )
        updates, inner_state = inner_update(finite, unscaled, state.inner_state, params, extra)
        tracker = jnp.where(finite, state.growth_tracker + 1, 0)
        grown = tracker == jnp.asarray(growth_interval, jnp.int32)
        larger = _product(state.scale, growth_factor)
        larger = jnp.where(grown & jnp.isfinite(larger), larger, state.scale)
        scale = jnp.where(finite, larger, _product(state.scale, backoff_factor))
        return updates, LossScaleState(scale, jnp.where(grown, 0, tracker), inner_state)

    return GradientTransformation(init, update)


def _unscaled(g: Any, scale: jax.Array) -> jax.Array:
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
    return (wide * jnp.asarray(factor, wide.dtype)).astype(jnp.float32)
