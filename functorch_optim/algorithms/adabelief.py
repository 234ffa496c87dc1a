"""AdaBelief: Adam, divided by how far gradients are from their average, not by their size.

    m_t = beta1 * m_{t-1} + (1 - beta1) * g_t
    s_t = beta2 * s_{t-1} + (1 - beta2) * (g_t - m_t)**2 + eps
    p_t = p_{t-1} - lr * (m_t / (1 - beta1**t)) / (sqrt(s_t / (1 - beta2**t)) + eps)

amsgrad takes the largest s so far in place of s_t, before its bias correction. Weight decay is
added to the gradient, or decoupled to the step, as `- lr * weight_decay * p`.

Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
NeurIPS 2020. eps stands inside and outside of the root, and stays in s, as in the authors' code
(optax.adabelief with eps_root=eps). That code also has RAdam's rectification, which is no part of
the paper's algorithm and is left out (its `rectify=False`), and decoupled decay as its default.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import one_minus_power, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf


class AdaBeliefState(NamedTuple):
    """Running averages of the gradient, of its squared distance, and the latter's maximum."""

    step: Scalar
    exp_avg: PerParam
    exp_avg_var: PerParam
    max_exp_avg_var: PerParam | None


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
    m, var, var_max = buffers
    m = s.beta1 * m + s.grad_weight * g
    var = s.beta2 * var + s.square_weight * (g - m) * (g - m) + s.eps
    if var_max is not None:
        var_max = jnp.maximum(var_max, var)
    denominator = sqrt(var if var_max is None else var_max) / s.root_correction + s.eps
    return -s.step_size * m / denominator, (m, var, var_max)


RULE = Rule("AdaBelief", AdaBeliefState, init, scalars, leaf)


@per_leaf(RULE)
def adabelief(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-16,
    weight_decay: Hyperparameter = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> None:
    """AdaBelief: large steps where gradients are as expected, small ones where they are not.

    Args:
      betas: coefficients of the running averages of the gradient and of the squared distance to
        it, in [0, 1).
      eps: added to the second average at each step, and to its root in the denominator; at least 0.
      amsgrad: divide by the largest second average so far.

    Raises:
      ValueError: a value out of its range.
    """
    checks.adam_family(lr, betas, eps, weight_decay)
    checks.finite(lr=lr, weight_decay=weight_decay)
