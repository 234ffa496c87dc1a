"""Adagrad: steps scaled by the root of the sum of all squared gradients.

    sum_t = sum_{t-1} + g_t**2                              (sum_0 = initial_accumulator_value)
    p_t   = p_{t-1} - lr / (1 + (t - 1) * lr_decay) * g_t / (sqrt(sum_t) + eps)

Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 2011. As in torch, eps stands outside the root.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, SparseGradients, StepNumbers, TorchFacts, per_leaf


class AdagradState(NamedTuple):
    """The sum of squared gradients."""

    step: Scalar
    sum: PerParam


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return (jnp.full_like(p, h.initial_accumulator_value),)


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(lr=h.lr / (1 + (t - 1) * h.lr_decay), eps=h.eps)


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (total,) = buffers
    total = total + g * g
    return -s.lr * g / (sqrt(total) + s.eps), (total,)


RULE = Rule(
    "Adagrad",
    AdagradState,
    init,
    scalars,
    leaf,
    sparse=SparseGradients(lambda h: True, with_decay=False),
    torch=TorchFacts(eager=True),
)


@per_leaf(RULE)
def adagrad(
    lr: Hyperparameter = 1e-2,
    lr_decay: Hyperparameter = 0,
    weight_decay: Hyperparameter = 0,
    initial_accumulator_value: Hyperparameter = 0,
    eps: Hyperparameter = 1e-10,
    *,
    maximize: bool = False,
) -> None:
    """Adagrad, torch.optim.Adagrad's update.

    Args:
      lr_decay: how fast the learning rate falls: it is divided by `1 + (t - 1) * lr_decay`.
      initial_accumulator_value: where the sums start.
    """
    checks.learning_rate(lr)
    checks.at_least_zero("lr_decay", lr_decay, "Invalid lr_decay value")
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.at_least_zero(
        "initial_accumulator_value",
        initial_accumulator_value,
        "Invalid initial_accumulator_value value",
    )
    checks.at_least_zero("eps", eps, "Invalid epsilon value")
    checks.finite(lr=lr, lr_decay=lr_decay, weight_decay=weight_decay)
