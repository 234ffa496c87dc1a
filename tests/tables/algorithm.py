"""What a row of the table of algorithms says. The suites run over the rows.

What an algorithm cannot do is a field of its row, or known to its rule, never an `if` in a test.
Each case with other structural options costs a few compilations, each case with other numbers
costs none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import functorch_optim as fo
from functorch_optim.rules.pair import Factory

Kwargs = dict[str, Any]
Result = dict[str, np.ndarray]
NAN = float("nan")
TWO = np.ones(2, np.float32)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A row.

    Attributes:
      factory: the pure pair's factory.
      torch_class: its class in torch.optim, if it has one.
      state: the fields of its state, torch's names in torch's order.
      cases: the configurations whose results are compared with torch's, or with the formula's.
      typical: every numeric hyperparameter with a value at which none of them is idle and the
        update is smooth; the contract suite runs with it, and varies each number.
      extreme: the same hyperparameters at the end of their range, where derivatives must still be
        finite (given as arrays, for a number 0 may drop a buffer).
      flags: structural options that go with both.
      formula: `formula(p, gs, lrs, **case) -> {field: array}`, the paper's algorithm for one
        parameter in numpy, for algorithms that torch does not have.
      optax: (arguments, optax's transform) of runs in which optax agrees.
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
    formula: Callable[..., Result] | None = None
    optax: tuple[tuple[Kwargs, Callable[[], Any]], ...] = ()
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

    @property
    def by_leaf(self) -> bool:
        """Whether each leaf gets the update that it would get alone."""
        return self.factory.rule.whole_tree is None

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


LR_ERRORS = (
    ({"lr": -0.1}, "Invalid learning rate: -0.1"),
    ({"lr": NAN}, "Invalid learning rate: nan"),
    ({"lr": TWO}, "Tensor lr must be 1-element"),
)
ADAM_FAMILY_ERRORS = (
    *LR_ERRORS,
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
