"""The row of Lion, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.lion import lion
from tests.tables.algorithm import LR_ERRORS, NAN, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray, gs: np.ndarray, lrs: Any, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
) -> Result:
    m = np.zeros_like(p)
    for g, lr in zip(gs, lrs, strict=True):
        direction = np.sign(betas[0] * m + (1 - betas[0]) * g)
        p = p - lr * (direction + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return {"params": p, "exp_avg": m}


ROW = Algorithm(
    lion,
    torch_class=None,
    state=("step", "exp_avg"),
    cases=(
        {},
        *every_subset({"lr": 0.02, "betas": (0.7, 0.95)}, weight_decay=0.3, maximize=True),
        {"lr": 0.02, "betas": (0.0, 0.5)},
    ),
    formula=formula,
    typical={"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="Lion does not support sparse gradients",
    optax=(
        (
            {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3},
            lambda: optax.lion(0.02, 0.8, 0.95, weight_decay=0.3),
        ),
    ),
)
