"""Schedule-free training: averaging in place of momentum and of a falling learning rate.

With u_t the step of another transform, whose gradient is taken at y_t, and w_t a weight:

    z_{t+1} = z_t + u_t
    x_{t+1} = (1 - c_t) * x_t + c_t * z_{t+1}         c_t = w_t / (w_1 + ... + w_t)
    y_{t+1} = (1 - beta) * z_{t+1} + beta * x_{t+1}   w_t = (the largest lr so far)**weight_lr_power

The parameters are y and the state holds z. What is to be evaluated is x, which is formed from both
when it is asked for. The update of y does without it, and without the cancellation that it brings:

    y_{t+1} - y_t = c_t * (z_t - y_t) + (1 - beta * (1 - c_t)) * u_t

Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky, "The Road Less Scheduled", NeurIPS 2024.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import float_dtype, is_number, power
from functorch_optim.core.counting import increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Hyperparameter,
    Number,
    Pair,
    Params,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.core.sums import check_state_dtype, sum_dtype
from functorch_optim.rules.numbers import hyperparameters_at
from functorch_optim.transforms.support.wrapping import with_dtypes_of


class ScheduleFreeState(NamedTuple):
    """The steps' own sequence `z`, and what its average is weighted with.

    Attributes:
      step: updates so far (int32, saturates at 2**31 - 1).
      beta: the number that led to the present parameters, for `schedule_free_eval_params`.
      max_lr: the largest learning rate so far.
      weight_sum: the sum of the weights so far.
      z: where the steps of the inner transform alone have led; `None` for skipped parameters.
      inner: the state of the inner transform.
    """

    step: Scalar
    beta: Scalar
    max_lr: Scalar
    weight_sum: Scalar
    z: Params
    inner: State


_NUMBERS = ("beta", "max_lr", "weight_sum")


@value_equal
def schedule_free(
    tx: Pair,
    lr: Hyperparameter,
    beta: Number = 0.9,
    weight_lr_power: Number = 2.0,
    state_dtype: Any = None,
) -> GradientTransformation:
    """Makes a transform schedule-free: its steps are averaged, and lr need not fall.

    The parameters that this trains are those at which gradients are taken; evaluate and save
    `schedule_free_eval_params(state, params)`. The averaging is the momentum: switch off that of
    the inner transform. `schedule_free(adamw(lr, betas=(0.0, 0.999)), lr)`.

    Args:
      tx: the pair that makes the steps, with a learning rate of its own. Its `params`, which its
        weight decay pulls at, are the parameters (y), not z.
      lr: the same learning rate once more, for the weights alone; a number, an array or a schedule.
        (optax asks a schedule one update further on than the inner transform does. Here as in the
        paper a step is weighted by its own rate.)
      beta: how far gradients are taken from z towards the average; above 0, at most 1.
        Default: 0.9.
      weight_lr_power: the weight of a step is the largest lr so far to this power, so the small
        steps of a warmup count less; 0 weighs all alike. At least 0. Default: 2.0.
      state_dtype: dtype of z, float32 for half-precision parameters, say. A complex parameter's z
        is complex, in that precision or complex64. Default: `None`, the parameter's own.

    Returns:
      A pair whose state is `ScheduleFreeState`. Extra arguments of its `update` reach `tx`.

    Raises:
      TypeError: tx is not a pair; a number is none; state_dtype is not a real floating dtype.
      ValueError: a number out of its range; from update, no `params`.
    """
    inner = member(tx, "the transform of schedule_free")
    checks.learning_rate(lr)
    checks.number("beta", beta, above=0.0, most=1.0)
    checks.number("weight_lr_power", weight_lr_power, least=0.0)
    check_state_dtype(state_dtype)
    # A number stays one: its power is more accurate.
    exponent = weight_lr_power if is_number(weight_lr_power) else jnp.reshape(weight_lr_power, ())

    @abstract_aware
    def init(params: Params) -> ScheduleFreeState:
        ps = [p for p in trees.flatten(params)[0] if not trees.has_no_update(p)]
        dtypes = [jnp.result_type(p) for p in ps]
        dtype = real_dtype(widest(jnp.float32, *dtypes))
        return ScheduleFreeState(
            jnp.zeros((), jnp.int32),
            jnp.array(beta, dtype).reshape(()),
            jnp.zeros((), dtype),
            jnp.zeros((), dtype),
            trees.map_updates(lambda p: _copied(p, state_dtype), params),
            inner.init(params),
        )

    def update(
        grads: Updates, state: ScheduleFreeState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ScheduleFreeState]:
        checks.state("schedule_free", ScheduleFreeState, state)
        checks.scalars("schedule_free", state, "step", "beta", "max_lr", "weight_sum")
        checks.given("schedule_free", "params", params, "they are drawn towards another sequence")
        step = jnp.asarray(state.step).astype(jnp.int32)
        dtypes = {name: jnp.result_type(getattr(state, name)) for name in _NUMBERS}
        rate = hyperparameters_at({"lr": lr}, step).lr
        max_lr = jnp.maximum(
            jnp.asarray(state.max_lr, float_dtype()), jnp.asarray(rate, float_dtype()).reshape(())
        )
        weight = power(max_lr, exponent)
        weight_sum = jnp.asarray(state.weight_sum, float_dtype()) + weight
        nothing = weight_sum == 0  # lr was 0 in every update so far
        share = weight / jnp.where(nothing, jnp.ones_like(weight_sum), weight_sum)
        follow = 1 - jnp.asarray(beta, float_dtype()).reshape(()) * (1 - share)

        steps, inner_state = inner.update(grads, state.inner, params, **extra)
        updates = trees.map_updates(
            lambda u, p, z: _towards(u, p, z, share, follow),
            steps,
            params=params,
            **{"state.z": state.z},
        )
        new_state = ScheduleFreeState(
            increment(step),
            jnp.asarray(beta, dtypes["beta"]).reshape(()),
            max_lr.astype(dtypes["max_lr"]),
            weight_sum.astype(dtypes["weight_sum"]),
            updating.apply_updates(state.z, steps),
            with_dtypes_of(state.inner, inner_state),
        )
        return updates, new_state

    return GradientTransformation(init, update)


def schedule_free_eval_params(state: ScheduleFreeState, params: Params) -> Params:
    """The parameters to evaluate and to save: the average x of the steps of `schedule_free`.

    Args:
      state: the state of `schedule_free` (a member's part of a chain's).
      params: the parameters that are trained.

    Returns:
      A tree of the params' structure and dtypes; what is not trained is as it was.

    Raises:
      TypeError: state is another pair's, or its structure is not that of params.
      ValueError: two shapes differ.
    """
    if not isinstance(state, ScheduleFreeState):
        raise TypeError(
            "schedule_free_eval_params needs the state of schedule_free, but got one of type "
            f"{type(state).__name__}"
        )
    ps, treedef = trees.flatten(params)
    zs = trees.flatten_like(state.z, treedef, "z")
    trees.check_shapes(zs, ps, treedef, "z")
    return treedef.unflatten(
        [p if z is None else _averaged(p, z, state.beta) for p, z in zip(ps, zs, strict=True)]
    )


def _copied(p: Any, state_dtype: Any) -> jax.Array:
    p = jnp.asarray(p)
    dtype = p.dtype if state_dtype is None else sum_dtype(p, state_dtype)
    return jnp.copy(jax.lax.convert_element_type(p, dtype))


def _towards(u: Any, p: Any, z: Any, share: jax.Array, follow: jax.Array) -> jax.Array:
    """The update of y: the inner step in part, and a share of the way to z."""
    u, p, z = jnp.asarray(u), jnp.asarray(p), jnp.asarray(z)
    dtype = real_dtype(widest(u.dtype, p.dtype, z.dtype))
    step, parameter, other = (to_real(x, dtype) for x in (u, p, z))
    new = share.astype(dtype) * (other - parameter) + follow.astype(dtype) * step
    return from_real(new, u.dtype)


def _averaged(p: Any, z: Any, beta: Any) -> jax.Array:
    """x, from y = (1 - beta) * z + beta * x."""
    p, z = jnp.asarray(p), jnp.asarray(z)
    dtype = real_dtype(widest(p.dtype, z.dtype))
    parameter, other = to_real(p, dtype), to_real(z, dtype)
    return from_real(other + (parameter - other) / jnp.asarray(beta, dtype), p.dtype)
