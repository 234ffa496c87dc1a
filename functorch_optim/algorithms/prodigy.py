"""Prodigy: Adam that estimates its own step size.

With g_t the gradient and d_t the estimate, d_0 = d0, all sums running over every parameter:

    dlr_t = d_t * lr * c_t            c_t = sqrt(1 - beta2**(t+1)) / (1 - beta1**(t+1)), or 1
    r_t = beta3 * r_{t-1} + (d_t / d0) * dlr_t * sum(g_t * (p_0 - p_t))
    s_t = beta3 * s_{t-1} + (d_t / d0) * dlr_t * g_t          (safeguard_warmup: d_t for dlr_t)
    m_t = beta1 * m_{t-1} + d_t * (1 - beta1) * g_t
    v_t = beta2 * v_{t-1} + d_t**2 * (1 - beta2) * g_t**2
    d_hat = d_coef * r_t / sum(|s_t|)
    d_{t+1} = the largest d_hat so far, at most growth_rate * d_t
    p_{t+1} = p_t - dlr_t * m_t / (sqrt(v_t) + d_{t+1} * eps)

The first estimate above d0 is taken whole: growth_rate bounds what follows.

Mishchenko, Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024. The
details are those of the authors' package `prodigyopt`. An update in which lr is 0 changes no
average and no estimate; one in which every gradient so far was 0 moves nothing. `step` counts both
(a schedule goes on), `steps_taken`, which the bias correction uses, counts neither.

optax's `contrib.prodigy` is `use_bias_correction=True` here, with these differences: it updates the
averages when lr is 0 too, gives NaN when the gradients so far are 0, has no growth_rate and no
coupled weight decay, and its state shares memory with the parameters that it started from.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim import checks, leaves
from functorch_optim.base import (
    GradientTransformation,
    Hyperparameter,
    Params,
    PerParam,
    Scalar,
    Updates,
    value_equal,
)
from functorch_optim.docstrings import completed
from functorch_optim.per_leaf import Buffers, Scalars, hyperparameters_at
from functorch_optim.scalars import (
    as_float,
    float_dtype,
    is_number,
    one_minus_power,
    sqrt,
)


class ProdigyState(NamedTuple):
    """The estimate `d`, and for each parameter Adam's averages, weighted gradients, the start.

    Attributes:
      step: updates so far (int32).
      d: the estimate of the step size.
      d_max: the largest estimate so far, before `growth_rate` bounds it.
      d_numerator: how far the steps went downhill, weighted.
      exp_avg: running average of the gradient, times d.
      exp_avg_sq: running average of its square, times d**2.
      s: weighted sum of the gradients.
      p0: a copy of the first parameters.
      steps_taken: updates that were not held back (int32); `None` without bias correction.
    """

    step: Scalar
    d: Scalar
    d_max: Scalar
    d_numerator: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam
    s: PerParam
    p0: PerParam
    steps_taken: Scalar | None


BUFFERS = ("exp_avg", "exp_avg_sq", "s", "p0")


@value_equal
def prodigy(
    lr: Hyperparameter = 1.0,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    beta3: Hyperparameter | None = None,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    decoupled_weight_decay: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Hyperparameter = 1e-6,
    d_coef: Hyperparameter = 1.0,
    growth_rate: Hyperparameter = float("inf"),
    *,
    maximize: bool = False,
) -> GradientTransformation:
    """Prodigy: Adam whose step size is estimated from how far the parameters have come.

    One estimate serves the whole tree. Leave lr at 1, or at a schedule that starts there and falls
    to 0. In float16 the averages, of `d * g` and its square with d = 1e-6 at first, are too
    small to be told from 0: wrap the pair in `float32_state`.

    Args:
      lr: factor of the estimated step size. Every numeric argument may be a number, an array or a
        schedule.
      beta3: coefficient of the sums that d is estimated from, in [0, 1]; `None` is the root of
        `betas[1]`.
      eps: added to the root in the denominator, times d; above 0.
      weight_decay: the parameters lose `d * lr * weight_decay * p` at each step; at least 0.
      decoupled_weight_decay: False adds `weight_decay * p` to the gradient instead.
      use_bias_correction: correct Adam's averages for their start at 0.
      safeguard_warmup: leave lr out of the denominator of the estimate, so that small rates at the
        start (a warmup) do not make it too large.
      d0: first estimate, a guess that is too small; above 0. Rarely in need of a change.
      d_coef: factor of the estimate; the number to tune.
      growth_rate: by how much an update may multiply d, after the first time that it grew. A value
        such as 1.02 acts as a warmup.

    Raises:
      ValueError: a value out of its range, in torch's words; from update, no `params`.
      TypeError: a value that is not a number, an array or a schedule.
      RuntimeError: from update, a sparse gradient.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    _check_above_zero("eps", eps, "Invalid epsilon value")
    _check_above_zero("d0", d0, "Invalid d0 value")
    checks.at_least_zero("d_coef", d_coef, "Invalid d_coef value")
    checks.at_least_zero("growth_rate", growth_rate, "Invalid growth_rate value")
    if beta3 is not None:
        _check_beta3(beta3)
    hyperparameters = {
        "lr": lr,
        "betas": tuple(betas),
        "beta3": beta3,
        "eps": eps,
        "weight_decay": weight_decay,
        "d0": d0,
        "d_coef": d_coef,
        "growth_rate": growth_rate,
    }

    def init(params: Params) -> ProdigyState:
        h = hyperparameters_at(hyperparameters, jnp.zeros((), jnp.int32))
        ps, treedef = leaves.flatten(params)
        dtypes = [jnp.result_type(p) for p in ps if not leaves.has_no_update(p)]
        dtype = leaves.real_dtype(leaves.widest(jnp.float32, *dtypes))
        return ProdigyState(
            jnp.zeros((), jnp.int32),
            jnp.array(h.d0, dtype),  # twice, for two buffers must not share memory
            jnp.array(h.d0, dtype),
            jnp.zeros((), dtype),
            **_trees([_first_buffers(p) for p in ps], treedef),
            steps_taken=jnp.zeros((), jnp.int32) if use_bias_correction else None,
        )

    def update(
        grads: Updates, state: ProdigyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ProdigyState]:
        checks.state("prodigy", ProdigyState, state)
        checks.given(
            "prodigy", "params", params, "the step size depends on how far the parameters have come"
        )
        step = jnp.asarray(state.step)
        h = _numbers(hyperparameters_at(hyperparameters, step))
        gs, ps, buffers, treedef = _aligned(grads, state, params)
        trained = [i for i, pair in enumerate(zip(gs, ps, strict=True)) if _has_update(*pair)]

        d = as_float(state.d)
        dlr = d * h.lr * _bias_correction(h, state.steps_taken)
        idle = jnp.asarray(h.lr <= 0)
        s = Scalars(
            {"maximize": maximize},
            l2=None if decoupled_weight_decay else h.weight_decay,
            beta1=h.beta1,
            beta2=h.beta2,
            beta3=h.beta3,
            grad_weight=d * (1 - h.beta1),
            square_weight=d * d * (1 - h.beta2),
            sum_weight=d / h.d0 * (d if safeguard_warmup else dlr),
        )
        way = size = jnp.zeros((), float_dtype())
        for i in trained:
            new, leaf_way, leaf_size = _accumulated(gs[i], ps[i], buffers[i], idle, s)
            buffers[i] = (*new, buffers[i][-1])
            way, size = way + as_float(leaf_way), size + as_float(leaf_size)

        held = idle | (size == 0)
        numerator = h.beta3 * as_float(state.d_numerator) + d / h.d0 * dlr * way
        d_hat = h.d_coef * numerator / jnp.where(held, jnp.ones_like(size), size)
        new_d, d_max = _estimates(d_hat, h, state)
        decay = h.weight_decay if decoupled_weight_decay else None
        s = Scalars(dlr=dlr, eps=new_d * h.eps, decay=None if decay is None else dlr * decay)
        updates: list[Any] = [None] * len(gs)
        for i in trained:
            updates[i] = _step(ps[i], buffers[i], held, s)

        def unless_held(new: jax.Array, old: Any) -> jax.Array:
            old = jnp.asarray(old)
            return jnp.where(held, old, new.astype(old.dtype))

        taken = state.steps_taken
        new_state = ProdigyState(
            step + 1,
            unless_held(new_d, state.d),
            unless_held(d_max, state.d_max),
            unless_held(numerator, state.d_numerator),
            **_trees(buffers, treedef),
            steps_taken=None if taken is None else unless_held(jnp.asarray(taken) + 1, taken),
        )
        return treedef.unflatten(updates), new_state

    return GradientTransformation(init, update)


