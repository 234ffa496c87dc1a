"""Transforms that bound the size of the updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim import checks, leaves
from functorch_optim.base import (
    EmptyState,
    GradientTransformation,
    Number,
    Params,
    Updates,
    value_equal,
)
from functorch_optim.scalars import sqrt


def global_norm(tree: Updates) -> jax.Array:
    """The 2-norm of all leaves together: a real scalar, float32 for half-precision leaves."""
    arrays = [jnp.asarray(x) for x in leaves.flatten(tree)[0] if not leaves.has_no_update(x)]
    widest = leaves.real_dtype(leaves.widest(jnp.float32, *(x.dtype for x in arrays)))
    squares = [
        jnp.sum(jnp.square(leaves.to_real(x, leaves.real_dtype(x.dtype)))).astype(widest)
        for x in arrays
    ]
    return sqrt(sum(squares, jnp.zeros((), widest)))


def scaled_to(updates: Updates, norm: jax.Array, max_norm: Number) -> Updates:
    """Updates of this norm scaled down to at most `max_norm`, as torch does it."""
    factor = jnp.minimum(jnp.asarray(max_norm, norm.dtype) / (norm + 1e-6), 1.0)
    return leaves.scale(updates, factor)


@value_equal
def clip_by_global_norm(max_norm: Number) -> GradientTransformation:
    """Scales the updates down so that their global 2-norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`: each leaf times `min(1, max_norm / (norm + 1e-6))`.

    Args:
      max_norm: the bound, a number or an array.

    Raises:
      ValueError: max_norm is below 0 or NaN. TypeError: it is not a number or an array.
    """
    checks.number_or_array("max_norm", max_norm)
    checks.at_least_zero("max_norm", max_norm, "Invalid max_norm value")

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        return scaled_to(updates, global_norm(updates), max_norm), state

    return GradientTransformation(lambda params: EmptyState(), update)
