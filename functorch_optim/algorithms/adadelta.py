"""Adadelta: steps in the units of the parameters, from two running mean squares.

    v_t = rho * v_{t-1} + (1 - rho) * g_t**2
    d_t = sqrt(u_{t-1} + eps) / sqrt(v_t + eps) * g_t
    u_t = rho * u_{t-1} + (1 - rho) * d_t**2
    p_t = p_{t-1} - lr * d_t

Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012. The paper has no lr (1 here).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf, zeros


class AdadeltaState(NamedTuple):
    """Running mean squares of the gradient and of the step."""

    step: Scalar
    square_avg: PerParam
    acc_delta: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(lr=h.lr, rho=h.rho, new_weight=1 - h.rho, eps=h.eps)


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    v, u = buffers
    v = s.rho * v + s.new_weight * g * g
    delta = sqrt(u + s.eps) / sqrt(v + s.eps) * g
    u = s.rho * u + s.new_weight * delta * delta
    return -s.lr * delta, (v, u)


RULE = Rule("Adadelta", AdadeltaState, zeros(2), scalars, leaf)


@per_leaf(RULE)
def adadelta(
    lr: Hyperparameter = 1.0,
    rho: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0,
    *,
    maximize: bool = False,
) -> None:
    """Adadelta, torch.optim.Adadelta's update.

    Args:
      lr: factor of the step. Every numeric argument may be a number, an array or a schedule.
      rho: coefficient of the running averages, in [0, 1].
      eps: added inside both roots.
    """
    checks.learning_rate(lr)
    checks.kind("rho", rho)
    if is_number(rho) and not 0.0 <= rho <= 1.0:  # type: ignore[operator]  # a number here
        raise ValueError(f"Invalid rho value: {rho}")
    checks.at_least_zero("eps", eps, "Invalid epsilon value")
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.finite(lr=lr, weight_decay=weight_decay)
