"""Gaussian noise on the updates, less at each step.

    u_t <- u_t + N(0, eta / (1 + t)**gamma)                     t = 0 at the first update

Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", 2015. There
eta is 0.01, 0.3 or 1, and gamma 0.55.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import as_float, float_dtype, is_number, power, sqrt
from functorch_optim.core.counting import increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Number, Params, Scalar, Updates
from functorch_optim.transforms.support.random_keys import kept_key


class AddNoiseState(NamedTuple):
    """`step` counts updates; `key` stays, noise is drawn from key, step and leaf.

    The count is int32 and saturates at 2**31 - 1: the noise is the same at each step from there on.
    """

    step: Scalar
    key: jax.Array


@value_equal
def add_noise(eta: Number, gamma: Number, key: int | jax.Array) -> GradientTransformation:
    """Adds normal noise of variance `eta / (1 + step)**gamma` to the updates.

    Each element has noise of its own at each step; of a complex element, each part. A leaf's noise
    does not depend on which other leaves have an update.

    Args:
      eta: the variance at the first update, a number or an array.
      gamma: how fast the variance falls, a number or an array.
      key: a seed, or one of jax's keys, raw (`jax.random.PRNGKey`) or typed (`jax.random.key`). A
        copy of it is kept in the state; of a seed, a raw key, which can be saved as an array.

    Raises:
      ValueError: eta or gamma is below 0 or NaN. TypeError: eta or gamma is not a number or an
        array, or key is neither a seed nor a key.
    """
    checks.number("eta", eta, least=0.0)
    checks.number("gamma", gamma, least=0.0)
    kept_key(key)

    @abstract_aware
    def init(params: Params) -> AddNoiseState:
        return AddNoiseState(jnp.zeros((), jnp.int32), kept_key(key))

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddNoiseState]:
        checks.state("add_noise", AddNoiseState, state)
        checks.scalars("add_noise", state, "step")
        step = jnp.asarray(state.step).astype(jnp.int32)
        first, fall = (x if is_number(x) else jnp.reshape(x, ()) for x in (eta, gamma))
        variance = jnp.asarray(first, float_dtype()) / power(as_float(step) + 1, fall)
        deviation = sqrt(variance)
        step_key = jax.random.fold_in(state.key, step)
        us, treedef = trees.flatten(updates)
        noisy = [
            None
            if trees.has_no_update(u)
            else _with_noise(jnp.asarray(u), deviation, jax.random.fold_in(step_key, i))
            for i, u in enumerate(us)
        ]
        return treedef.unflatten(noisy), AddNoiseState(increment(step), state.key)

    return GradientTransformation(init, update)


def _with_noise(u: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    dtype = real_dtype(u.dtype)
    x = to_real(u, dtype)
    noise = deviation.astype(dtype) * jax.random.normal(key, x.shape, dtype)
    return from_real(x + noise, u.dtype)
