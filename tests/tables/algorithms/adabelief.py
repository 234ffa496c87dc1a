"""The row of AdaBelief, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.adabelief import adabelief
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Result:
    m, s, largest = np.zeros((3, *p.shape))
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        if decoupled_weight_decay:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * (g - m) ** 2 + eps
        largest = np.maximum(largest, s)
        root = np.sqrt((largest if amsgrad else s) / (1 - betas[1] ** t))
        p = p - lr * m / (1 - betas[0] ** t) / (root + eps)
    result = {"params": p, "exp_avg": m, "exp_avg_var": s}
    return result | ({"max_exp_avg_var": largest} if amsgrad else {})


ROW = Algorithm(
    adabelief,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_var", "max_exp_avg_var"),
    cases=(
        {},
        *every_subset(
            {"lr": 0.02, "eps": 1e-8},
            weight_decay=0.3,
            amsgrad=True,
            decoupled_weight_decay=True,
        ),
        {"lr": 0.02, "betas": (0.3, 0.5), "eps": 0.1, "amsgrad": True, "maximize": True},
    ),
    formula=formula,
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-16, "weight_decay": 0.0},
    flags={"amsgrad": True},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="AdaBelief does not support sparse gradients",
    optax=(({"lr": 0.02, "eps": 1e-8}, lambda: optax.adabelief(0.02, eps=1e-8, eps_root=1e-8)),),
)