prodigy.__doc__ = completed(prodigy, ProdigyState.__name__)


def _check_above_zero(name: str, value: Any, message: str) -> None:
    checks.at_least_zero(name, value, message)
    if is_number(value) and value == 0:
        raise ValueError(f"{message}: {value}")


def _check_beta3(beta3: Any) -> None:
    checks.kind("beta3", beta3)
    if is_number(beta3) and not 0.0 <= beta3 <= 1.0:
        raise ValueError(f"Invalid beta3 value: {beta3}")


def _numbers(h: SimpleNamespace) -> SimpleNamespace:
    """The hyperparameters as Python or wide floats; a weight decay of the number 0 is `None`."""

    def wide(x: Any) -> Any:
        return float(x) if is_number(x) else as_float(x)

    beta1, beta2 = map(wide, h.betas)
    no_decay = is_number(h.weight_decay) and h.weight_decay == 0
    return SimpleNamespace(
        lr=wide(h.lr),
        beta1=beta1,
        beta2=beta2,
        beta3=sqrt(beta2) if h.beta3 is None else wide(h.beta3),
        eps=wide(h.eps),
        weight_decay=None if no_decay else wide(h.weight_decay),
        d0=wide(h.d0),
        d_coef=wide(h.d_coef),
        growth_rate=wide(h.growth_rate),
    )


