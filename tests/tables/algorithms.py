"""The table of torch's algorithms: one row each. The parity, contract and error suites run over it.

What an algorithm cannot do is a field of its row, never an `if` in a test. A new algorithm is a
new row, and `python tests/golden/record.py NAME`. Each case with other structural options costs a
few compilations, each case with other numbers costs none.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.rules.pair import Factory

Kwargs = dict[str, Any]
NAN = float("nan")
TWO = np.ones(2, np.float32)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A row.

    Attributes:
      factory: the pure pair's factory.
      torch_class: its class in torch.optim, if it has one.
      state: the fields of its state, torch's names in torch's order.
      cases: the configurations whose results are compared with torch's.
      typical: every numeric hyperparameter with a value at which none of them is idle and the
        update is smooth; the contract suite runs with it, and varies each number.
      extreme: the same hyperparameters at the end of their range, where derivatives must still be
        finite (given as arrays, for a number 0 may drop a buffer).
      flags: structural options that go with both.
      errors: (arguments, words) that both torch and the factory refuse with a ValueError.
      accepted: unusual arguments that neither refuses.
      refused: (shape, dtype, error, words) of parameters that neither takes.
      sparse_error: torch's words for a sparse gradient; `None` where sparse is computed as dense.
      shapes: the parameters of the parity runs.
      complex: whether parameters may be complex.
      halves: the half-precision dtypes it is computed in.
      without_params: arguments with which `update` reads no parameters; `None` if it always does.
      params_needed_for: what the error of the typical pair says when params are missing.
      rtol64: bound of the relative error after 50 steps in float64.
      rtol32: bound of the relative error after 10 steps in float32.
      rtol_vmap: how far two ways to compile the same step may be apart in float64.
      rtol_jit: the same in float32.
      steps: how many steps the contract suite needs to reach every branch.
      difference: the step of finite differences, and how far derivatives may be off; `None` where
        rounding is part of the algorithm.
    """

    factory: Factory[...]
    torch_class: str | None
    state: tuple[str, ...]
    cases: tuple[Kwargs, ...]
    typical: Kwargs
    extreme: Kwargs
    errors: tuple[tuple[Kwargs, str], ...]
    flags: Kwargs = dataclasses.field(default_factory=dict)
    accepted: tuple[Kwargs, ...] = ()
    refused: tuple[tuple[tuple[int, ...], str, type[Exception], str], ...] = ()
    sparse_error: str | None = None
    shapes: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (3, 1, 2))
    complex: bool = True
    halves: tuple[str, ...] = ("bfloat16", "float16")
    without_params: Kwargs | None = dataclasses.field(default_factory=dict)
    params_needed_for: str | None = "weight decay pulls the parameters towards zero"
    rtol64: float = 1e-12
    rtol32: float = 5e-6
    rtol_vmap: float = 1e-12
    rtol_jit: float = 5e-6
    steps: int = 3
    difference: tuple[float, float] | None = (1e-6, 1e-6)

    @property
    def name(self) -> str:
        return self.factory.__name__

    def pair(self, **changes: Any) -> fo.GradientTransformation:
        """The typical pair, with other values for some hyperparameters."""
        return self.factory(**{**self.flags, **self.typical, **changes})


def every_subset(base: Kwargs, **options: Any) -> tuple[Kwargs, ...]:
    """`base` with each subset of the options: none, each alone, each pair, ... all."""
    return tuple(
        {**base, **dict(chosen)}
        for size in range(len(options) + 1)
        for chosen in itertools.combinations(options.items(), size)
    )


def case_id(case: Kwargs) -> str:
    return ",".join(f"{name}={value}" for name, value in case.items()) or "defaults"


