"""The dtype of a buffer that holds a sum or an average over many steps.

bfloat16 has 8 bits: a sum of 512 equal numbers, rounded to it at each step, stops at the 256th. So
such a buffer is float32 where a leaf is float16 or bfloat16, unless its dtype is chosen.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.dtypes import widest


def check_state_dtype(state_dtype: Any) -> None:
    """Raises TypeError unless it is `None` or a real floating dtype."""
    if state_dtype is not None and not _is_real_float(state_dtype):
        raise TypeError(f"state_dtype should be a real floating dtype, but got {state_dtype!r}")


def _is_real_float(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
    except TypeError:
        return False


def sum_dtype(x: Any, state_dtype: Any) -> np.dtype:
    """The dtype of a sum of leaves like x.

    Args:
      x: a floating-point leaf.
      state_dtype: `None` for float32 where x is in half precision, and x's own dtype otherwise; or
        the dtype. A complex x has the complex one of that precision, complex64 at least.
    """
    own = jnp.result_type(x)
    if state_dtype is None:
        return widest(own)
    if jnp.issubdtype(own, jnp.complexfloating):
        return widest(state_dtype, np.complex64)
    return np.dtype(state_dtype)


def in_sum_dtype(x: Any, state_dtype: Any) -> Any:
    """A leaf in the dtype of its sum, and not weakly typed; a skipped leaf as it is."""
    if trees.has_no_update(x):
        return x
    return jax.lax.convert_element_type(jnp.asarray(x), sum_dtype(x, state_dtype))
