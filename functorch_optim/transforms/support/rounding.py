"""Updates for parameters in half precision: sums in a wider dtype, and steps to a rounded value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees


def wider(x: Any, dtype: Any) -> Any:
    """The dtype in which a leaf is kept when this real one is asked for; `None` for x's own.

    That is the case where x is as wide already, or is not floating point.
    """
    if trees.has_no_update(x):
        return None
    own = jnp.result_type(x)
    if jnp.finfo(own).bits >= jnp.finfo(dtype).bits:
        return None
    if jnp.issubdtype(own, jnp.complexfloating):
        return np.result_type(dtype, np.complex64)
    return np.dtype(dtype)


def cast(x: Any, dtype: Any) -> Any:
    """A leaf in the dtype that `wider` gave; as it is where that is `None` or it is skipped."""
    if dtype is None or trees.has_no_update(x):
        return x
    return (x.todense() if trees.is_sparse(x) else jnp.asarray(x)).astype(dtype)


def narrowed(x: jax.Array, dtype: Any) -> jax.Array:
    """x rounded to a narrower dtype. A cast there and back XLA may leave out, but not this."""
    return jax.lax.optimization_barrier(x.astype(dtype))


def step_to(target: jax.Array, p: jax.Array, dtype: Any) -> jax.Array:
    """The update in a wide dtype that makes `target`, of p's dtype, of the parameter p.

    Added to p in the wide dtype and rounded, it gives the target: the difference of two numbers of
    11 bits or less has room in 24, unless one is 2**13 times the other.
    """
    difference = target.astype(dtype) - p.astype(dtype)
    return jnp.where(target == p, jnp.zeros_like(difference), difference)  # both may be infinite
