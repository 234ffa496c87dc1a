"""Counts of updates: int32, right up to 2**31 - 1, where they stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LAST = int(np.iinfo(np.int32).max)


def increment(count: Any) -> jax.Array:
    """The count after one more update; the last one is followed by itself."""
    count = jnp.asarray(count).astype(jnp.int32)
    return jnp.where(count < LAST, count + 1, count)
