"""The row of NAdam."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.nadam,
    "NAdam",
    state=("step", "mu_product", "exp_avg", "exp_avg_sq"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, maximize=True, decoupled_weight_decay=True),
        {"betas": (0.3, 0.5), "momentum_decay": 0.1},
        {"betas": (0.0, 0.5)},
        {"betas": (0.5, 0.0), "eps": 0.5},
        {"momentum_decay": 0.0},
        {"momentum_decay": 2.0},
    ),
    typical={
        "lr": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "momentum_decay": 0.5,
    },
    extreme={
        "lr": 1.0,
        "betas": (0.0, 0.0),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_decay": 0.0,
    },
    errors=(
        *ADAM_FAMILY_ERRORS,
        ({"momentum_decay": -0.1}, "Invalid momentum_decay value: -0.1"),
        ({"weight_decay": -1.0, "momentum_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="NAdam does not support sparse gradients",
    difference=(1e-3, 1e-3),  # mu_product is rounded to float32, as in torch
)
