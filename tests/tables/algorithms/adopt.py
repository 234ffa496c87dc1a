"""The row of ADOPT, and its formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from functorch_optim.algorithms.adopt import adopt
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, Result, every_subset


def formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clip_exponent: float | None = 0.25,
    decoupled_weight_decay: bool = False,
) -> Result:
    coupled = 0.0 if decoupled_weight_decay else weight_decay
    m, v = np.zeros_like(p), (gs[0] + coupled * p) ** 2
    for t, (g, lr) in enumerate(zip(gs[1:], lrs[1:], strict=True), 1):
        g = g + coupled * p
        if decoupled_weight_decay:
            p = p - lr * weight_decay * p
        normed = g / np.maximum(np.sqrt(v), eps)
        if clip_exponent is not None:
            normed = np.clip(normed, -(t**clip_exponent), t**clip_exponent)
        m = betas[0] * m + (1 - betas[0]) * normed
        p = p - lr * m
        v = betas[1] * v + (1 - betas[1]) * g**2
    return {"params": p, "exp_avg": m, "exp_avg_sq": v}


ROW = Algorithm(
    adopt,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq"),
    cases=(
        {},
        *every_subset(
            {"lr": 0.02},
            weight_decay=0.3,
            decoupled_weight_decay=True,
            clip_exponent=None,
        ),
        {
            "lr": 0.02,
            "betas": (0.3, 0.5),
            "eps": 0.1,
            "clip_exponent": 0.1,
            "maximize": True,
            "weight_decay": 0.1,
        },
    ),
    formula=formula,
    typical={
        "lr": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "clip_exponent": 0.25,
    },
    extreme={
        "lr": 1.0,
        "betas": (0.0, 0.0),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_exponent": 0.0,
    },
    errors=(*ADAM_FAMILY_ERRORS, ({"clip_exponent": -0.1}, "Invalid clip_exponent value: -0.1")),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"clip_exponent": None}),
    sparse_error="ADOPT does not support sparse gradients",
    steps=4,
    optax=(
        ({"lr": 0.02, "betas": (0.9, 0.99)}, lambda: optax.contrib.adopt(0.02, b2=0.99)),
        (
            {"lr": 0.02, "clip_exponent": None},
            lambda: optax.contrib.adopt(0.02, use_clipping=False),
        ),
    ),
)
