"""RMSprop: steps scaled by a running root mean square of the gradient.

    v_t   = alpha * v_{t-1} + (1 - alpha) * g_t**2
    a_t   = alpha * a_{t-1} + (1 - alpha) * g_t                      (centered)
    d_t   = g_t / (sqrt(v_t - a_t**2) + eps)                         (a_t = 0 unless centered)
    buf_t = momentum * buf_{t-1} + d_t
    p_t   = p_{t-1} - lr * buf_t                                     (d_t without momentum)

Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012. Centered: Graves, "Generating
Sequences With Recurrent Neural Networks", 2013. As in torch, eps stands outside the root, and
nothing keeps `v_t - a_t**2` from being negative by rounding: the result is then NaN.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf


class RMSpropState(NamedTuple):
    """The mean square; the momentum buffer if there is momentum; the mean if centered."""

    step: Scalar
    square_avg: PerParam
    momentum_buffer: PerParam | None
    grad_avg: PerParam | None


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    has_momentum = not (is_number(h.momentum) and h.momentum == 0)
    return (
        jnp.zeros_like(p),
        jnp.zeros_like(p) if has_momentum else None,
        jnp.zeros_like(p) if h.centered else None,
    )


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(
        lr=h.lr, alpha=h.alpha, new_weight=1 - h.alpha, momentum=h.momentum, eps=h.eps
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    v, buf, mean = buffers
    v = s.alpha * v + s.new_weight * g * g
    variance = v
    if mean is not None:
        mean = s.alpha * mean + s.new_weight * g
        variance = v - mean * mean
    direction = g / (sqrt(variance) + s.eps)
    if buf is not None:
        direction = buf = s.momentum * buf + direction
    return -s.lr * direction, (v, buf, mean)


RULE = Rule("RMSprop", RMSpropState, init, scalars, leaf)


@per_leaf(RULE)
def rmsprop(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    momentum: Hyperparameter = 0,
    centered: bool = False,
    maximize: bool = False,
) -> None:
    """RMSprop, torch.optim.RMSprop's update.

    Args:
      alpha: coefficient of the running averages.
      centered: divide by the standard deviation instead of the root mean square.
    """
    checks.learning_rate(lr)
    checks.at_least_zero("eps", eps, "Invalid epsilon value")
    checks.at_least_zero("momentum", momentum, "Invalid momentum value")
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.at_least_zero("alpha", alpha, "Invalid alpha value")
    checks.finite(lr=lr, weight_decay=weight_decay, momentum=momentum, alpha=alpha)
