"""LAMB: Adam's direction, each parameter's made as long as the parameter itself.

    m_t = beta1 * m_{t-1} + (1 - beta1) * g_t
    v_t = beta2 * v_{t-1} + (1 - beta2) * g_t**2
    u_t = (m_t / (1 - beta1**t)) / (sqrt(v_t / (1 - beta2**t)) + eps) + weight_decay * p_{t-1}
    p_t = p_{t-1} - lr * (|p_{t-1}| / |u_t|) * u_t

The norms are those of a whole leaf; the ratio is 1 where either is 0. Weight decay is decoupled and
inside the ratio: it turns the step and does not lengthen it.

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
with its phi the identity (optax.lamb).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import one_minus_power, share, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf, zeros


class LambState(NamedTuple):
    """Running averages of the gradient and of its square."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_sq: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    beta1, beta2 = h.betas
    return StepNumbers(
        lr=h.lr,
        beta1=beta1,
        beta2=beta2,
        grad_weight=1 - beta1,
        square_weight=1 - beta2,
        correction=one_minus_power(beta1, t),
        root_correction=sqrt(one_minus_power(beta2, t)),
        eps=h.eps,
        weight_decay=h.weight_decay,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v = buffers
    m = s.beta1 * m + s.grad_weight * g
    v = s.beta2 * v + s.square_weight * g * g
    direction = m / s.correction / (sqrt(v) / s.root_correction + s.eps)
    if s.decay is not None:
        direction = direction + share(s.weight_decay, p)
    return -s.lr * trust_ratio(norm(p), norm(direction)) * direction, (m, v)


def norm(x: jax.Array) -> jax.Array:
    return sqrt(jnp.sum(x * x))


def trust_ratio(
    length: jax.Array, step_length: jax.Array, factor: Any = 1.0, eps: Any = 0.0
) -> Any:
    """`factor * length / (step_length + eps)`; 1 where either length is 0."""
    no_ratio = (length == 0) | (step_length == 0)
    divisor = jnp.where(no_ratio, jnp.ones_like(step_length), step_length + eps)
    return jnp.where(no_ratio, jnp.ones_like(length), factor * length / divisor)


RULE = Rule(
    "Lamb",
    LambState,
    zeros(2),
    scalars,
    leaf,
    needs_params="its step is as long as the parameters",
    decay=Decay.BY_LEAF,
)


@per_leaf(RULE)
def lamb(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> None:
    """LAMB: Adam for large batches, with steps relative to the norm of each leaf.

    Args:
      weight_decay: `weight_decay * p` is added to Adam's direction, before its length is set; at
        least 0.

    Raises:
      ValueError: a value out of its range.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.finite(lr=lr, weight_decay=weight_decay)
