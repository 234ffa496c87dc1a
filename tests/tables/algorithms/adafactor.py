"""The row of Adafactor."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.adafactor,
    "Adafactor",
    state=("step", "row_var", "col_var", "variance"),
    cases=(
        {},
        *every_subset({"lr": 0.1}, weight_decay=0.1, maximize=True),
        {"lr": 0.5, "beta2_decay": -0.3},
        {"beta2_decay": 0.0},
        {"eps": (0.1, 0.5), "d": 2.0},
        {"eps": (1e-15, 1e-3), "d": 1.5},
    ),
    typical={
        "lr": 0.1,
        "beta2_decay": -0.6,
        "eps": (1e-3, 1e-2),
        "d": 1.2,
        "weight_decay": 0.1,
    },
    extreme={
        "lr": 1.0,
        "beta2_decay": 0.0,
        "eps": (1e-8, 1e-3),
        "d": 1.0,
        "weight_decay": 0.0,
    },
    errors=(
        ({"lr": -0.1}, "Learning rate should be >= 0 but is: -0.1"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"beta2_decay": 0.1}, "beta2_decay should be <= 0 but is: 0.1"),
        ({"eps": (-1.0, 1e-3)}, "epsilon1 should be >= 0 but is: -1.0"),
        ({"eps": (None, -1.0)}, "epsilon2 should be >= 0 but is: -1.0"),
        ({"d": 0.5}, "Clipping threshold d should be >= 1 but is: 0.5"),
        ({"weight_decay": -1.0}, "weight_decay should be >= 0 but is: -1.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"eps": [None, 0.1]}, {"d": 1}),
    refused=(((2, 3), "complex64", RuntimeError, "Adafactor does not support complex parameters"),),
    sparse_error="Adafactor does not support sparse gradients",
    complex=False,
    without_params=None,
)
