"""What a leaf's dtype means: in which dtype it is computed, and complex numbers as pairs of reals.

Half precision is computed in float32. A complex leaf is computed as pairs of reals, `(..., 2)`, as
torch does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def real_dtype(dtype: Any) -> np.dtype:
    """The real dtype in which a leaf of this dtype is computed: float32 or float64."""
    return np.dtype(np.float64 if jnp.finfo(dtype).bits == 64 else np.float32)


def widest(*dtypes: Any) -> np.dtype:
    """The dtype in which leaves of these dtypes are computed together."""
    wide = max(map(real_dtype, dtypes), key=lambda dtype: dtype.itemsize)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return np.result_type(wide, np.complex64)
    return wide


def to_real(x: jax.Array, dtype: Any) -> jax.Array:
    """x as reals of this dtype; a complex x gets a last axis (real, imaginary)."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
    return x.astype(dtype)


def from_real(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `to_real`: x in this dtype, the last axis taken in when it is complex."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return x.astype(dtype)
