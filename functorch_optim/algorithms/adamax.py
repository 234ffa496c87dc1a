"""Adamax: Adam with the largest recent gradient in place of the root mean square.

    m_t = beta1 * m_{t-1} + (1 - beta1) * g_t
    u_t = max(beta2 * u_{t-1}, |g_t| + eps)
    p_t = p_{t-1} - lr / (1 - beta1**t) * m_t / u_t

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1. As in torch, eps
stands inside the maximum (the paper has none).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import one_minus_power
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf, zeros


class AdamaxState(NamedTuple):
    """Running average of the gradient, and the decaying maximum of its size."""

    step: Scalar
    exp_avg: PerParam
    exp_inf: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    step_size = h.lr / one_minus_power(beta1, t)
    return StepNumbers(
        beta1=beta1, beta2=beta2, grad_weight=1 - beta1, step_size=step_size, eps=h.eps
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, u = buffers
    m = s.beta1 * m + s.grad_weight * g
    u = jnp.maximum(s.beta2 * u, jnp.abs(g) + s.eps)
    return -s.step_size * m / u, (m, u)


RULE = Rule("Adamax", AdamaxState, zeros(2), scalars, leaf)


@per_leaf(RULE)
def adamax(
    lr: Hyperparameter = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    *,
    maximize: bool = False,
) -> None:
    """Adamax, torch.optim.Adamax's update.

    Args:
      betas: coefficients of the running average and of the decaying maximum, in [0, 1).
      eps: added to the size of the gradient.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.finite(lr=lr, weight_decay=weight_decay)
