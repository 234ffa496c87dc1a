"""Adaptive gradient clipping: each unit's update is bounded by a share of the unit's own norm.

    u <- u * min(1, clipping * max(|w|, eps) / |u|)         for the weights w of each unit

Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization",
ICML 2021. What a unit is: see `units.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Number, Params, Updates, stateless
from functorch_optim.transforms.support.unit_axes import UnitAxis, unit_axes, unit_norm


@value_equal
def adaptive_grad_clip(
    clipping: Number = 0.01, eps: Number = 1e-3, unit_axis: UnitAxis = -1
) -> GradientTransformation:
    """Scales each unit's update down to at most `clipping` times the norm of the unit's weights.

    A unit is a slice of a leaf along its last axis: the weights of one output. A leaf of one
    dimension or none is one unit.

    Args:
      clipping: the largest ratio of the norms. Default: 0.01.
      eps: a unit's weights count as having at least this norm, so that zeros can be trained.
        Default: 1e-3.
      unit_axis: the axis of the outputs, or several as a tuple: -1 in JAX's layouts, 0 in torch's.
        A leaf that has no other axes is one unit. Default: -1.

    Raises:
      ValueError: clipping or eps is below 0, NaN or several; from update, no `params`, or a leaf
        that lacks the axis. TypeError: clipping or eps is not a number or an array, or unit_axis
        is no axis.
    """
    checks.number("clipping", clipping, least=0.0)
    checks.number("eps", eps, least=0.0)
    units = unit_axes(unit_axis)

    def clipped(u: Any, p: Any) -> jax.Array:
        u = jnp.asarray(u)
        norm = unit_norm(u, units)
        weights = unit_norm(jnp.asarray(p), units).astype(norm.dtype)
        bound = jnp.asarray(clipping, norm.dtype).reshape(()) * jnp.maximum(
            weights, jnp.asarray(eps, norm.dtype).reshape(())
        )
        too_large = norm > bound
        ratio = bound / jnp.where(too_large, norm, jnp.ones_like(norm))
        return updating.times(u, jnp.where(too_large, ratio, jnp.ones_like(norm)))

    def changed(updates: Updates, params: Params | None) -> Updates:
        checks.given("adaptive_grad_clip", "params", params, "the bound is a share of its norm")
        return trees.map_updates(clipped, updates, params=params)

    return stateless(changed)
