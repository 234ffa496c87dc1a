"""The random key that a transform keeps in its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.scalars import is_number


def kept_key(key: Any) -> jax.Array:
    """A key to start a state with, whose memory nobody else holds.

    Args:
      key: a seed, or a key of `jax.random` (typed, or raw as two uint32).

    Returns:
      A raw key for a seed (which any checkpoint can save); else a copy of the key given, of its
      own kind.

    Raises:
      TypeError: it is neither.
    """
    if is_seed(key):
        return jax.random.PRNGKey(key)
    if not is_key(key):
        raise TypeError(f"key should be a seed or a key of jax.random, but got {key!r}")
    return jnp.copy(key)


def is_seed(key: Any) -> bool:
    """Whether key is an integer, a number of numpy among them."""
    return is_number(key) and isinstance(key, int | np.integer) and not isinstance(key, bool)


def is_key(key: Any) -> bool:
    """Whether key is a typed key, or has the dtype of a raw one."""
    dtype = getattr(key, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and key.ndim > 0)
    )
