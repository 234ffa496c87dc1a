"""The row of SGD."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import NAN, TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.sgd,
    "SGD",
    state=("step", "momentum_buffer"),
    cases=(
        *every_subset({}, lr=0.05, weight_decay=0.1, maximize=True),
        *every_subset(
            {"lr": 0.02, "momentum": 0.9}, dampening=0.5, weight_decay=0.1, maximize=True
        ),
        *every_subset(
            {"lr": 0.02, "momentum": 0.9, "nesterov": True}, weight_decay=0.1, maximize=True
        ),
        {"momentum": 0.3, "dampening": 1.0},
        {"momentum": 0.3, "dampening": -0.5},
        {"momentum": 1.0, "nesterov": True},
        {"momentum": 0.0, "dampening": 0.5},
        {"lr": 0.0, "momentum": 0.9, "weight_decay": 0.1},
    ),
    typical={"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
    extreme={"lr": 1.0, "momentum": 0.0, "dampening": 1.0, "weight_decay": 0.0},
    errors=(
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"momentum": -0.9}, "Invalid momentum value: -0.9"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        (
            {"momentum": 0.9, "dampening": 0.1, "nesterov": True},
            "Nesterov momentum requires a momentum and zero dampening",
        ),
        ({"lr": -1.0, "momentum": -1.0, "weight_decay": -1.0}, "Invalid learning rate: -1.0"),
        ({"momentum": -1.0, "weight_decay": -1.0}, "Invalid momentum value: -1.0"),
    ),
    without_params={"momentum": 0.9},
    accepted=({"lr": NAN}, {"lr": TWO[:1]}, {"momentum": 2.0}, {"dampening": -3.0}),
)
