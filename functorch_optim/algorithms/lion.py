"""Lion: the sign of a running average, so that every element moves by lr.

    u_t = sign(beta1 * m_{t-1} + (1 - beta1) * g_t)
    m_t = beta2 * m_{t-1} + (1 - beta2) * g_t
    p_t = p_{t-1} - lr * u_t - lr * weight_decay * p_{t-1}

The step leans more on the new gradient than the average that is kept (beta1 < beta2). sign(0) is 0.
Its lr is to be 3 to 10 times smaller than Adam's, and its weight decay larger by as much.

Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023. A complex leaf takes the
signs of its real and of its imaginary part, as its other numbers are computed (optax divides by the
absolute value).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf, zeros


class LionState(NamedTuple):
    """A running average of the gradient."""

    step: Scalar
    exp_avg: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    return StepNumbers(
        lr=h.lr,
        beta1=beta1,
        beta2=beta2,
        sign_weight=1 - beta1,
        grad_weight=1 - beta2,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (m,) = buffers
    direction = jnp.sign(s.beta1 * m + s.sign_weight * g)
    return -s.lr * direction, (s.beta2 * m + s.grad_weight * g,)


RULE = Rule("Lion", LionState, zeros(1), scalars, leaf, decay=Decay.DECOUPLED)


@per_leaf(RULE)
def lion(
    lr: Hyperparameter = 1e-4,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> None:
    """Lion: steps of one size, in the direction of a running average's sign.

    Args:
      betas: coefficients of the average whose sign is taken, and of the average that is kept, in
        [0, 1).
      weight_decay: the parameters lose `lr * weight_decay * p` at each step; at least 0.

    Raises:
      ValueError: a value out of its range.
    """
    checks.learning_rate(lr)
    checks.averages(betas)
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.finite(lr=lr, weight_decay=weight_decay)
