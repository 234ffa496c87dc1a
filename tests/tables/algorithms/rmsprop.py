"""The row of RMSprop."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.rmsprop,
    "RMSprop",
    state=("step", "square_avg", "momentum_buffer", "grad_avg"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, momentum=0.9, centered=True),
        {"maximize": True, "weight_decay": 0.1},
        {"alpha": 0.3},
        {"alpha": 0.0},
        {"alpha": 1.0, "eps": 0.1},
        {"eps": 0.5, "momentum": 0.3},
    ),
    typical={"lr": 0.1, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.7},
    extreme={"lr": 1.0, "alpha": 0.5, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0},
    flags={"centered": True},
    errors=(
        *LR_ERRORS,
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"alpha": -1.0}, "Invalid alpha value: -1.0"),
        ({"alpha": -1.0, "weight_decay": -2.0}, "Invalid weight_decay value: -2.0"),
        ({"weight_decay": -1.0, "momentum": -2.0}, "Invalid momentum value: -2.0"),
        ({"momentum": -1.0, "eps": -2.0}, "Invalid epsilon value: -2.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"alpha": 2.0}),
    sparse_error="RMSprop does not support sparse gradients",
)
