"""The row of Adagrad."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.adagrad,
    "Adagrad",
    state=("step", "sum"),
    cases=(
        {},
        *every_subset({"lr": 0.05}, weight_decay=0.1, maximize=True),
        {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
        {"lr_decay": 1.0, "eps": 0.5},
    ),
    typical={
        "lr": 0.1,
        "lr_decay": 0.1,
        "weight_decay": 0.1,
        "initial_accumulator_value": 0.1,
        "eps": 1e-3,
    },
    extreme={
        "lr": 1.0,
        "lr_decay": 0.0,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
    },
    errors=(
        *LR_ERRORS,
        ({"lr_decay": -1.0}, "Invalid lr_decay value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        (
            {"initial_accumulator_value": -1.0},
            "Invalid initial_accumulator_value value: -1.0",
        ),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"eps": -1.0, "lr_decay": -2.0}, "Invalid lr_decay value: -2.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"lr_decay": 10.0}),
)
