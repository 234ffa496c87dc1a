"""Adan: Adam's averages, with Nesterov's look ahead taken from the change of the gradient.

    d_t = g_t - g_{t-1}                                                  (d_1 = 0)
    m_t = beta1 * m_{t-1} + (1 - beta1) * g_t
    v_t = beta2 * v_{t-1} + (1 - beta2) * d_t
    n_t = beta3 * n_{t-1} + (1 - beta3) * (g_t + beta2 * d_t)**2
    u_t = (m_t / (1 - beta1**t) + beta2 * v_t / (1 - beta2**t)) / (sqrt(n_t / (1 - beta3**t)) + eps)
    p_t = (p_{t-1} - lr * u_t) / (1 + lr * weight_decay)
    p_t = (1 - lr * weight_decay) * p_{t-1} - lr * u_t                   (no_prox)

Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022. As
in the authors' code, whose betas are one minus the paper's, the averages are corrected for their
start at 0 (the paper starts them at the first gradient). optax multiplies d_t and v_t by 1 - beta2,
the paper's beta2, and not by beta2: it agrees at beta2 = 0.5 alone, its weight decay with no_prox.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import one_minus_power, share, sqrt, where
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf, zeros


class AdanState(NamedTuple):
    """Running averages of the gradient, of its look-ahead's square, of its change; the last one."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam
    exp_avg_diff: PerParam
    previous_grad: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2, beta3 = h.betas
    return StepNumbers(
        flags={"no_prox": h.no_prox},
        beta1=beta1,
        beta2=beta2,
        beta3=beta3,
        grad_weight=1 - beta1,
        diff_weight=1 - beta2,
        square_weight=1 - beta3,
        has_previous=where(t == 1, 0.0, 1.0),
        step_size=h.lr / one_minus_power(beta1, t),
        diff_step_size=h.lr * beta2 / one_minus_power(beta2, t),
        root_correction=sqrt(one_minus_power(beta3, t)),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, n, v, previous = buffers
    difference = s.has_previous * (g - previous)
    ahead = g + s.beta2 * difference
    m = s.beta1 * m + s.grad_weight * g
    v = s.beta2 * v + s.diff_weight * difference
    n = s.beta3 * n + s.square_weight * ahead * ahead
    update = -(s.step_size * m + s.diff_step_size * v) / (sqrt(n) / s.root_correction + s.eps)
    if s.decay is not None:
        update = update - share(s.decay, p)
        if not s.no_prox:
            update = update / (1 + s.decay)
    return update, (m, n, v, g)


RULE = Rule("Adan", AdanState, zeros(4), scalars, leaf, decay=Decay.BY_LEAF)


@per_leaf(RULE)
def adan(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter, Hyperparameter] = (0.98, 0.92, 0.99),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    no_prox: bool = False,
    *,
    maximize: bool = False,
) -> None:
    """Adan: adaptive steps with Nesterov momentum, from three running averages.

    Args:
      betas: coefficients of the running averages of the gradient, of its change from step to step,
        and of the square of the gradient ahead, in [0, 1).
      weight_decay: the parameters are divided by `1 + lr * weight_decay` behind the step; at
        least 0.
      no_prox: multiply the parameters by `1 - lr * weight_decay` before the step instead, as adamw
        does.

    Raises:
      ValueError: a value out of its range; other than three betas.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.finite(lr=lr, weight_decay=weight_decay)