def _bias_correction(h: SimpleNamespace, steps_taken: Any) -> Any:
    if steps_taken is None:
        return 1.0
    t = as_float(steps_taken) + 1
    return sqrt(one_minus_power(h.beta2, t)) / one_minus_power(h.beta1, t)


def _estimates(d_hat: jax.Array, h: SimpleNamespace, state: ProdigyState) -> tuple[Any, Any]:
    """The new d and d_max. The first d above d0 may be any; later ones grow by growth_rate."""
    d0 = jnp.asarray(h.d0, jnp.asarray(state.d).dtype)
    d = as_float(state.d)
    d = jnp.where(state.d == d0, jnp.maximum(d, d_hat), d)
    d_max = jnp.maximum(as_float(state.d_max), d_hat)
    # Not d * inf: its derivative is NaN, even where it is not chosen.
    rate = as_float(jnp.asarray(h.growth_rate, float_dtype()))
    bounded = jnp.isfinite(rate)
    bound = d * jnp.where(bounded, rate, jnp.ones_like(rate))
    return jnp.where(bounded, jnp.minimum(d_max, bound), d_max), d_max


def _has_update(g: Any, p: Any) -> bool:
    if leaves.is_sparse(g):
        raise RuntimeError("Prodigy does not support sparse gradients")
    return not (leaves.has_no_update(g) or leaves.has_no_update(p))


def _first_buffers(p: Any) -> Buffers:
    if leaves.has_no_update(p):
        return (None,) * len(BUFFERS)
    p = jnp.asarray(p)
    return jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p), jnp.copy(p)


def _trees(buffers: list[Buffers], treedef: Any) -> dict[str, Any]:
    """One tree of the params' structure per buffer, by name."""
    return {
        name: treedef.unflatten([leaf[i] for leaf in buffers]) for i, name in enumerate(BUFFERS)
    }


def _aligned(
    grads: Updates, state: ProdigyState, params: Params
) -> tuple[leaves.Leaves, leaves.Leaves, list[Buffers], Any]:
    """Gradients, parameters and buffers, leaf by leaf in one order, and that order's treedef."""
    ps, treedef = leaves.flatten(params)
    gs = leaves.flatten_like(grads, treedef, "grads")
    leaves.check_shapes(gs, ps, treedef, "grads")
    columns = [leaves.flatten_like(getattr(state, name), treedef, "state") for name in BUFFERS]
    for column in columns:
        leaves.check_shapes(column, ps, treedef, "state")
    return gs, ps, list(zip(*columns, strict=True)), treedef


@jax.jit
def _accumulated(
    g: Any, p: Any, buffers: Buffers, idle: jax.Array, s: Scalars
) -> tuple[Buffers, jax.Array, jax.Array]:
    """A leaf's new buffers (p0 stays), and its shares of the two sums that d is estimated from."""
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(p):
        raise TypeError(f"a gradient of dtype {g.dtype} cannot update a parameter of {p.dtype}")
    dtype = leaves.real_dtype(p.dtype)
    gradient = leaves.to_real(g.astype(leaves.widest(g.dtype, p.dtype)), dtype)
    parameter = leaves.to_real(p, dtype)
    exp_avg, exp_avg_sq, total, start = (leaves.to_real(b, dtype) for b in buffers)
    s = _in_dtype(s, dtype)
    if s.maximize:
        gradient = -gradient
    if s.l2 is not None:
        gradient = gradient + s.l2 * parameter
    new = (
        s.beta1 * exp_avg + s.grad_weight * gradient,
        s.beta2 * exp_avg_sq + s.square_weight * gradient * gradient,
        s.beta3 * total + s.sum_weight * gradient,
    )
    kept = tuple(
        jnp.where(idle, old, leaves.from_real(x, old.dtype))
        for x, old in zip(new, buffers[:3], strict=True)
    )
    return kept, jnp.sum(gradient * (start - parameter)), jnp.sum(jnp.abs(new[2]))


@jax.jit
def _step(p: Any, buffers: Buffers, held: jax.Array, s: Scalars) -> jax.Array:
    """A leaf's update, in the parameter's dtype."""
    dtype = leaves.real_dtype(p.dtype)
    exp_avg, exp_avg_sq = (leaves.to_real(b, dtype) for b in buffers[:2])
    s = _in_dtype(s, dtype)
    update = -s.dlr * exp_avg / (sqrt(exp_avg_sq) + s.eps)
    if s.decay is not None:
        update = update - s.decay * leaves.to_real(p, dtype)
    return leaves.from_real(jnp.where(held, jnp.zeros_like(update), update), p.dtype)


def _in_dtype(s: Scalars, dtype: Any) -> Scalars:
    return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), s)
