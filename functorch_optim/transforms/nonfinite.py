"""Steps whose gradients are not finite, left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees
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
from functorch_optim.transforms.support.wrapping import update_if


class SkipNonfiniteState(NamedTuple):
    """The inner state, the calls skipped in a row and in total (int32), and the alarm.

    The counts saturate at 2**31 - 1.
    """

    inner_state: State
    consecutive: Scalar
    total: Scalar
    too_many: Scalar


def all_finite(tree: Any) -> jax.Array:
    """Whether every element of every floating-point leaf is finite: a boolean scalar.

    Integers, `None` and float0 are passed over; of an empty tree it is true.
    """
    arrays = [x for x in jax.tree.leaves(tree) if not trees.has_no_update(x)]  # sparse: the data
    if not arrays:
        return jnp.ones((), bool)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(jnp.asarray(x))) for x in arrays]))


@value_equal
def skip_nonfinite(tx: Pair, max_consecutive: int = 10) -> GradientTransformation:
    """Skips a step as a whole when any element of any gradient is infinite or NaN.

    The updates of a skipped step are zeros, and the inner state stays as it is.

    `too_many` becomes true when `max_consecutive` calls in a row were skipped, and stays so: a
    training loop can look at it now and then and stop. Skipping goes on. (optax's `apply_if_finite`
    lets the NaNs through from there on, which ends the run by destroying the parameters.)

    Args:
      tx: the inner pair.
      max_consecutive: skipped calls in a row that raise the alarm; a positive integer or an array.

    Returns:
      A pair whose state is `SkipNonfiniteState`.

    Raises:
      TypeError: tx is not a pair, or max_consecutive is a bool. ValueError: it is not a positive
        integer.
    """
    inner = member(tx, "the transform of skip_nonfinite")
    checks.length("max_consecutive", max_consecutive)
    inner_update = update_if(inner, guards=True)

    @abstract_aware
    def init(params: Params) -> SkipNonfiniteState:
        consecutive, total = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return SkipNonfiniteState(inner.init(params), consecutive, total, jnp.zeros((), bool))

    def update(
        grads: Updates, state: SkipNonfiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipNonfiniteState]:
        checks.state("skip_nonfinite", SkipNonfiniteState, state)
        checks.scalars("skip_nonfinite", state, "consecutive", "total", "too_many")
        finite = all_finite(grads)
        updates, inner_state = inner_update(finite, grads, state.inner_state, params, extra)
        alarm = jnp.asarray(max_consecutive, jnp.int32).reshape(())
        consecutive = jnp.where(finite, 0, increment(state.consecutive))
        return updates, SkipNonfiniteState(
            inner_state,
            consecutive,
            jnp.where(finite, state.total, increment(state.total)),
            jnp.asarray(state.too_many, bool) | (consecutive >= alarm),
        )

    return GradientTransformation(init, update)
