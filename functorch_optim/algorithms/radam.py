"""RAdam: Adam that waits until the variance of its second moment is tractable.

    m_t   = beta1 * m_{t-1} + (1 - beta1) * g_t
    v_t   = beta2 * v_{t-1} + (1 - beta2) * g_t**2
    rho   = 2 / (1 - beta2) - 1
    rho_t = rho - 2 * t * beta2**t / (1 - beta2**t)
    r_t   = sqrt((rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t))
    p_t   = p_{t-1} - lr * m_t / (1 - beta1**t) * {r_t * sqrt(1 - beta2**t) / (sqrt(v_t) + eps)
                                                   if rho_t > 5, else 1}

Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020. As in torch, the
threshold is 5 (the paper's is 4), and eps is added before the bias correction.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import (
    as_float,
    is_number,
    log,
    maximum,
    one_minus_power,
    sqrt,
    where,
)
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf, zeros


class RAdamState(NamedTuple):
    """Running averages of the gradient and of its square."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam


def length_of_average(beta2: Any, t: Any) -> Any:
    """rho_t, the length of the simple average that the running average resembles after t steps."""
    if is_number(beta2) and is_number(t):
        return 2 / (1 - beta2) - 1 - 2 * t * beta2**t / (1 - beta2**t)
    # With x = -log(beta2) the formula above is coth(x/2) + t - t * coth(t*x/2). Early it subtracts
    # numbers near 2 / (1 - beta2) to get one near t; what remains when each coth loses its pole is
    # free of that cancellation. Late (t*x/2 > 1) the formula is right as it stands, and the other
    # form would subtract t from t.
    half = -log(maximum(beta2, 1e-30)) / 2
    y = as_float(t * half)
    near, far = jnp.minimum(y, 1.0), jnp.maximum(y, 1.0)
    early = t + _coth_without_pole(as_float(half)) - t * _coth_without_pole(near)
    power = jnp.exp(-2 * far)  # beta2**t
    late = 1 / jnp.tanh(half) - 2 * t * power / (1 - power)
    return jnp.where(y < 1, early, late)


def _coth_without_pole(y: Any) -> Any:
    """`coth(y) - 1/y` for y > 0: a continued fraction for small y."""
    y = jnp.asarray(y)
    near, far = jnp.minimum(y, 1.0), jnp.maximum(y, 1.0)
    fraction = jnp.full_like(near, 21.0)
    for odd in range(19, 2, -2):
        fraction = odd + near * near / fraction
    return jnp.where(y < 1, near / fraction, 1 / jnp.tanh(far) - 1 / far)


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    rho = 2 / (1 - beta2) - 1
    rho_t = length_of_average(beta2, t)
    rectified = rho_t > 5.0
    r = where(rectified, rho_t, 6.0)  # any value with a root: the branch not taken
    limit = where(rectified, rho, 6.0)
    ratio = (r - 4) * (r - 2) * limit / ((limit - 4) * (limit - 2) * r)
    return StepNumbers(
        beta1=beta1,
        beta2=beta2,
        grad_weight=1 - beta1,
        square_weight=1 - beta2,
        step_size=h.lr / one_minus_power(beta1, t),
        rectified=where(rectified, 1.0, 0.0),
        rectification=sqrt(ratio) * sqrt(one_minus_power(beta2, t)),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v = buffers
    m = s.beta1 * m + s.grad_weight * g
    v = s.beta2 * v + s.square_weight * g * g
    adaptive = jnp.where(s.rectified > 0, s.rectification / (sqrt(v) + s.eps), jnp.ones_like(v))
    return -s.step_size * m * adaptive, (m, v)


RULE = Rule("RAdam", RAdamState, zeros(2), scalars, leaf)


@per_leaf(RULE)
def radam(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> None:
    """Rectified Adam, torch.optim.RAdam's update."""
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.finite(lr=lr, weight_decay=weight_decay)
