"""The row of Adam."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import ADAM_FAMILY_ERRORS, TWO, Algorithm, every_subset

ERRORS = (
    *ADAM_FAMILY_ERRORS,
    ({"betas": (0, 0.9)}, "betas must be either both floats or both Tensors"),
    ({"betas": (0.9, 0)}, "betas must be either both floats or both Tensors"),
)
CASES = (
    {"betas": (0.3, 0.5)},
    {"betas": (0.0, 0.5)},
    {"betas": (0.5, 0.0)},
    {"betas": (0.0, 0.0), "eps": 0.1},
    {"betas": (0.99, 0.9), "lr": 0.1},
    {"betas": (0.3, 0.5), "amsgrad": True},
    {"eps": 0.5},
    {"eps": 0.5, "amsgrad": True},
    {"eps": 1e-3, "weight_decay": 0.1, "lr": 0.0},
)

ROW = Algorithm(
    fo.adam,
    "Adam",
    state=("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    cases=(
        {},
        {"lr": 0.1},
        *every_subset(
            {"lr": 0.02},
            weight_decay=0.1,
            maximize=True,
            amsgrad=True,
            decoupled_weight_decay=True,
        ),
        *CASES,
    ),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    flags={"amsgrad": True},
    errors=ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"betas": (TWO[:1] / 2, TWO[:1] / 4)}),
    sparse_error="Adam does not support sparse gradients, please consider SparseAdam instead",
)
