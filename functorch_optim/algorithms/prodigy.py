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

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import (
    as_float,
    float32,
    float_dtype,
    is_number,
    one_minus_power,
    share,
    sqrt,
)
from functorch_optim.core.counting import increment
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import (
    Buffers,
    Carried,
    Decay,
    Rule,
    StepNumbers,
    WholeTree,
    per_leaf,
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


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p), jnp.copy(p)


def start(h: SimpleNamespace) -> tuple[Any, ...]:
    return h.d0, h.d0, 0.0, 0 if h.use_bias_correction else None


def scalars(
    t: Any, h: SimpleNamespace, d: Any, d_max: Any, d_numerator: Any, steps_taken: Any
) -> StepNumbers:
    beta1, beta2 = h.betas
    dlr = d * h.lr
    if steps_taken is not None:
        taken = as_float(steps_taken) + 1
        dlr = dlr * sqrt(one_minus_power(beta2, taken)) / one_minus_power(beta1, taken)
    return StepNumbers(
        idle=jnp.asarray(h.lr <= 0),
        is_start=jnp.asarray((d == h.d0) | (d == float32(h.d0))),  # d is kept rounded
        beta1=beta1,
        beta2=beta2,
        beta3=sqrt(beta2) if h.beta3 is None else h.beta3,
        grad_weight=d * (1 - beta1),
        square_weight=d * d * (1 - beta2),
        sum_weight=d / h.d0 * (d if h.safeguard_warmup else dlr),
        numerator_weight=d / h.d0 * dlr,
        dlr=dlr,
        eps=h.eps,
        weight_decay=h.weight_decay,
        d0=h.d0,
        d_coef=h.d_coef,
        growth_rate=h.growth_rate,
        d=d,
        d_max=d_max,
        d_numerator=d_numerator,
        steps_taken=steps_taken,
    )


def measure(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> dict[str, jax.Array]:
    *_, total, start = buffers
    new_total = s.beta3 * total + s.sum_weight * g
    return {"way": jnp.sum(g * (start - p)), "size": jnp.sum(jnp.abs(new_total))}


def settle(s: StepNumbers, totals: Any) -> StepNumbers:
    size = totals["size"]
    held = s.idle | (size == 0)
    numerator = s.beta3 * s.d_numerator + s.numerator_weight * totals["way"]
    d_hat = s.d_coef * numerator / jnp.where(held, jnp.ones_like(size), size)
    d, d_max = _estimates(d_hat, s)

    def unless_held(new: Any, old: Any) -> jax.Array:
        return jnp.where(held, old, new)

    # Whole: a float32 would not count beyond 2**24.
    taken = None if s.steps_taken is None else jnp.asarray(s.steps_taken).astype(jnp.int32)
    return s.with_(
        held=held,
        eps=d * s.eps,
        d=unless_held(d, s.d),
        d_max=unless_held(d_max, s.d_max),
        d_numerator=unless_held(numerator, s.d_numerator),
        steps_taken=None if taken is None else unless_held(increment(taken), taken),
    )


def _estimates(d_hat: jax.Array, s: StepNumbers) -> tuple[Any, Any]:
    """The new d and d_max. The first d above d0 may be any; later ones grow by growth_rate."""
    d = jnp.where(s.is_start, jnp.maximum(s.d, d_hat), s.d)
    d_max = jnp.maximum(s.d_max, d_hat)
    # Not d * inf: its derivative is NaN, even where it is not chosen.
    rate = as_float(jnp.asarray(s.growth_rate, float_dtype()))
    bounded = jnp.isfinite(rate)
    bound = d * jnp.where(bounded, rate, jnp.ones_like(rate))
    return jnp.where(bounded, jnp.minimum(d_max, bound), d_max), d_max


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    *averages, start = buffers
    new = (
        s.beta1 * averages[0] + s.grad_weight * g,
        s.beta2 * averages[1] + s.square_weight * g * g,
        s.beta3 * averages[2] + s.sum_weight * g,
    )
    kept = [jnp.where(s.idle > 0, old, x) for x, old in zip(new, averages, strict=True)]
    update = -s.dlr * kept[0] / (sqrt(kept[1]) + s.eps)
    if s.decay is not None:
        update = update - share(s.dlr * s.weight_decay, p)
    return jnp.where(s.held > 0, jnp.zeros_like(update), update), (*kept, start)


RULE = Rule(
    "Prodigy",
    ProdigyState,
    init,
    scalars,
    leaf,
    whole_tree=WholeTree(measure, settle),
    carried=Carried(("d", "d_max", "d_numerator", "steps_taken"), start, in_float32=False),
    decay=Decay.BY_LEAF,
    needs_params="the step size depends on how far the parameters have come",
)


@per_leaf(RULE)
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
) -> None:
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
    checks.finite(lr=lr, weight_decay=weight_decay, d0=d0, d_coef=d_coef)


def _check_above_zero(name: str, value: Any, message: str) -> None:
    checks.at_least_zero(name, value, message)
    if is_number(value) and value == 0:
        raise ValueError(f"{message}: {value}")


def _check_beta3(beta3: Any) -> None:
    checks.kind("beta3", beta3)
    if is_number(beta3) and not 0.0 <= beta3 <= 1.0:
        raise ValueError(f"Invalid beta3 value: {beta3}")
