"""LARS: SGD with momentum, each parameter's gradient scaled to the length of the parameter.

    ratio_t = trust_coefficient * |p_{t-1}| / (|g_t| + weight_decay * |p_{t-1}| + eps)
    d_t     = lr * ratio_t * (g_t + weight_decay * p_{t-1})
    buf_t   = momentum * buf_{t-1} + d_t
    p_t     = p_{t-1} - buf_t
    p_t     = p_{t-1} - (d_t + momentum * buf_t)                          (nesterov)

The norms are those of a whole leaf. The ratio is 1 where `|p|` or `|g| + weight_decay * |p|` is 0.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017. As in the paper (and
unlike sgd) lr is in the buffer: a lower lr takes effect as the old steps fade. optax divides by
`|g + weight_decay * p|`, and not by the sum of the two norms: it agrees without weight decay.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.algorithms.lamb import norm, trust_ratio
from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, share
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf


class LarsState(NamedTuple):
    """The buffer holds steps, with lr in them; `None` without momentum."""

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
        weight_decay=h.weight_decay,
        trust_coefficient=h.trust_coefficient,
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (buf,) = buffers
    length, step_length = norm(p), norm(g)
    if s.decay is not None:
        step_length = step_length + share(s.weight_decay, length)
        g = g + share(s.weight_decay, p)
    step = s.lr * trust_ratio(length, step_length, s.trust_coefficient, s.eps) * g
    if buf is None:
        return -step, (None,)
    buf = s.momentum * buf + step
    return -(step + s.momentum * buf if s.nesterov else buf), (buf,)


RULE = Rule(
    "Lars",
    LarsState,
    init,
    scalars,
    leaf,
    needs_params="its step is relative to the norm of the parameters",
    decay=Decay.BY_LEAF,
)


@per_leaf(RULE)
def lars(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.9,
    weight_decay: Hyperparameter = 0.0,
    nesterov: bool = False,
    trust_coefficient: Hyperparameter = 0.001,
    eps: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> None:
    """LARS: SGD for large batches, with steps relative to the norm of each leaf.

    Args:
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient, and `weight_decay *
        |p|` to its norm; at least 0.
      nesterov: look ahead by one momentum step. Needs momentum.
      trust_coefficient: length of a step of lr 1, relative to the parameter's; at least 0.
      eps: added to the norm in the denominator; at least 0.

    Raises:
      ValueError: a value out of its range; nesterov without momentum.
    """
    checks.learning_rate(lr)
    checks.at_least_zero("momentum", momentum, "Invalid momentum value")
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.at_least_zero("trust_coefficient", trust_coefficient, "Invalid trust_coefficient value")
    checks.at_least_zero("eps", eps, "Invalid epsilon value")
    checks.flag("nesterov", nesterov)
    if nesterov and not _has_momentum(momentum):
        raise ValueError("Nesterov momentum requires a momentum")
    checks.finite(
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
    )
