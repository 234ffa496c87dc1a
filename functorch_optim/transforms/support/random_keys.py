"""The random key that a transform keeps in its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def kept_key(key: Any) -> jax.Array:
    """A key to start a state with, whose memory nobody else holds.

    Args:
      key: a seed, or a key of `jax.random` (typed, or raw with its numbers as uint32).

    Returns:
      A raw key for a seed (any checkpoint can save it); else a copy of the key, of its own kind.

    Raises:
      TypeError: it is neither. ValueError: it is an array of several keys.
    """
    if _is_seed(key):
        return jax.random.PRNGKey(key)
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise TypeError(f"key should be a seed or a key of jax.random, but got {key!r}")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"key should be one key, but has shape {key.shape} and dtype {dtype}")
    return jnp.copy(key)


def _is_seed(key: Any) -> bool:
    if isinstance(key, jax.Array | np.ndarray):
        return jnp.issubdtype(key.dtype, jnp.integer) and key.ndim == 0
    return isinstance(key, int | np.integer) and not isinstance(key, bool)
