"""The row of ASGD."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import LR_ERRORS, Algorithm, every_subset

ROW = Algorithm(
    fo.asgd,
    "ASGD",
    state=("step", "eta", "mu", "ax"),
    cases=(
        {},
        *every_subset({"lr": 0.05, "t0": 4}, weight_decay=0.1, maximize=True),
        {"lambd": 0.1, "alpha": 0.5, "t0": 0},
        {"lr": 0.1, "lambd": 0.5, "alpha": 2.0, "t0": 2.5},
        {"lambd": 0.0, "alpha": 0.0},
    ),
    typical={"lr": 0.1, "lambd": 0.1, "alpha": 0.75, "t0": 1.3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "lambd": 0.0, "alpha": 0.0, "t0": 0.0, "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ),
    accepted=({"lambd": -1.0}, {"t0": -5}),
    sparse_error="ASGD does not support sparse gradients",
    without_params=None,
    steps=4,
    difference=(1e-3, 1e-3),  # eta and mu are rounded to float32, as in torch
)
