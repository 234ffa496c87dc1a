"""The signs of the updates, as in signSGD and Lion.

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex
Problems", ICML 2018.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim import leaves
from functorch_optim.base import GradientTransformation, Params, Updates, stateless, value_equal


@value_equal
def sign() -> GradientTransformation:
    """Replaces each element of the updates by its sign: -1, 0 or 1.

    Of a complex element, each part is replaced by its sign: the library treats complex numbers as
    pairs of reals, as torch's algorithms do. (`optax.scale_by_sign` keeps the direction,
    z / abs(z).)
    """

    def signs(u: Any) -> jax.Array:
        u = jnp.asarray(u)
        return leaves.from_real(jnp.sign(leaves.to_real(u, leaves.real_dtype(u.dtype))), u.dtype)

    def changed(updates: Updates, params: Params | None) -> Updates:
        return leaves.map_updates(signs, updates, on_sparse=leaves.entrywise(signs))

    return stateless(changed)
