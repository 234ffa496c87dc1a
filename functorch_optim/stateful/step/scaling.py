"""The arithmetic of a loss scale: for `GradScaler`, and for a whole training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees, updating
from functorch_optim.core.dtypes import widest


def scaled(x: jax.Array, scale: Any) -> jax.Array:
    """A loss times a float32 scale, computed in float32 at least."""
    if trees.has_no_update(x):
        x = x.astype(jnp.float32)
    wide = widest(x.dtype)
    product = x.astype(wide) * jnp.asarray(scale).astype(wide)
    return product if x.ndim == 0 else product.astype(x.dtype)


def reciprocal(scale: np.float32) -> tuple[np.float32, np.float32]:
    """1 / scale as two factors, the first of them exact.

    That of a scale above 2**126 is subnormal, which XLA takes for 0 on some devices.
    """
    first = 2.0**-64 if scale > 2.0**64 else 1.0
    with np.errstate(all="ignore"):
        return np.float32(first), np.float32(1.0 / (np.float64(scale) * first))


def unscaled(grads: Sequence[Any], inverse: Any) -> tuple[list[Any], jax.Array]:
    """Gradients of the loss itself, and whether one of the scaled ones is not finite."""
    first, second = inverse
    found = jnp.zeros((), bool)
    for g in grads:
        found = found | ~jnp.all(jnp.isfinite(updating.elements(g)))
    return [updating.times(updating.times(g, first), second) for g in grads], found


def refuse_float16(grads: Sequence[Any]) -> None:
    """Raises torch's ValueError for a gradient in float16: keep such parameters in float32."""
    if any(g.dtype == jnp.float16 for g in grads):
        raise ValueError("Attempting to unscale FP16 gradients.")


def kept_if(found: jax.Array, old: Any, new: Any) -> Any:
    """The old arrays in the structure of the new ones if `found`, else the new ones."""
    treedef: Any
    arrays, treedef = jax.tree.flatten(new)
    pairs = zip(jax.tree.leaves(old), arrays, strict=True)
    return treedef.unflatten([jnp.where(found, before, after) for before, after in pairs])
