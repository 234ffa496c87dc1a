"""Adam and AdamW: steps scaled by running averages of the gradient and of its square.

    m_t = beta1 * m_{t-1} + (1 - beta1) * g_t
    v_t = beta2 * v_{t-1} + (1 - beta2) * g_t**2
    p_t = p_{t-1} - lr * (m_t / (1 - beta1**t)) / (sqrt(v_t / (1 - beta2**t)) + eps)

amsgrad takes the largest v so far in place of v_t, before its bias correction. Weight decay is
added to the gradient (adam) or to the step, as `- lr * weight_decay * p` (adamw).

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015. Reddi, Kale, Kumar, "On the
Convergence of Adam and Beyond", ICLR 2018 (amsgrad). Loshchilov, Hutter, "Decoupled Weight Decay
Regularization", ICLR 2019 (adamw). As in torch, decoupled decay is multiplied by lr, and eps
stands outside the root and after the bias correction.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, one_minus_power, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, SparseGradients, StepNumbers, per_leaf


class AdamState(NamedTuple):
    """Running averages of the gradient, of its square, and with amsgrad the latter's maximum."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam
    max_exp_avg_sq: PerParam | None


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p) if h.amsgrad else None


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    return StepNumbers(
        beta1=beta1,
        beta2=beta2,
        grad_weight=1 - beta1,
        square_weight=1 - beta2,
        step_size=h.lr / one_minus_power(beta1, t),
        root_correction=sqrt(one_minus_power(beta2, t)),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v, v_max = buffers
    m = s.beta1 * m + s.grad_weight * g
    v = s.beta2 * v + s.square_weight * g * g
    if v_max is not None:
        v_max = jnp.maximum(v_max, v)
    denominator = sqrt(v if v_max is None else v_max) / s.root_correction + s.eps
    return -s.step_size * m / denominator, (m, v, v_max)


RULE = Rule(
    "Adam",
    AdamState,
    init,
    scalars,
    leaf,
    sparse=SparseGradients(hint=", please consider SparseAdam instead"),
)


@per_leaf(RULE)
def adam(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> None:
    """Adam, torch.optim.Adam's update."""
    _check(lr, betas, eps, weight_decay)


@per_leaf(RULE, decoupled_weight_decay=True)
def adamw(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> None:
    """Adam with decoupled weight decay, torch.optim.AdamW's update.

    Args:
      weight_decay: the parameters lose `lr * weight_decay * p` at each step; at least 0.
    """
    _check(lr, betas, eps, weight_decay)


def _check(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    checks.adam_family(lr, betas, eps, weight_decay)
    if any(is_number(beta) and not isinstance(beta, float) for beta in betas):
        raise ValueError("betas must be either both floats or both Tensors")
    for index, beta in enumerate(betas):
        checks.one_element(f"betas[{index}]", beta)
    checks.finite(lr=lr, weight_decay=weight_decay)
