"""The row of AdamW: Adam's, with another default."""

from __future__ import annotations

import dataclasses

import functorch_optim as fo
from tests.tables.algorithm import every_subset
from tests.tables.algorithms import adam

ROW = dataclasses.replace(
    adam.ROW,
    factory=fo.adamw,
    torch_class="AdamW",
    without_params={"weight_decay": 0.0},
    cases=(
        {},
        {"lr": 0.1},
        *every_subset({"lr": 0.02}, weight_decay=0.3, maximize=True, amsgrad=True),
        {"lr": 0.02, "weight_decay": 0.0, "maximize": True},
        *adam.CASES,
    ),
)
