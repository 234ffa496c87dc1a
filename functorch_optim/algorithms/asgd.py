"""Averaged stochastic gradient descent.

    p_t     = (1 - lambd * eta_t) * p_{t-1} - eta_t * g_t
    ax_t    = ax_{t-1} + mu_t * (p_t - ax_{t-1})
    eta_{t+1} = lr / (1 + lambd * lr * t)**alpha,    mu_{t+1} = 1 / max(1, t - t0)

Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992. As in torch, eta
and mu are kept in float32 and are those of the step before, so that a change of lr takes effect
one step late; the average `ax` is in the state and never put into the parameters.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import maximum
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Carried, Rule, StepNumbers, per_leaf, zeros


class ASGDState(NamedTuple):
    """The next step size and weight of the average, and the averaged parameters."""

    step: Scalar
    eta: Scalar
    mu: Scalar
    ax: PerParam


def scalars(t: Any, h: SimpleNamespace, eta: Any, mu: Any) -> StepNumbers:
    return StepNumbers(
        eta=h.lr / (1 + h.lambd * h.lr * t) ** h.alpha,
        mu=1 / maximum(1, t - h.t0),
        eta_now=eta,
        mu_now=mu,
        lambd=h.lambd,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (ax,) = buffers
    update = -s.eta_now * (g + s.lambd * p)
    ax = ax + s.mu_now * (p + update - ax)
    return update, (ax,)


RULE = Rule(
    "ASGD",
    ASGDState,
    zeros(1),
    scalars,
    leaf,
    needs_params="it averages the parameters",
    carried=Carried(("eta", "mu"), lambda h: (h.lr, 1.0)),
)


@per_leaf(RULE)
def asgd(
    lr: Hyperparameter = 1e-2,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: Hyperparameter = 1e6,
    weight_decay: Hyperparameter = 0,
    maximize: bool = False,
) -> None:
    """Averaged stochastic gradient descent, torch.optim.ASGD's update.

    Args:
      lambd: decay of the parameters.
      alpha: exponent with which the step size falls.
      t0: the step after which `ax` averages; before, it follows the parameters.
    """
    checks.learning_rate(lr)
    checks.at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")
    checks.finite(lr=lr, lambd=lambd, alpha=alpha, weight_decay=weight_decay)
