"""Lookahead: slow weights that follow the optimizer's fast ones, and call them back.

    fast = p + u
    every sync_period updates:  slow <- slow + slow_step_size * (fast - slow),  fast <- slow

Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.counting import increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Number,
    Params,
    PerParam,
    Scalar,
    Updates,
)


class LookaheadState(NamedTuple):
    """`step` counts updates; `slow` holds the slow weights, those to evaluate with.

    The count is int32 and saturates at 2**31 - 1: a prime, so nothing is called back from there on
    (with a `sync_period` of 1, at each update).
    """

    step: Scalar
    slow: PerParam


@value_equal
def lookahead(sync_period: int = 6, slow_step_size: Number = 0.5) -> GradientTransformation:
    """Calls the parameters back towards slow weights every so many updates.

    The last member of a chain: `chain(adam(1e-3), lookahead())`. The parameters are the fast
    weights, with which to train; `state[-1].slow` are the slow ones, with which to evaluate. Both
    are the same after each `sync_period` updates, up to rounding.

    Args:
      sync_period: updates from one call to the next. Default: 6.
      slow_step_size: how far the slow weights go towards the fast ones, a number or an array: 0.5
        is halfway. Default: 0.5.

    Returns:
      A pair whose state is `LookaheadState`. Its slow weights are copies of the parameters at
      first, and `None` for those that are not trained (integers).

    Raises:
      ValueError: sync_period is not a positive integer, or slow_step_size is below 0, NaN or
        several; from update, no `params`. TypeError: slow_step_size is not a number or an array.
    """
    if hasattr(sync_period, "update"):
        raise TypeError("lookahead is the last member of a chain: chain(tx, lookahead())")
    checks.length("sync_period", sync_period)
    checks.number("slow_step_size", slow_step_size, least=0.0)

    @abstract_aware
    def init(params: Params) -> LookaheadState:
        return LookaheadState(jnp.zeros((), jnp.int32), trees.map_updates(_copied, params))

    def called_back(us: list[Any], ps: list[Any], slows: list[Any]) -> Any:
        rows = [_towards(slow_step_size, *row) for row in zip(us, ps, slows, strict=True)]
        return [u for u, _ in rows], [slow for _, slow in rows]

    def let_go(us: list[Any], ps: list[Any], slows: list[Any]) -> Any:
        return us, slows

    def update(
        updates: Updates, state: LookaheadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, LookaheadState]:
        checks.state("lookahead", LookaheadState, state)
        checks.scalars("lookahead", state, "step")
        checks.given("lookahead", "params", params, "the slow weights follow it")
        step = increment(state.step)
        us, treedef = trees.flatten(updates)
        ps = trees.flatten_like(params, treedef, "params", "updates")
        slows = trees.flatten_like(state.slow, treedef, "lookahead: state.slow", "updates")
        trees.check_shapes(ps, us, treedef, "params", "updates")
        trees.check_shapes(slows, us, treedef, "lookahead: state.slow", "updates")
        columns = (us, ps, slows)
        trained = [
            i
            for i, row in enumerate(zip(*columns, strict=True))
            if not any(map(trees.has_no_update, row))
        ]
        # The slow weights are neither read nor written between two calls.
        new_us, new_slows = jax.lax.cond(
            step % jnp.asarray(sync_period, jnp.int32).reshape(()) == 0,
            called_back,
            let_go,
            *([_plain(column[i]) for i in trained] for column in columns),
        )
        us = [None] * len(us)
        for i, u, slow in zip(trained, new_us, new_slows, strict=True):
            us[i], slows[i] = u, slow
        return treedef.unflatten(us), LookaheadState(step, treedef.unflatten(slows))

    return GradientTransformation(init, update)


def _towards(share: Number, u: jax.Array, p: jax.Array, slow: jax.Array) -> Any:
    """The update that makes a parameter its new slow weights, and these."""
    wide = widest(u.dtype, p.dtype, slow.dtype)
    dtype = real_dtype(wide)
    step, start, old = (to_real(x.astype(wide), dtype) for x in (u, p, slow))
    new = old + jnp.asarray(share, dtype).reshape(()) * (start + step - old)
    return from_real(new - start, u.dtype), from_real(new, slow.dtype)


def _plain(x: Any) -> jax.Array:
    """An array that is not weakly typed: both branches return the same types."""
    x = jnp.asarray(x)
    return x.astype(x.dtype)


def _copied(p: Any) -> jax.Array:
    """A buffer of its own: params and state may both be donated."""
    return jnp.array(p, dtype=jnp.result_type(p))
