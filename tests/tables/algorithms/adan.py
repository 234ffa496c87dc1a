"""The row of Adan, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.adan import adan
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
) -> Result:
    b1, b2, b3 = betas
    m, v, n = np.zeros((3, *p.shape))
    last = gs[0]
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        change, last = g - last, g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        step_size = lr / (np.sqrt(n / (1 - b3**t)) + eps)
        moved = step_size * (m / (1 - b1**t) + b2 * v / (1 - b2**t))
        if no_prox:
            p = p * (1 - lr * weight_decay) - moved
        else:
            p = (p - moved) / (1 + lr * weight_decay)
    return {"params": p, "exp_avg": m, "exp_avg_sq": n, "exp_avg_diff": v, "previous_grad": last}


ROW = Algorithm(
    adan,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=2.0, no_prox=True, maximize=True),
        {"lr": 0.02, "betas": (0.3, 0.6, 0.5), "eps": 0.1, "weight_decay": 0.3},
        {"betas": (0.0, 0.0, 0.0), "eps": 0.1},
    ),
    formula=formula,
    typical={"lr": 0.1, "betas": (0.8, 0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"betas": (1.0, 0.9, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, 0.9, -0.1)}, "Invalid beta parameter at index 2: -0.1"),
        ({"betas": (0.9, 0.99)}, "betas must be exactly 3 values, but got 2"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.8, 0.99]}),
    sparse_error="Adan does not support sparse gradients",
    optax=(
        # At beta2 = 0.5 alone: optax looks ahead by 1 - beta2 and not by beta2. Its decay has no
        # proximal form.
        (
            {"lr": 0.02, "betas": (0.9, 0.5, 0.95), "weight_decay": 0.3, "no_prox": True},
            lambda: optax.adan(0.02, 0.9, 0.5, 0.95, eps_root=0.0, weight_decay=0.3),
        ),
    ),
)
