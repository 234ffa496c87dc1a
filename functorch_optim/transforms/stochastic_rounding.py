"""Rounding at random: half precision without a wide copy of the parameters.

    x = p + u, in float32;   p <- the neighbour of x above with probability
                                  (x - below) / (above - below), else the one below

The mean of the rounded value is x: steps too small for p's bits are taken now and then, instead of
never. Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.counting import increment
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Pair,
    Params,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.transforms.support.random_keys import kept_key
from functorch_optim.transforms.support.rounding import cast, narrowed, step_to, wider
from functorch_optim.transforms.support.wrapping import with_dtypes_of


class StochasticRoundingState(NamedTuple):
    """The key, which stays, the updates so far, and the inner state.

    The count is int32 and saturates at 2**31 - 1: the draws are the same ones from there on.
    """

    key: jax.Array
    step: Scalar
    inner_state: State


@value_equal
def stochastic_rounding(tx: Pair, key: int | jax.Array) -> GradientTransformation:
    """Rounds new float16 and bfloat16 parameters up or down at random, right on average.

    The inner pair sees such parameters and their gradients in float32, and so computes its updates;
    its buffers have the parameters' dtype. (`master_weights` is more accurate, for 4 bytes more of
    each parameter.) Wider parameters are left to the inner pair.

    The update of a half-precision parameter is in float32: it is what takes the parameter to the
    value drawn. `apply_updates` (optax's too) adds it in float32 and rounds once, which is exact,
    except where a step makes a parameter more than 2**13 times smaller.

    Args:
      tx: the inner pair.
      key: a seed, or a key of `jax.random`. Each update and each leaf draws its own numbers; equal
        keys give equal runs.

    Returns:
      A pair whose state is `StochasticRoundingState`. Its update needs `params`.

    Raises:
      TypeError: tx is not a pair, or key is not a key. ValueError: from update, params are missing.
    """
    inner = member(tx, "the transform of stochastic_rounding")
    kept_key(key)

    @abstract_aware
    def init(params: Params) -> StochasticRoundingState:
        return StochasticRoundingState(kept_key(key), jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        grads: Updates, state: StochasticRoundingState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, StochasticRoundingState]:
        checks.state("stochastic_rounding", StochasticRoundingState, state)
        checks.scalars("stochastic_rounding", state, "step")
        step = jnp.asarray(state.step).astype(jnp.int32)
        checks.given("stochastic_rounding", "params", params, "the sum with it is rounded")
        ps, treedef = trees.flatten(params)
        gs = trees.flatten_like(grads, treedef, "grads")
        trees.check_shapes(gs, ps, treedef, "grads")
        wide = [wider(p, jnp.float32) for p in ps]
        new, inner_state = inner.update(
            treedef.unflatten(map(cast, gs, wide)),
            state.inner_state,
            treedef.unflatten(map(cast, ps, wide)),
            **extra,
        )
        step_key = jax.random.fold_in(state.key, step)
        updates = trees.flatten_like(new, treedef, "updates")
        for i, (u, p, dtype) in enumerate(zip(updates, ps, wide, strict=True)):
            if dtype is None or trees.has_no_update(u):
                continue
            p = jnp.asarray(p)
            total = updating.add(p.astype(dtype), u)
            target = rounded(total, p.dtype, jax.random.fold_in(step_key, i))
            updates[i] = step_to(target, p, dtype)
        return treedef.unflatten(updates), StochasticRoundingState(
            state.key, increment(step), with_dtypes_of(state.inner_state, inner_state)
        )

    return GradientTransformation(init, update)


def rounded(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """float32 numbers as a narrower dtype: one of the two neighbours, drawn so that the mean is x.

    What the dtype holds exactly stays, infinities and NaN too. Beyond the largest number the
    neighbour is infinity, drawn as if the numbers went on at the same distance.
    """
    return _rounded(dtype, x, jax.random.uniform(key, x.shape, x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rounded(dtype: Any, x: jax.Array, draws: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    near = narrowed(size, dtype)
    infinity = jnp.full_like(near, jnp.inf)
    below = jnp.where(near.astype(x.dtype) > size, jnp.nextafter(near, -infinity), near)
    above = jnp.where(near.astype(x.dtype) < size, jnp.nextafter(near, infinity), near)
    before = jnp.nextafter(below, -infinity).astype(x.dtype)
    low, high = below.astype(x.dtype), above.astype(x.dtype)
    gap = jnp.where(jnp.isinf(above), low - before, high - low)
    drawn = jnp.where(draws * gap < size - low, above, below)
    return jnp.where(jnp.signbit(x), -drawn, drawn)


@_rounded.defjvp
def _rounded_jvp(dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # On average rounding is the identity; its derivative is that of a cast.
    return _rounded(dtype, *primals), tangents[0].astype(dtype)
