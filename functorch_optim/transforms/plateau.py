"""Smaller updates when a metric stops improving."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, updating
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import float_dtype
from functorch_optim.core.counting import increment
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Number, Params, Scalar, Updates
from functorch_optim.schedules.plateau import PlateauState, one_metric, reduce_lr_on_plateau


class ScaleByPlateauState(NamedTuple):
    """`plateau.lr` is the scale; the values of this epoch so far are `value_count` in number.

    The counts are int32 and saturate at 2**31 - 1.
    """

    plateau: PlateauState
    value_sum: Scalar
    value_count: Scalar


@value_equal
def scale_by_plateau(
    mode: str = "min",
    factor: Number = 0.1,
    patience: Number = 10,
    threshold: Number = 1e-4,
    threshold_mode: str = "rel",
    cooldown: Number = 0,
    min_scale: Number = 0.0,
    eps: Number = 1e-8,
    epoch_size: int = 1,
) -> GradientTransformation:
    """Multiplies the updates by a scale, 1 at first, that `reduce_lr_on_plateau` makes smaller.

    The metric is the extra argument `value` of update: `update(grads, state, params, value=loss)`.
    The scale that it leads to holds from this update on.

    Args:
      mode: "min" or "max", as the others in `reduce_lr_on_plateau`.
      factor: what the scale is multiplied by.
      patience: bad epochs in a row that are let pass.
      threshold: by how much a metric must be better.
      threshold_mode: "rel" or "abs".
      cooldown: epochs after a fall that do not count as bad.
      min_scale: the lowest scale.
      eps: a fall by no more than this is left out.
      epoch_size: updates in an epoch, whose metric is the mean of their values.

    Raises:
      ValueError: an argument that `reduce_lr_on_plateau` refuses, an epoch_size that is not a
        positive integer; from update, no `value`.
    """
    _check(factor, patience, threshold, cooldown, min_scale, eps)
    checks.length("epoch_size", epoch_size)
    plateau = reduce_lr_on_plateau(
        1.0, mode, factor, patience, threshold, threshold_mode, cooldown, min_scale, eps
    )

    @abstract_aware
    def init(params: Params) -> ScaleByPlateauState:
        return ScaleByPlateauState(
            plateau.init(), jnp.zeros((), float_dtype()), jnp.zeros((), jnp.int32)
        )

    def update(
        updates: Updates,
        state: ScaleByPlateauState,
        params: Params | None = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Updates, ScaleByPlateauState]:
        checks.state("scale_by_plateau", ScaleByPlateauState, state)
        checks.state("scale_by_plateau: plateau", PlateauState, state.plateau)
        checks.scalars("scale_by_plateau", state, "value_sum", "value_count")
        checks.scalars("scale_by_plateau: plateau", state.plateau, *PlateauState._fields)
        checks.given("scale_by_plateau", "value", value, "the scale depends on a metric")
        before = jax.tree.map(_strongly_typed, state.plateau)
        size = jnp.asarray(epoch_size).astype(jnp.int32).reshape(())
        total = jnp.asarray(state.value_sum, float_dtype()) + one_metric("value", value)
        count = increment(state.value_count)
        full = count >= size
        _, after = plateau.update(total / size.astype(total.dtype), before)
        after = jax.tree.map(lambda new, old: jnp.where(full, new, old), after, before)
        state = ScaleByPlateauState(
            after,
            jnp.where(full, jnp.zeros_like(total), total),
            jnp.where(full, 0, count),
        )
        return updating.scale(updates, after.lr), state

    return GradientTransformation(init, update)


def _check(
    factor: Number,
    patience: Number,
    threshold: Number,
    cooldown: Number,
    min_scale: Number,
    eps: Number,
) -> None:
    checks.number("factor", factor, least=0.0)
    for name, value in (("patience", patience), ("cooldown", cooldown)):
        checks.length(name, value, least=0)
    for name, value in (("threshold", threshold), ("min_scale", min_scale), ("eps", eps)):
        checks.number(name, value, least=0.0)


def _strongly_typed(x: Any) -> jax.Array:
    """A number of a state, perhaps written there by hand, as an array with a type of its own."""
    x = jnp.asarray(x)
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    return x.astype(jnp.int32 if integer else float_dtype())