SGD = Algorithm(
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

ADAM_FAMILY_ERRORS = (
    ({"lr": -0.1}, "Invalid learning rate: -0.1"),
    ({"lr": NAN}, "Invalid learning rate: nan"),
    ({"lr": TWO}, "Tensor lr must be 1-element"),
    ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ({"eps": NAN}, "Invalid epsilon value: nan"),
    ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
    ({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan"),
    ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ({"lr": -1.0, "eps": -1.0, "betas": (2.0, 2.0)}, "Invalid learning rate: -1.0"),
    ({"eps": -1.0, "betas": (2.0, 2.0)}, "Invalid epsilon value: -1.0"),
    ({"betas": (2.0, 2.0), "weight_decay": -1.0}, "Invalid beta parameter at index 0: 2.0"),
)
ADAM_ERRORS = (
    *ADAM_FAMILY_ERRORS,
    ({"betas": (0, 0.9)}, "betas must be either both floats or both Tensors"),
    ({"betas": (0.9, 0)}, "betas must be either both floats or both Tensors"),
)
ADAM_CASES = (
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

ADAM = Algorithm(
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
        *ADAM_CASES,
    ),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    flags={"amsgrad": True},
    errors=ADAM_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"betas": (TWO[:1] / 2, TWO[:1] / 4)}),
    sparse_error="Adam does not support sparse gradients, please consider SparseAdam instead",
)

ADAMW = dataclasses.replace(
    ADAM,
    factory=fo.adamw,
    torch_class="AdamW",
    without_params={"weight_decay": 0.0},
    cases=(
        {},
        {"lr": 0.1},
        *every_subset({"lr": 0.02}, weight_decay=0.3, maximize=True, amsgrad=True),
        {"lr": 0.02, "weight_decay": 0.0, "maximize": True},
        *ADAM_CASES,
    ),
)

ADAMAX = Algorithm(
    fo.adamax,
    "Adamax",
    state=("step", "exp_avg", "exp_inf"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, maximize=True),
        {"betas": (0.3, 0.5)},
        {"betas": (0.0, 0.0), "eps": 0.1},
        {"betas": (0.99, 0.9), "eps": 0.5},
    ),
    typical={"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}, {"betas": (0, 0.5)}),
    sparse_error="Adamax does not support sparse gradients",
)

NADAM = Algorithm(
    fo.nadam,
    "NAdam",
    state=("step", "mu_product", "exp_avg", "exp_avg_sq"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, maximize=True, decoupled_weight_decay=True),
        {"betas": (0.3, 0.5), "momentum_decay": 0.1},
        {"betas": (0.0, 0.5)},
        {"betas": (0.5, 0.0), "eps": 0.5},
        {"momentum_decay": 0.0},
        {"momentum_decay": 2.0},
    ),
    typical={
        "lr": 0.1,
        "betas": (0.8, 0.9),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "momentum_decay": 0.5,
    },
    extreme={
        "lr": 1.0,
        "betas": (0.0, 0.0),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_decay": 0.0,
    },
    errors=(
        *ADAM_FAMILY_ERRORS,
        ({"momentum_decay": -0.1}, "Invalid momentum_decay value: -0.1"),
        ({"weight_decay": -1.0, "momentum_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="NAdam does not support sparse gradients",
    difference=(1e-3, 1e-3),  # mu_product is rounded to float32, as in torch
)

RADAM = Algorithm(
    fo.radam,
    "RAdam",
    state=("step", "exp_avg", "exp_avg_sq"),
    cases=(
        {},
        *every_subset({"lr": 0.02}, weight_decay=0.1, maximize=True, decoupled_weight_decay=True),
        {"betas": (0.3, 0.5)},  # never rectified
        {"betas": (0.9, 0.7)},  # rectified from the tenth step on
        {"betas": (0.0, 0.9)},
        {"betas": (0.5, 0.0), "eps": 0.5},
        {"betas": (0.5, 0.99), "eps": 0.5},
    ),
    typical={"lr": 0.1, "betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "betas": (0.0, 0.0), "eps": 1e-8, "weight_decay": 0.0},
    errors=ADAM_FAMILY_ERRORS,
    accepted=({"lr": TWO[:1]}, {"betas": [0.9, 0.99]}),
    sparse_error="RAdam does not support sparse gradients",
    steps=7,
)

RMSPROP = Algorithm(
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
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
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

RPROP = Algorithm(
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
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"etas": (0.0, 1.2)}, "Invalid eta values: 0.0, 1.2"),
        ({"etas": (0.5, 1.0)}, "Invalid eta values: 0.5, 1.0"),
        ({"etas": (1.2, 0.5)}, "Invalid eta values: 1.2, 0.5"),
    ),
    accepted=({"lr": TWO[:1]}, {"step_sizes": (1.0, 0.1)}),
    sparse_error="Rprop does not support sparse gradients",
    params_needed_for=None,
)

ADAGRAD = Algorithm(
    fo.adagrad,
    "Adagrad",
    state=("step", "sum"),
    cases=(
        {},
        *every_subset({"lr": 0.05}, weight_decay=0.1, maximize=True),
        {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
        {"lr_decay": 1.0, "eps": 0.5},
    ),
    typical={
        "lr": 0.1,
        "lr_decay": 0.1,
        "weight_decay": 0.1,
        "initial_accumulator_value": 0.1,
        "eps": 1e-3,
    },
    extreme={
        "lr": 1.0,
        "lr_decay": 0.0,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
    },
    errors=(
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"lr_decay": -1.0}, "Invalid lr_decay value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        (
            {"initial_accumulator_value": -1.0},
            "Invalid initial_accumulator_value value: -1.0",
        ),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"eps": -1.0, "lr_decay": -2.0}, "Invalid lr_decay value: -2.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"lr_decay": 10.0}),
)

ADADELTA = Algorithm(
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
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"rho": 1.5}, "Invalid rho value: 1.5"),
        ({"rho": -0.5}, "Invalid rho value: -0.5"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"weight_decay": -1.0, "rho": 2.0}, "Invalid rho value: 2.0"),
    ),
    accepted=({"lr": TWO[:1]}, {"rho": 1}),
    sparse_error="Adadelta does not support sparse gradients",
)

ASGD = Algorithm(
    fo.asgd,
    "ASGD",
    state=("step", "eta", "mu", "ax"),
    cases=(
        {},
        *every_subset({"lr": 0.05, "t0": 4}, weight_decay=0.1, maximize=True),
        {"lambd": 0.1, "alpha": 0.5, "t0": 0},
        {"lr": 0.1, "lambd": 0.5, "alpha": 2.0, "t0": 2.5},
        {"lambd": 0.0, "alpha": 0.0},
    ),
    typical={"lr": 0.1, "lambd": 0.1, "alpha": 0.75, "t0": 1.3, "weight_decay": 0.1},
    extreme={"lr": 1.0, "lambd": 0.0, "alpha": 0.0, "t0": 0.0, "weight_decay": 0.0},
    errors=(
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"lr": TWO}, "Tensor lr must be 1-element"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ),
    accepted=({"lambd": -1.0}, {"t0": -5}),
    sparse_error="ASGD does not support sparse gradients",
    without_params=None,
    steps=4,
    difference=(1e-3, 1e-3),  # eta and mu are rounded to float32, as in torch
)

ADAFACTOR = Algorithm(
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

MUON = Algorithm(
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

TABLE = (
    SGD,
    ADAM,
    ADAMW,
    ADAMAX,
    NADAM,
    RADAM,
    RMSPROP,
    RPROP,
    ADAGRAD,
    ADADELTA,
    ASGD,
    ADAFACTOR,
    MUON,
)

over_table = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
