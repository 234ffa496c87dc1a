"""The row of LAMB, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.lamb import lamb
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Result:
    m, v = np.zeros((2, *p.shape))
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u = r + weight_decay * p
        weight_norm, step_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(u**2))
        ratio = weight_norm / step_norm if weight_norm > 0 and step_norm > 0 else 1.0
        p = p - lr * ratio * u
    return {"params": p, "exp_avg": m, "exp_avg_sq": v}


ROW = Algorithm(
    lamb,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.3, maximize=True),
        {"lr": 0.02, "betas": (0.3, 0.5), "eps": 0.1, "weight_decay": 1.0},
    ),
    formula=formula,
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="Lamb does not support sparse gradients",
    without_params=None,
    optax=(({"lr": 0.02, "weight_decay": 0.3}, lambda: optax.lamb(0.02, weight_decay=0.3)),),
)
