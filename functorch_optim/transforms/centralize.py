"""Gradient centralization: the gradient of each unit's weights has mean 0.

    u <- u - mean(u)        over the weights of each unit, for leaves of two dimensions or more

Yong, Huang, Hua, Zhang, "Gradient Centralization: A New Optimization Technique for Deep Neural
Networks", ECCV 2020. What a unit is: see `units.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import trees
from functorch_optim.core.dtypes import from_real, real_dtype, to_real
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Params, Updates, stateless
from functorch_optim.transforms.support.unit_axes import UnitAxis, axes_inside, unit_axes


@value_equal
def centralize(unit_axis: UnitAxis = -1) -> GradientTransformation:
    """Subtracts from each unit's update its mean.

    A unit is a slice of a leaf along its last axis: the weights of one output. Leaves of one
    dimension or none are left as they are. (`optax.centralize` takes the first axis, as in torch's
    layouts: that is `centralize(unit_axis=0)`.)

    Args:
      unit_axis: the axis of the outputs, or several as a tuple: -1 in JAX's layouts, 0 in torch's.
        A leaf that has no other axes is left as it is. Default: -1.

    Raises:
      TypeError: unit_axis is no axis. ValueError: from update, a leaf that lacks the axis.
    """
    units = unit_axes(unit_axis)

    def centered(u: Any) -> jax.Array:
        u = jnp.asarray(u)
        inside = axes_inside(u.shape, units)
        if inside is None:
            return u
        x = to_real(u, real_dtype(u.dtype))
        return from_real(x - jnp.mean(x, axis=inside, keepdims=True), u.dtype)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return trees.map_updates(centered, updates)

    return stateless(changed)
