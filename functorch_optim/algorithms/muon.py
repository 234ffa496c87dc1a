"""Muon: momentum whose matrix is replaced by the nearest (semi-)orthogonal one.

    B_t = momentum * B_{t-1} + (1 - momentum) * g_t
    U_t = momentum * B_t + (1 - momentum) * g_t                         (nesterov; else B_t)
    O_t = NewtonSchulz(U_t):  X = U / |U|,  ns_steps times X = a X + (b X X^T + c (X X^T)^2) X
    p_t = p_{t-1} - lr * ratio * O_t

with `ratio` = sqrt(max(1, rows / columns)), or 0.2 * sqrt(max(rows, columns)) for
"match_rms_adamw". Weight decay is decoupled: `- lr * weight_decay * p`. For matrices only.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Liu et al., "Muon is
Scalable for LLM Training", 2025. As in torch, the iteration runs in bfloat16, each product summed
in float32 and rounded once with what is added to it.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import sqrt
from functorch_optim.core.pair import Hyperparameter, PerParam, Scalar
from functorch_optim.rules import Buffers, Decay, Rule, StepNumbers, TorchFacts, per_leaf, zeros


class MuonState(NamedTuple):
    """`step` counts updates (torch keeps none); the buffer is an average of gradients."""

    step: Scalar
    momentum_buffer: PerParam


def scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    a, b, c = h.ns_coefficients
    return StepNumbers(
        flags={
            "nesterov": h.nesterov,
            "ns_steps": h.ns_steps,
            "adjust_lr_fn": h.adjust_lr_fn,
        },
        lr=h.lr,
        momentum=h.momentum,
        new_weight=1 - h.momentum,
        a=a,
        b=b,
        c=c,
        eps=h.eps,
    )


def leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (buf,) = buffers
    buf = s.momentum * buf + s.new_weight * g
    direction = s.momentum * buf + s.new_weight * g if s.nesterov else buf
    rows, columns = g.shape
    if s.adjust_lr_fn == "match_rms_adamw":
        ratio = 0.2 * math.sqrt(max(rows, columns))
    else:
        ratio = math.sqrt(max(1, rows / columns))
    return -s.lr * ratio * orthogonalized(direction, s).astype(g.dtype), (buf,)


def orthogonalized(x: jax.Array, s: StepNumbers) -> jax.Array:
    """The Newton-Schulz iteration; float32 whose values are bfloat16's."""
    sharding = jax.typeof(x).sharding
    explicit = any(axis is not None for axis in sharding.spec)
    if explicit:  # every product needs whole rows: gathered here, where XLA does not choose
        x = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(None, None)))
    x = _rounded(x)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    a, b, c, eps = (value.astype(x.dtype) for value in (s.a, s.b, s.c, s.eps))
    x = _rounded(x / jnp.maximum(_rounded(sqrt(jnp.sum(x * x))), eps))
    for _ in range(s.ns_steps):
        gram = _rounded(_product(x, x.T))
        polynomial = _rounded(b * gram + c * _product(gram, gram))
        x = _rounded(a * x + _product(polynomial, x))
    x = x.T if tall else x
    return jax.sharding.reshard(x, sharding) if explicit else x


def _rounded(x: jax.Array) -> jax.Array:
    # Not a cast there and back, which XLA may leave out.
    return jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    half = jnp.bfloat16
    return jnp.matmul(x.astype(half), y.astype(half), preferred_element_type=jnp.float32)


def accepts(p: Any) -> None:
    if jnp.iscomplexobj(p):
        raise RuntimeError("Muon does not support complex parameters")
    if jnp.ndim(p) != 2:
        raise ValueError(
            "Muon only supports 2D parameters whereas we found a parameter with size: "
            f"{list(jnp.shape(p))}"
        )


RULE = Rule(
    "Muon",
    MuonState,
    zeros(1),
    scalars,
    leaf,
    decay=Decay.DECOUPLED,
    accepts=accepts,
    torch=TorchFacts(has_step=False),
)


@per_leaf(RULE)
def muon(
    lr: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.1,
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[Hyperparameter, Hyperparameter, Hyperparameter] = (
        3.4445,
        -4.775,
        2.0315,
    ),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> None:
    """Muon, torch.optim.Muon's update. For matrices: give other parameters to another optimizer.

    Args:
      lr: learning rate. Every numeric argument but ns_steps may be a number, an array or a
        schedule.
      weight_decay: decoupled decay, times lr.
      momentum: coefficient of the running average of the gradient.
      nesterov: look ahead by one momentum step.
      ns_coefficients: a, b, c of the Newton-Schulz iteration.
      eps: floor of the norm.
      ns_steps: iterations, less than 100.
      adjust_lr_fn: how lr depends on the shape: `None` or "original", or "match_rms_adamw".

    Raises:
      ValueError: a value that torch refuses, in torch's words; a parameter that is no matrix.
      RuntimeError: a complex parameter.
    """
    checks.one_element("lr", lr)
    checks.at_least_zero("lr", lr, "Learning rate should be >= 0 but is")
    checks.at_least_zero("momentum", momentum, "momentum should be >= 0 but is")
    checks.at_least_zero("weight_decay", weight_decay, "weight decay should be >= 0 but is")
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"Adjust learning rate function {adjust_lr_fn} is not supported")
    checks.count("ns_steps", ns_steps, least=0)
    if ns_steps >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if len(ns_coefficients) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
    checks.finite(lr=lr, weight_decay=weight_decay, momentum=momentum)
    for index, value in enumerate(ns_coefficients):
        checks.finite(**{f"ns_coefficients[{index}]": value})
