"""Transforms that bound the size of the updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.dtypes import from_real, real_dtype, to_real
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.norms import norm_of
from functorch_optim.core.pair import GradientTransformation, Number, Params, Updates, stateless


def global_norm(tree: Updates) -> jax.Array:
    """The 2-norm of all leaves together: a real scalar, float32 for half-precision leaves.

    Nothing overflows on the way to the norm of float16 and bfloat16 leaves, nor does it underflow.
    In a sparse leaf, entries with the same coordinates are summed first.
    """
    arrays = [updating.elements(x) for x in trees.flatten(tree)[0] if not trees.has_no_update(x)]
    return norm_of(arrays)


def scaled_to(updates: Updates, norm: jax.Array, max_norm: Number) -> Updates:
    """Updates of this norm scaled down to at most `max_norm`, as torch does it."""
    factor = jnp.minimum(jnp.asarray(max_norm, norm.dtype).reshape(()) / (norm + 1e-6), 1.0)
    return updating.scale(updates, factor)


@value_equal
def clip_by_global_norm(max_norm: Number) -> GradientTransformation:
    """Scales the updates down so that their global 2-norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`: each leaf times `min(1, max_norm / (norm + 1e-6))`.

    Args:
      max_norm: the bound, a number or an array.

    Raises:
      ValueError: max_norm is below 0, NaN or several. TypeError: it is not a number or an array.
    """
    checks.number("max_norm", max_norm, least=0.0)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return scaled_to(updates, global_norm(updates), max_norm)

    return stateless(changed)


@value_equal
def clip_by_leaf_norm(max_norm: Number) -> GradientTransformation:
    """Scales each leaf down so that its own 2-norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_` called with one parameter at a time: each leaf times
    `min(1, max_norm / (its norm + 1e-6))`.

    Args:
      max_norm: the bound, a number or an array.

    Raises:
      ValueError: max_norm is below 0, NaN or several. TypeError: it is not a number or an array.
    """
    checks.number("max_norm", max_norm, least=0.0)

    def changed(updates: Updates, params: Params | None) -> Updates:
        def clipped(u: Any) -> Updates:
            return scaled_to(u, global_norm(u), max_norm)

        return trees.map_updates(clipped, updates, on_sparse=clipped)

    return stateless(changed)


@value_equal
def clip_by_value(max_value: Number) -> GradientTransformation:
    """Clips each element of the updates to `[-max_value, max_value]`.

    As `torch.nn.utils.clip_grad_value_`. Of a complex element, each part is clipped.

    Args:
      max_value: the bound, a number or an array.

    Raises:
      ValueError: max_value is below 0, NaN or several. TypeError: it is not a number or an array.
    """
    checks.number("max_value", max_value, least=0.0)

    def clipped(u: Any) -> jax.Array:
        u = jnp.asarray(u)
        dtype = real_dtype(u.dtype)
        bound = jnp.asarray(max_value, dtype).reshape(())
        return from_real(jnp.clip(to_real(u, dtype), -bound, bound), u.dtype)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return trees.map_updates(clipped, updates, on_sparse=updating.entrywise(clipped))

    return stateless(changed)
