"""The trust ratio of LARS and LAMB: each leaf's update has a length in proportion to the leaf's.

    u <- u * coefficient * |p| / (|u| + eps)                        unchanged where |p| or |u| is 0

LARS and LAMB are chains, each with its own use of the ratio:

    chain(add_decayed_weights(wd), trust_ratio(0.001), scale(-lr), trace(momentum))        # LARS
    chain(adam(1.0, eps=1e-6), add_decayed_weights(-wd), trust_ratio(), scale(lr))         # LAMB

(`adam(1.0)` is a step downhill already, so in LAMB the decay is negative and lr positive.) These
are optax's forms; that of LARS divides by |g + wd * p|, where the paper has |g| + wd * |p|.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017. You et al., "Large
Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Number, Params, Updates, stateless
from functorch_optim.transforms.clipping import global_norm


@value_equal
def trust_ratio(
    coefficient: Number = 1.0, eps: Number = 0.0, min_norm: Number = 0.0
) -> GradientTransformation:
    """Scales each leaf's update to `coefficient` times the 2-norm of its parameter.

    A leaf whose parameter or update is all zeros keeps its update, so that a parameter that starts
    at 0 can be trained.

    Args:
      coefficient: the ratio of the norms after scaling. Default: 1.0.
      eps: added to the norm of the update that is divided by. Default: 0.0.
      min_norm: a smaller norm, of a parameter or of an update, counts as this. Default: 0.0.

    Raises:
      ValueError: an argument is below 0, NaN or several; from update, no `params`. TypeError: an
        argument is not a number or an array.
    """
    for name, value in (("coefficient", coefficient), ("eps", eps), ("min_norm", min_norm)):
        checks.number(name, value, least=0.0)

    def scaled(u: Any, p: Any) -> jax.Array:
        norm = global_norm(u)
        dtype = norm.dtype
        smallest = jnp.asarray(min_norm, dtype).reshape(())
        norm = jnp.maximum(norm, smallest)
        weights = jnp.maximum(global_norm(p).astype(dtype), smallest)
        trusted = (norm > 0) & (weights > 0)
        # The quotient that is not taken must be finite too: its derivative reaches the result.
        divisor = jnp.where(
            trusted, norm + jnp.asarray(eps, dtype).reshape(()), jnp.ones_like(norm)
        )
        ratio = jnp.asarray(coefficient, dtype).reshape(()) * weights / divisor
        return updating.times(u, jnp.where(trusted, ratio, jnp.ones_like(ratio)))

    def changed(updates: Updates, params: Params | None) -> Updates:
        checks.given("trust_ratio", "params", params, "an update is scaled to its norm")
        return trees.map_updates(scaled, updates, params=params)

    return stateless(changed)
