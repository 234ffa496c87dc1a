"""The row of Rprop."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import LR_ERRORS, TWO, Algorithm

ROW = Algorithm(
    fo.rprop,
    "Rprop",
    state=("step", "prev", "step_size"),
    cases=(
        {},
        {"lr": 0.1, "maximize": True},
        {"etas": (0.1, 3.0)},
        {"lr": 0.1, "step_sizes": (0.05, 0.15)},
        {"lr": 100.0},  # clipped at the first step
        {"lr": 1e-9},
    ),
    typical={"lr": 0.08, "etas": (0.5, 1.3), "step_sizes": (0.05, 0.09)},
    extreme={"lr": 1.0, "etas": (0.1, 2.0), "step_sizes": (0.0, 10.0)},
    errors=(
        *LR_ERRORS,
        ({"etas": (0.0, 1.2)}, "Invalid eta values: 0.0, 1.2"),
        ({"etas": (0.5, 1.0)}, "Invalid eta values: 0.5, 1.0"),
        ({"etas": (1.2, 0.5)}, "Invalid eta values: 1.2, 0.5"),
    ),
    accepted=({"lr": TWO[:1]}, {"step_sizes": (1.0, 0.1)}),
    sparse_error="Rprop does not support sparse gradients",
    params_needed_for=None,
)
