"""The row of LARS, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.lars import lars
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
) -> Result:
    buf = np.zeros_like(p)
    for g, lr in zip(gs, lrs, strict=True):
        weight_norm, grad_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(g**2))
        norm = grad_norm + weight_decay * weight_norm
        local = 1.0
        if weight_norm > 0 and norm > 0:
            local = trust_coefficient * weight_norm / (norm + eps)
        step = lr * local * (g + weight_decay * p)
        buf = momentum * buf + step
        p = p - (step + momentum * buf if nesterov else buf)
    return {"params": p} | ({"momentum_buffer": buf} if momentum else {})


ROW = Algorithm(
    lars,
    torch_class=None,
    state=("step", "momentum_buffer"),
    cases=(
        {},
        *every_subset({"lr": 1.0}, weight_decay=0.3, maximize=True, nesterov=True),
        {"lr": 1.0, "trust_coefficient": 0.02, "eps": 0.5, "momentum": 0.5},
        {"lr": 1.0, "trust_coefficient": 0.02, "weight_decay": 0.3, "momentum": 0.0},
    ),
    formula=formula,
    typical={
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "trust_coefficient": 0.1,
        "eps": 1e-2,
    },
    extreme={
        "lr": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "trust_coefficient": 1.0,
        "eps": 0.0,
    },
    errors=(
        *LR_ERRORS,
        ({"momentum": -0.9}, "Invalid momentum value: -0.9"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"trust_coefficient": -1.0}, "Invalid trust_coefficient value: -1.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"momentum": 0.0, "nesterov": True}, "Nesterov momentum requires a momentum"),
    ),
    accepted=({"lr": TWO[:1]}, {"momentum": 2.0}),
    sparse_error="Lars does not support sparse gradients",
    without_params=None,
    optax=(
        # Without weight decay: optax divides by the norm of the sum of gradient and decay.
        (
            {"lr": 1.0, "trust_coefficient": 0.02, "eps": 0.1},
            lambda: optax.lars(1.0, trust_coefficient=0.02, eps=0.1),
        ),
        (
            {"lr": 1.0, "trust_coefficient": 0.02, "nesterov": True, "momentum": 0.5},
            lambda: optax.lars(1.0, trust_coefficient=0.02, nesterov=True, momentum=0.5),
        ),
    ),
)
