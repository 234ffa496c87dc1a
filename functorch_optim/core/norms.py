"""The 2-norm: the root of a sum of squares, in float32 at least.

float32 holds the squares of numbers from about 2**-63 to 2**64, and so those of every float16; but
bfloat16 has float32's range. Its numbers are sorted by size into three sums, each scaled by a power
of 2 of its own, in one pass (Blue, "A Portable Fortran Program to Find the Euclidean Norm of a
Vector", 1978). In the common case two of them are 0, and the third is the plain sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core.arithmetic import sqrt
from functorch_optim.core.dtypes import real_dtype, to_real, widest

_LIMIT = 2.0**56  # the squares of such numbers and of their inverses have room in float32
_SCALE = 2.0**80  # and so have those of larger ones times 1 / _SCALE


def norm_of(arrays: Sequence[jax.Array]) -> jax.Array:
    """The norm of all arrays together: a real scalar, float32 for half-precision arrays."""
    wide = real_dtype(widest(jnp.float32, *(x.dtype for x in arrays)))
    if not any(_has_range(x) for x in arrays):
        return sqrt(sum((_squares(x).astype(wide) for x in arrays), jnp.zeros((), wide)))
    sums = [_sums(_reals(x), None, False) if _has_range(x) else (_squares(x),) for x in arrays]
    zero = jnp.zeros((), wide)
    middle = sum((s[0].astype(wide) for s in sums), zero)
    small, large = (sum((s[i].astype(wide) for s in sums if len(s) > 1), zero) for i in (1, 2))
    return _root(middle, small, large)


def norm_along(x: jax.Array, axis: Any) -> jax.Array:
    """The norms of x along these axes, which are kept with length 1; `None` for all of them."""
    if not _has_range(x):
        squares = jnp.square(_reals(x))
        if jnp.iscomplexobj(x):
            squares = jnp.sum(squares, axis=-1)
        return sqrt(jnp.sum(squares, axis=axis, keepdims=True))
    return _root(*_sums(_reals(x), axis, True))


def _has_range(x: jax.Array) -> bool:
    """Whether the squares of a half-precision dtype leave float32."""
    return x.dtype == jnp.bfloat16


def _reals(x: jax.Array) -> jax.Array:
    return to_real(x, real_dtype(x.dtype))


def _squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(_reals(x)))


def _sums(x: jax.Array, axis: Any, keepdims: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sums of squares of middle-sized, small and large numbers, the last two of them scaled."""
    size = jnp.abs(x)
    is_small, is_large = size < 1 / _LIMIT, size > _LIMIT
    nothing, scale = jnp.zeros_like(x), _scale(x.dtype)
    parts = (
        jnp.where(is_small | is_large, nothing, x),
        jnp.where(is_small, x, nothing) * scale,
        jnp.where(is_large, x, nothing) * (1 / scale),
    )
    middle, small, large = (
        jnp.sum(jnp.square(part), axis=axis, keepdims=keepdims) for part in parts
    )
    return middle, small, large


def _scale(dtype: Any) -> jax.Array:
    """The scale, unknown to the compiler, which would make `scale * scale` of it: infinity."""
    return jax.lax.optimization_barrier(jnp.asarray(_SCALE, dtype))


def _root(middle: jax.Array, small: jax.Array, large: jax.Array) -> jax.Array:
    """The root of the whole sum, in the scale of its largest part."""
    scale = _scale(middle.dtype)
    is_large, is_small = large > 0, middle < 1 / _LIMIT
    inside = jnp.where(is_small, middle, jnp.zeros_like(middle))
    tiny = sqrt(small + jnp.square(sqrt(inside) * scale)) / scale
    huge = sqrt(large + jnp.square(sqrt(middle) / scale)) * scale
    plain = sqrt(middle + jnp.square(sqrt(small) / scale))
    return jnp.where(is_large, huge, jnp.where(is_small, tiny, plain))
