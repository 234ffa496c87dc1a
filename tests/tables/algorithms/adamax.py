"""The row of Adamax."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.adamax,
    "Adamax",
    state=("step", "exp_avg", "exp_inf"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, maximize=True),
        {"betas": (0.3, 0.5)},
        {"betas": (0.0, 0.0), "eps": 0.1},
        {"betas": (0.99, 0.9), "eps": 0.5},
    ),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"betas": (0, 0.5)}),
    sparse_error="Adamax does not support sparse gradients",
)
