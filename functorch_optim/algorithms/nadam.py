"""NAdam: Adam with Nesterov's momentum.

    mu_t = beta1 * (1 - 0.96**(t * momentum_decay) / 2),    M_t = mu_1 * ... * mu_t
    m_t  = beta1 * m_{t-1} + (1 - beta1) * g_t
    v_t  = beta2 * v_{t-1} + (1 - beta2) * g_t**2
    step = (1 - mu_t) / (1 - M_t) * g_t + mu_{t+1} / (1 - M_{t+1}) * m_t
    p_t  = p_{t-1} - lr * step / (sqrt(v_t / (1 - beta2**t)) + eps)

Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop. As in torch, the product
M_t is kept in float32.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import exp, float32, one_minus_power, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Carried, Rule, StepNumbers, per_leaf, zeros


class NAdamState(NamedTuple):
    """The product of the momenta so far, and Adam's two running averages."""

    step: Scalar
    mu_product: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam


def scalars(t: Any, h: SimpleNamespace, mu_product: Any) -> StepNumbers:
    beta1, beta2 = h.betas

    def lack(t: Any) -> Any:  # 1 - mu_t, without the loss of a subtraction from 1
        return (1 - beta1) + beta1 * (0.5 * exp(t * h.momentum_decay * math.log(0.96)))

    now, following = lack(t), lack(t + 1)
    mu_product = float32(mu_product * float32(1 - now))
    rest = 1 - mu_product
    return StepNumbers(
        mu_product=mu_product,
        beta1=beta1,
        beta2=beta2,
        grad_weight=1 - beta1,
        square_weight=1 - beta2,
        grad_step=h.lr * now / rest,
        average_step=h.lr * (1 - following) / (rest + mu_product * following),
        root_correction=sqrt(one_minus_power(beta2, t)),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v = buffers
    m = s.beta1 * m + s.grad_weight * g
    v = s.beta2 * v + s.square_weight * g * g
    denominator = sqrt(v) / s.root_correction + s.eps
    return -(s.grad_step * g + s.average_step * m) / denominator, (m, v)


RULE = Rule(
    "NAdam",
    NAdamState,
    zeros(2),
    scalars,
    leaf,
    carried=Carried(("mu_product",), lambda h: (1.0,)),
)


@per_leaf(RULE)
def nadam(
    lr: Hyperparameter = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0,
    momentum_decay: Hyperparameter = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> None:
    """Adam with Nesterov's momentum, torch.optim.NAdam's update.

    Args:
      momentum_decay: how fast the momentum rises from beta1 / 2 to beta1.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.at_least_zero("momentum_decay", momentum_decay, "Invalid momentum_decay value")
    checks.finite(lr=lr, weight_decay=weight_decay)
