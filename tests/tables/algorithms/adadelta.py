"""The row of Adadelta."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.adadelta,
    "Adadelta",
    state=("step", "square_avg", "acc_delta"),
    cases=(
        {},
        *every_subset({"lr": 0.5}, weight_decay=0.1, maximize=True),
        {"rho": 0.3, "eps": 0.1},
        {"rho": 0.0},
        {"rho": 1.0},
    ),
    typical={"lr": 0.5, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.1},
    extreme={"lr": 1.0, "rho": 0.0, "eps": 1e-10, "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"rho": 1.5}, "Invalid rho value: 1.5"),
        ({"rho": -0.5}, "Invalid rho value: -0.5"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"weight_decay": -1.0, "rho": 2.0}, "Invalid rho value: 2.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"rho": 1}),
    sparse_error="Adadelta does not support sparse gradients",
)
