"""Adam for sparse gradients: it works on the rows that the gradient has, and on no others.

    m_t = m_{t-1} + (1 - beta1) * (g_t - m_{t-1})           in the rows of g_t;
    v_t = v_{t-1} + (1 - beta2) * (g_t**2 - v_{t-1})        all others stay
    p_t = p_{t-1} - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m_t / (sqrt(v_t) + eps)

t counts all updates, not those of a row. eps is added to the root without its bias correction: the
second form of Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 ("epsilon hat").
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, one_minus_power, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import (
    Buffers,
    Rule,
    SparseGradients,
    StepNumbers,
    TorchFacts,
    per_leaf,
    zeros,
)


class SparseAdamState(NamedTuple):
    """Running averages of the gradient and of its square, in every row up to its last update."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    return StepNumbers(
        grad_weight=1 - beta1,
        square_weight=1 - beta2,
        step_size=h.lr * sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v = buffers
    m = m + s.grad_weight * (g - m)
    v = v + s.square_weight * (g * g - v)
    return -s.step_size * m / (sqrt(v) + s.eps), (m, v)


def accepts(p: Any) -> None:
    if jnp.iscomplexobj(p):
        raise ValueError("SparseAdam does not support complex parameters")


RULE = Rule(
    "SparseAdam",
    SparseAdamState,
    zeros(2),
    scalars,
    leaf,
    accepts=accepts,
    sparse=SparseGradients(
        lambda h: True,
        dense_error="SparseAdam does not support dense gradients, please consider Adam instead",
    ),
    torch=TorchFacts(step_is_int=True, lists_complex=True),
)


@per_leaf(RULE)
def sparse_adam(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    maximize: bool = False,
) -> None:
    """Adam for sparse gradients, torch.optim.SparseAdam's update.

    Gradients are BCOO arrays of `jax.experimental.sparse`, as `sparse_value_and_grad` makes them,
    and so are the updates. Rows without a gradient keep their averages and their values. Parameters
    with dense gradients belong to another algorithm: see `partition`.

    Args:
      lr: learning rate, above 0. Every numeric argument may be a number, an array or a schedule.
      eps: added to the root in the denominator; above 0.

    Raises:
      ValueError: a value that torch refuses, in torch's words; from init, a complex parameter.
      RuntimeError: from update, a dense gradient.
    """
    checks.one_element("lr", lr)
    _above_zero("lr", lr, "Invalid learning rate")
    _above_zero("eps", eps, "Invalid epsilon value")
    checks.averages(betas)
    checks.finite(lr=lr)


def _above_zero(name: str, value: Any, message: str) -> None:
    checks.kind(name, value)
    if is_number(value) and not value > 0.0:
        raise ValueError(f"{message}: {value}")
