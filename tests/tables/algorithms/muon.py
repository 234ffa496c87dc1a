"""The row of Muon."""

from __future__ import annotations

import functorch_optim as fo
from tests.tables.algorithm import TWO, Algorithm, every_subset

ROW = Algorithm(
    fo.muon,
    "Muon",
    state=("step", "momentum_buffer"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.0, momentum=0.5, nesterov=False),
        {"adjust_lr_fn": "original"},
        {"adjust_lr_fn": "match_rms_adamw"},
        {"ns_steps": 1, "ns_coefficients": (2.0, -1.5, 0.5)},
        {"momentum": 0.0, "eps": 0.1},
    ),
    typical={
        "lr": 0.1,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
    },
    extreme={
        "lr": 1.0,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "ns_coefficients": (3.4445, -4.775, 2.0315),
        "eps": 1e-7,
    },
    errors=(
        ({"lr": -0.1}, "Learning rate should be >= 0 but is: -0.1"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"momentum": -1.0}, "momentum should be >= 0 but is: -1.0"),
        ({"weight_decay": -1.0}, "weight decay should be >= 0 but is: -1.0"),
        ({"adjust_lr_fn": "half"}, "Adjust learning rate function half is not supported"),
        (
            {"ns_steps": 100},
            "Number of steps must be less than 100 for computational efficiency",
        ),
        ({"ns_coefficients": (1.0, 1.0)}, "Coefficients must be a tuple of exactly 3 values"),
    ),
    accepted=({"lr": TWO[:1]}, {"momentum": 2.0}),
    refused=(
        (
            (3,),
            "float32",
            ValueError,
            "Muon only supports 2D parameters whereas we found a parameter with size: [3]",
        ),
        ((2, 3), "complex64", RuntimeError, "Muon does not support complex parameters"),
    ),
    sparse_error="Muon does not support sparse gradients",
    shapes=((2, 3), (3, 2), (4, 4), (3, 5)),
    complex=False,
    without_params={"weight_decay": 0.0},
    rtol64=1e-3,  # it computes in bfloat16: one rounding that falls otherwise is 4e-3 of a step
    rtol32=1e-3,
    rtol_vmap=1e-2,
    rtol_jit=1e-2,
    difference=None,
)
