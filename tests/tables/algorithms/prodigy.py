"""The row of Prodigy. Its formula needs gradients that lead somewhere: see test_prodigy.py."""

from __future__ import annotations

from functorch_optim.algorithms.prodigy import prodigy
from tests.tables.algorithm import LR_ERRORS, NAN, TWO, Algorithm

ROW = Algorithm(
    prodigy,
    torch_class=None,
    state=(
        "step",
        "d",
        "d_max",
        "d_numerator",
        "exp_avg",
        "exp_avg_sq",
        "s",
        "p0",
        "steps_taken",
    ),
    cases=(
        {},
        {"use_bias_correction": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": False},
        {"growth_rate": 1.02},
        {"safeguard_warmup": True, "d_coef": 0.5, "growth_rate": 1.5},
        {"beta3": 0.5, "betas": (0.8, 0.95), "eps": 1e-4},
    ),
    typical={
        "lr": 0.9,
        "betas": (0.8, 0.9),
        "beta3": 0.7,
        "eps": 1e-3,
        "weight_decay": 0.1,
        "d0": 0.1,
        "d_coef": 1.2,
        "growth_rate": 1.5,
    },
    extreme={
        "lr": 1.0,
        "betas": (0.0, 0.0),
        "beta3": 0.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "d0": 1e-6,
        "d_coef": 0.0,
        "growth_rate": float("inf"),
    },
    flags={"use_bias_correction": True},
    errors=(
        *LR_ERRORS,
        ({"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"beta3": 1.5}, "Invalid beta3 value: 1.5"),
        ({"beta3": -0.5}, "Invalid beta3 value: -0.5"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"d0": 0.0}, "Invalid d0 value: 0.0"),
        ({"d0": NAN}, "Invalid d0 value: nan"),
        ({"d_coef": -1.0}, "Invalid d_coef value: -1.0"),
        ({"growth_rate": NAN}, "Invalid growth_rate value: nan"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"lr": 0.0}, {"beta3": None}),
    sparse_error="Prodigy does not support sparse gradients",
    without_params=None,
)
