"""The signs of the updates, as in signSGD and Lion.

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex
Problems", ICML 2018.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import trees, updating
from functorch_optim.core.dtypes import from_real, real_dtype, to_real
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Params, Updates, stateless


@value_equal
def sign() -> GradientTransformation:
    """Replaces each element of the updates by its sign: -1, 0 or 1.

    Of a complex element, each part is replaced by its sign: the library treats complex numbers as
    pairs of reals, as torch's algorithms do. (`optax.scale_by_sign` keeps the direction,
    z / abs(z).)
    """

    def signs(u: Any) -> jax.Array:
        u = jnp.asarray(u)
        return from_real(jnp.sign(to_real(u, real_dtype(u.dtype))), u.dtype)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return trees.map_updates(signs, updates, on_sparse=updating.entrywise(signs))

    return stateless(changed)
