"""One step for several gradients: large batches in small pieces.

    G_k = g_1 + ... + g_k;     the inner pair sees G_k / k (or G_k) at every k-th call

The inner pair runs at those calls only: its step, and so its schedules, count real updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.counting import LAST, increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Pair,
    Params,
    PerParam,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.core.sums import check_state_dtype, sum_dtype
from functorch_optim.transforms.support.wrapping import update_if


class AccumulateState(NamedTuple):
    """Gradients in the sum so far, real updates so far, the inner state, and the sum.

    The counts are int32 and saturate at 2**31 - 1.
    """

    mini_step: Scalar
    step: Scalar
    inner_state: State
    grad_sum: PerParam


@value_equal
def accumulate(
    tx: Pair,
    every_k: int | jax.Array | Callable[[Any], Any],
    average: bool = True,
    state_dtype: Any = None,
) -> GradientTransformation:
    """Sums the gradients of `every_k` calls, and updates with their mean at the last of them.

    The updates of the calls in between are zeros, and the inner update is not computed there. Extra
    arguments reach the inner pair from the call that updates.

    Each sum, and the mean, is computed in float32 at least. The inner pair sees the mean in the
    wider dtype of `grad_sum` and the gradient; the updates have the dtypes that they would have for
    the gradients.

    A leaf whose gradient is `None` at a call is left out of it: its sum stays, and the inner pair
    sees `None` if it is the call that updates.

    Args:
      tx: the inner pair.
      every_k: gradients for each update: a positive integer, an array, or a function of the number
        of real updates so far (int32), which is asked at each call.
      average: the inner pair sees the mean; else the sum.
      state_dtype: dtype of `grad_sum`. Default: `None`, float32 for float16 and bfloat16 parameters
        (small gradients vanish in a large sum of 8 bits) and the parameter's own otherwise. Another
        one, a real floating dtype, holds for all; a complex parameter's sum is then complex, in
        that precision or complex64.

    Returns:
      A pair whose state is `AccumulateState`.

    Raises:
      TypeError: tx is not a pair, average no bool, state_dtype no real floating dtype.
      ValueError: every_k is a number, but not a positive integer.
    """
    inner = member(tx, "the transform of accumulate")
    if not callable(every_k):
        checks.length("every_k", every_k)
    checks.flag("average", average)
    check_state_dtype(state_dtype)
    inner_update = update_if(inner)

    @abstract_aware
    def init(params: Params) -> AccumulateState:
        ps, treedef = trees.flatten(params)
        sums = treedef.unflatten([_empty_sum(p, state_dtype) for p in ps])
        zero = jnp.zeros((), jnp.int32)
        return AccumulateState(zero, jnp.copy(zero), inner.init(params), sums)

    def update(
        grads: Updates, state: AccumulateState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AccumulateState]:
        checks.state("accumulate", AccumulateState, state)
        checks.scalars("accumulate", state, "mini_step", "step")
        step, count = jnp.asarray(state.step).astype(jnp.int32), increment(state.mini_step)
        full = count >= _whole(every_k(step) if callable(every_k) else every_k)
        sums, treedef = trees.flatten(state.grad_sum)
        gs = trees.flatten_like(grads, treedef, "accumulate: grads", "state")
        trees.check_shapes(gs, sums, treedef, "accumulate: grads", "state")
        seen: list[Any] = [None] * len(gs)
        for i, (g, total) in enumerate(zip(gs, sums, strict=True)):
            if trees.has_no_update(g) or total is None:
                continue
            g = g.todense() if trees.is_sparse(g) else jnp.asarray(g)
            gs[i] = g
            seen[i], sums[i] = _added(g, total, count if average else None, full)
        updates, inner_state = inner_update(
            full, treedef.unflatten(seen), state.inner_state, params, extra
        )
        if any(s is not None and s.dtype != g.dtype for s, g in zip(seen, gs, strict=True)):
            narrow = [None if s is None else g for s, g in zip(seen, gs, strict=True)]
            updates = _in_dtypes_for(
                treedef.unflatten(narrow), inner, updates, state.inner_state, params, extra
            )
        return updates, AccumulateState(
            jnp.where(full, 0, count),
            jnp.where(full, increment(step), step),
            inner_state,
            treedef.unflatten(sums),
        )

    return GradientTransformation(init, update)


def _whole(every_k: Any) -> jax.Array:
    """every_k as an int32; a schedule's 4.0 may be a little off."""
    every_k = jnp.asarray(every_k).reshape(())
    if not jnp.issubdtype(every_k.dtype, jnp.integer):
        every_k = jnp.rint(every_k)
    return jnp.clip(every_k, 1, LAST).astype(jnp.int32)


def _empty_sum(p: Any, state_dtype: Any) -> Any:
    if trees.has_no_update(p):
        return None
    return jnp.zeros(jnp.shape(p), sum_dtype(p, state_dtype))


def _in_dtypes_for(
    grads: Updates,
    inner: GradientTransformation,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: dict[str, Any],
) -> Updates:
    """Updates in the dtypes that they have where the inner pair sees the gradients themselves."""
    wanted = jax.eval_shape(lambda: inner.update(grads, state, params, **extra)[0])
    return jax.tree.map(lambda u, w: u.astype(w.dtype), updates, wanted)


def _added(g: jax.Array, total: jax.Array, count: Any, full: Any) -> tuple[jax.Array, jax.Array]:
    """What the inner pair sees of the sum with g in it, and the sum that is kept."""
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(total):
        raise TypeError(f"a gradient of dtype {g.dtype} cannot be added to a sum of {total.dtype}")
    kept = total.dtype
    dtype = real_dtype(widest(g.dtype, kept))
    complex_or_real = widest(g.dtype, kept)
    wide = to_real(total.astype(complex_or_real), dtype) + to_real(g.astype(complex_or_real), dtype)
    seen = wide if count is None else wide / count.astype(dtype)
    stays = from_real(jnp.where(full, jnp.zeros_like(wide), wide), kept)
    return from_real(seen, kept if g.dtype == kept else complex_or_real), stays
