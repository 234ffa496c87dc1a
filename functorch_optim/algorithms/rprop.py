"""Rprop: each element has a step size of its own, which follows the sign of its gradient.

    step_size grows by eta+ where the gradient keeps its sign, shrinks by eta- where it turns, and
    stays within step_sizes; where the gradient turned it counts as 0, now and for the next sign.
    p_t = p_{t-1} - sign(g_t) * step_size_t

Riedmiller, Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
Algorithm", 1993 (the variant without weight backtracking). As in torch, lr is only the first step
size: later changes and schedules of lr have no effect.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Rule, StepNumbers, per_leaf


class RpropState(NamedTuple):
    """The gradient before, 0 where it had turned, and the step sizes."""

    step: Scalar
    prev: PerParam
    step_size: PerParam


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return jnp.zeros_like(p), jnp.full_like(p, h.lr)


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    (eta_minus, eta_plus), (smallest, largest) = h.etas, h.step_sizes
    return StepNumbers(eta_minus=eta_minus, eta_plus=eta_plus, smallest=smallest, largest=largest)


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    prev, step_size = buffers
    agreement = g * prev
    one = jnp.ones_like(g)
    factor = jnp.where(agreement > 0, s.eta_plus, jnp.where(agreement < 0, s.eta_minus, one))
    step_size = jnp.clip(step_size * factor, s.smallest, s.largest)
    g = jnp.where(agreement < 0, jnp.zeros_like(g), g)
    # As in torch, whose sign of NaN is 0: an entry without a gradient stays, and is as if new.
    sign = jnp.where(jnp.isnan(g), jnp.zeros_like(g), jnp.sign(g))
    return -sign * step_size, (g, step_size)


RULE = Rule("Rprop", RpropState, init, scalars, leaf)


@per_leaf(RULE)
def rprop(
    lr: Hyperparameter = 1e-2,
    etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2),
    step_sizes: tuple[Hyperparameter, Hyperparameter] = (1e-6, 50),
    *,
    maximize: bool = False,
) -> None:
    """Resilient backpropagation, torch.optim.Rprop's update. For full batches.

    Args:
      lr: the first step size. Every numeric argument may be a number, an array or a schedule.
      etas: factors of the step size where the gradient turns, and where it keeps its sign.
      step_sizes: the smallest and the largest step size.
    """
    checks.learning_rate(lr)
    low, high = etas[0], etas[1]
    in_order = not is_number(low) or 0.0 < low < 1.0  # type: ignore[operator]  # a number here
    in_order = in_order and (not is_number(high) or high > 1.0)  # type: ignore[operator]  # a number
    if not in_order:
        raise ValueError(f"Invalid eta values: {low}, {high}")
    checks.finite(**{"step_sizes[0]": step_sizes[0]})
