"""Rows of the table of algorithms for those that torch does not have."""

from __future__ import annotations

from functorch_optim.algorithms.adabelief import adabelief
from functorch_optim.algorithms.adan import adan
from functorch_optim.algorithms.adopt import adopt
from functorch_optim.algorithms.lamb import lamb
from functorch_optim.algorithms.lars import lars
from functorch_optim.algorithms.lion import lion
from tests.tables.algorithms import ADAM_FAMILY_ERRORS, NAN, TWO, Algorithm

LR_ERRORS = (
    ({"lr": -0.1}, "Invalid learning rate: -0.1"),
    ({"lr": NAN}, "Invalid learning rate: nan"),
    ({"lr": TWO}, "Tensor lr must be 1-element"),
)

LION = Algorithm(
    lion,
    torch_class=None,
    state=("step", "exp_avg"),
    cases=(),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="Lion does not support sparse gradients",
)

ADAN = Algorithm(
    adan,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"),
    cases=(),
    typical={"lr": 0.1, "betas": (0.8, 0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=(
        *LR_ERRORS,
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"betas": (1.0, 0.9, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, 0.9, -0.1)}, "Invalid beta parameter at index 2: -0.1"),
        ({"betas": (0.9, 0.99)}, "betas must be exactly 3 values, but got 2"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.8, 0.99]}),
    sparse_error="Adan does not support sparse gradients",
)

LAMB = Algorithm(
    lamb,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq"),
    cases=(),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="Lamb does not support sparse gradients",
    without_params=None,
)

LARS = Algorithm(
    lars,
    torch_class=None,
    state=("step", "momentum_buffer"),
    cases=(),
    typical={
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "trust_coefficient": 0.1,
        "eps": 1e-2,
    },
    extreme={
        "lr": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "trust_coefficient": 1.0,
        "eps": 0.0,
    },
    errors=(
        *LR_ERRORS,
        ({"momentum": -0.9}, "Invalid momentum value: -0.9"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"trust_coefficient": -1.0}, "Invalid trust_coefficient value: -1.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"momentum": 0.0, "nesterov": True}, "Nesterov momentum requires a momentum"),
    ),
    accepted=({"lr": TWO[:1]}, {"momentum": 2.0}),
    sparse_error="Lars does not support sparse gradients",
    without_params=None,
)

ADABELIEF = Algorithm(
    adabelief,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_var", "max_exp_avg_var"),
    cases=(),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-16, "weight_decay": 0.0},
    flags={"amsgrad": True},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="AdaBelief does not support sparse gradients",
)

ADOPT = Algorithm(
    adopt,
    torch_class=None,
    state=("step", "exp_avg", "exp_avg_sq"),
    cases=(),
    typical={
        "lr": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "clip_exponent": 0.25,
    },
    extreme={
        "lr": 1.0,
        "betas": (0.0, 0.0),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_exponent": 0.0,
    },
    errors=(*ADAM_FAMILY_ERRORS, ({"clip_exponent": -0.1}, "Invalid clip_exponent value: -0.1")),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"clip_exponent": None}),
    sparse_error="ADOPT does not support sparse gradients",
    steps=4,
)

TABLE_BEYOND_TORCH = (LION, ADAN, LAMB, LARS, ADABELIEF, ADOPT)
