"""Stochastic gradient descent, with momentum and Nesterov's momentum.

    buf_t = momentum * buf_{t-1} + (1 - dampening) * g_t        (buf_1 = g_1)
    p_t   = p_{t-1} - lr * g_t                                   momentum = 0
    p_t   = p_{t-1} - lr * buf_t                                 momentum
    p_t   = p_{t-1} - lr * (g_t + momentum * buf_t)              nesterov

Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
learning", ICML 2013. As in torch, lr multiplies the buffer (the paper puts it inside), and the
first gradient enters the buffer undamped.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, where
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, SparseGradients, StepNumbers, TorchFacts, per_leaf


class SGDState(NamedTuple):
    """`step` counts updates (torch keeps none); the buffer is `None` without momentum."""

    step: Scalar
    momentum_buffer: PerParam | None


def _has_momentum(momentum: Any) -> bool:
    return not (is_number(momentum) and momentum == 0)


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return (jnp.zeros_like(p) if _has_momentum(h.momentum) else None,)


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(
        flags={"nesterov": h.nesterov},
        lr=h.lr,
        momentum=h.momentum,
        grad_weight=where(t == 1, 1.0, 1 - h.dampening),
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (buf,) = buffers
    if buf is None:
        return -s.lr * g, (None,)
    buf = s.momentum * buf + s.grad_weight * g
    direction = g + s.momentum * buf if s.nesterov else buf
    return -s.lr * direction, (buf,)


RULE = Rule(
    "SGD",
    SGDState,
    init,
    scalars,
    leaf,
    sparse=SparseGradients(lambda h: not _has_momentum(h.momentum)),
    torch=TorchFacts(has_step=False, takes_nan=("lr",)),
)


@per_leaf(RULE)
def sgd(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0,
    dampening: Hyperparameter = 0,
    weight_decay: Hyperparameter = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> None:
    """Stochastic gradient descent, torch.optim.SGD's update.

    Args:
      dampening: share of the gradient that is kept out of the buffer.
      nesterov: look ahead by one momentum step. Needs momentum and no dampening.

    Raises:
      ValueError: a value that torch refuses, in torch's words. (As in torch, NaN passes for lr.)
    """
    checks.one_element("lr", lr)
    checks.kind("lr", lr)
    if is_number(lr) and lr < 0.0:  # type: ignore[operator]  # a number here
        raise ValueError(f"Invalid learning rate: {lr}")
    checks.at_least_zero("momentum", momentum, "Invalid momentum value")
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    damped = not (is_number(dampening) and dampening == 0)
    checks.flag("nesterov", nesterov)
    if nesterov and (not _has_momentum(momentum) or damped):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    checks.finite(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
