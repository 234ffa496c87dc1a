"""ADOPT: Adam whose second moment has no part of the gradient that it divides.

    v_1 = g_1**2,  m_1 = 0,  p_1 = p_0                                    (nothing moves yet)
    c_t = (t - 1)**clip_exponent
    m_t = beta1 * m_{t-1} + (1 - beta1) * clip(g_t / max(sqrt(v_{t-1}), eps), -c_t, c_t)
    p_t = p_{t-1} - lr * m_t
    v_t = beta2 * v_{t-1} + (1 - beta2) * g_t**2

Normalizing before averaging, and by the past alone, makes it converge with any beta2. Weight decay
is added to the gradient, or decoupled to the step, as `- lr * weight_decay * p`.

Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate", NeurIPS
2024. As in the authors' code: no bias corrections, and no decoupled decay at the first update.
(optax.contrib.adopt, but for its lack of weight decay.)
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import power, share, sqrt, where
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf, zeros


class AdoptState(NamedTuple):
    """Running averages of the normalized gradient, and of the gradient's square."""

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
        square_weight=where(t == 1, 1.0, 1 - beta2),
        moves=where(t == 1, 0.0, 1.0),
        clip=None if h.clip_exponent is None else power(t - 1, h.clip_exponent),
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    m, v = buffers
    normalized = g / jnp.maximum(sqrt(v), s.eps)
    if s.clip is not None:
        normalized = jnp.clip(normalized, -s.clip, s.clip)
    # Not a product: what is not clipped may be infinite at the first update.
    normalized = jnp.where(s.moves == 0, jnp.zeros_like(g), normalized)
    m = s.beta1 * m + s.grad_weight * normalized
    update = -s.lr * m
    if s.decay is not None:
        update = update - share(s.moves * s.decay, p)
    return update, (m, s.beta2 * v + s.square_weight * g * g)


RULE = Rule("ADOPT", AdoptState, zeros(2), scalars, leaf, decay=Decay.BY_LEAF)


@per_leaf(RULE)
def adopt(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.9999),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    clip_exponent: Hyperparameter | None = 0.25,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> None:
    """ADOPT: Adam that converges with any beta2. Its first update only measures the gradient.

    Args:
      betas: coefficients of the running averages of the normalized gradient and of the gradient's
        square, in [0, 1).
      eps: floor of the root in the denominator; at least 0.
      clip_exponent: update number t clips the normalized gradient to `(t - 1)**clip_exponent`;
        `None` clips nothing.

    Raises:
      ValueError: a value out of its range.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    if clip_exponent is not None:
        checks.at_least_zero("clip_exponent", clip_exponent, "Invalid clip_exponent value")
    checks.finite(lr=lr, weight_decay=weight_decay)
