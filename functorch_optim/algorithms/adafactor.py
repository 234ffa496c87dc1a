"""Adafactor: Adam's second moment as an outer product of row and column means.

    rho_t = min(lr, 1 / sqrt(t)),    w_t = t**beta2_decay
    R_t   = R_{t-1} + w_t * (mean over columns of g_t**2 - R_{t-1})        (C_t: over rows)
    V_t   = R_t C_t / max(mean(R_t), eps1)           a vector or scalar keeps V_t whole instead
    U_t   = g_t / sqrt(max(V_t, eps1**2))
    p_t   = p_{t-1} - max(eps2, rms(p_{t-1})) * rho_t * U_t / max(1, rms(U_t) / d)

Leading dimensions of a leaf of more than two are a batch of matrices. Weight decay is decoupled:
`- lr * weight_decay * p`.

Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018. As in
torch: no momentum, and eps1 of `None` is the machine epsilon of the parameter's dtype.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number, minimum, sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, per_leaf


class AdafactorState(NamedTuple):
    """Row and column means of the squared gradient; for 0-d and 1-d leaves its whole average."""

    step: Scalar
    row_var: PerParam
    col_var: PerParam
    variance: PerParam


def init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    if p.ndim <= 1:
        return None, None, jnp.zeros_like(p)
    mean = jnp.zeros_like(p)
    return jnp.mean(mean, -1, keepdims=True), jnp.mean(mean, -2, keepdims=True), None


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    eps1, eps2 = h.eps
    return StepNumbers(
        new_weight=t**h.beta2_decay,
        step_size=minimum(h.lr, 1 / sqrt(t)),
        eps1=eps1,
        eps2=eps2,
        clip=h.d,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    row, col, variance = buffers
    eps1 = s.machine_epsilon if s.eps1 is None else s.eps1
    square = g * g
    if variance is None:
        row = row + s.new_weight * (jnp.mean(square, -1, keepdims=True) - row)
        col = col + s.new_weight * (jnp.mean(square, -2, keepdims=True) - col)
        estimate = row * col / jnp.maximum(jnp.mean(row, -2, keepdims=True), eps1)
    else:
        variance = variance + s.new_weight * (square - variance)
        estimate = variance
    update = g / jnp.sqrt(jnp.maximum(estimate, eps1 * eps1))
    step_size = _at_least(s.eps2, _rms(p)) * s.step_size
    return -step_size / _at_least(1.0, _rms(update) / s.clip) * update, (row, col, variance)


def _at_least(bound: Any, x: jax.Array) -> jax.Array:
    """The larger one; the bound where x is NaN, as torch has it: one entry does not spoil all."""
    return jnp.maximum(bound, jnp.where(jnp.isnan(x), jnp.zeros_like(x), x))


def _rms(x: jax.Array) -> jax.Array:
    return sqrt(jnp.mean(x * x))


def accepts(p: Any) -> None:
    if jnp.iscomplexobj(p):
        raise RuntimeError("Adafactor does not support complex parameters")


RULE = Rule(
    "Adafactor",
    AdafactorState,
    init,
    scalars,
    leaf,
    needs_params="its step is relative to the size of the parameters",
    decay=Decay.DECOUPLED,
    accepts=accepts,
)


@per_leaf(RULE)
def adafactor(
    lr: Hyperparameter = 1e-2,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> None:
    """Adafactor, torch.optim.Adafactor's update.

    Args:
      lr: upper bound of the relative step size. Every numeric argument may be a number, an array
        or a schedule.
      beta2_decay: exponent with which the weight of a new square falls; at most 0.
      eps: floor of the second moment (`None`: the machine epsilon of the parameter's dtype), and
        floor of the parameter's root mean square.
      d: clipping threshold of the update's root mean square, at least 1.
      weight_decay: decoupled decay, times lr.

    Raises:
      ValueError: a value that torch refuses, in torch's words.
      RuntimeError: a complex parameter.
    """
    checks.one_element("lr", lr)
    checks.at_least_zero("lr", lr, "Learning rate should be >= 0 but is")
    checks.kind("beta2_decay", beta2_decay)
    if is_number(beta2_decay) and not beta2_decay <= 0:  # type: ignore[operator]  # a number here
        raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
    if eps[0] is not None:
        checks.at_least_zero("eps[0]", eps[0], "epsilon1 should be >= 0 but is")
    checks.at_least_zero("eps[1]", eps[1], "epsilon2 should be >= 0 but is")
    checks.kind("d", d)
    if is_number(d) and not d >= 1:  # type: ignore[operator]  # a number here
        raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
    checks.at_least_zero("weight_decay", weight_decay, "weight_decay should be >= 0 but is")
    checks.finite(weight_decay=weight_decay)
