"""What the tests of the schedulers share: their configurations, and the two libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import functorch_optim.stateful as optim

Build = Callable[[Any, Any], Any]  # (a library, an optimizer) -> a scheduler

OURS = SimpleNamespace(
    **{name: getattr(optim.lr_scheduler, name) for name in optim.lr_scheduler.__all__},
    SWALR=optim.swa_utils.SWALR,
    _LRScheduler=optim.lr_scheduler._LRScheduler,
    optimizers=optim,
    parameter=lambda: optim.Parameter(np.ones(2, np.float32)),
)


def torchs() -> SimpleNamespace:
    """torch's side of the same."""
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    schedulers = torch.optim.lr_scheduler
    return SimpleNamespace(
        **{name: getattr(schedulers, name) for name in vars(OURS) if hasattr(schedulers, name)},
        SWALR=torch.optim.swa_utils.SWALR,
        optimizers=torch.optim,
        parameter=lambda: torch.ones(2),
    )


def optimizer(lib: Any, kind: str = "SGD", lr: Any = 0.1, **kwargs: Any) -> Any:
    """Of two groups; the second has a learning rate of its own."""
    groups = [{"params": [lib.parameter()]}, {"params": [lib.parameter()], "lr": 0.03}]
    return getattr(lib.optimizers, kind)(groups, lr=lr, **kwargs)


class Power:
    """A callable object, whose attribute is saved."""

    def __init__(self, base: float):
        self.base = base

    def __call__(self, x: float) -> float:
        return self.base**x


def hyperbola(epoch: float) -> float:
    return 1 / (1 + epoch)


def steady(epoch: float) -> float:
    return 0.97 if epoch % 2 else 1.02


# Those that write the learning rate alone, from the current one or from the starting one.
PLAIN: dict[str, Build] = {
    "Lambda": lambda lib, opt: lib.LambdaLR(opt, hyperbola),
    "Lambda list": lambda lib, opt: lib.LambdaLR(opt, [Power(0.9), hyperbola]),
    "Multiplicative": lambda lib, opt: lib.MultiplicativeLR(opt, steady),
    "Multiplicative list": lambda lib, opt: lib.MultiplicativeLR(opt, (steady, Power(0.999))),
    "Step": lambda lib, opt: lib.StepLR(opt, 3),
    "Step gamma": lambda lib, opt: lib.StepLR(opt, 7, 0.8),
    "MultiStep": lambda lib, opt: lib.MultiStepLR(opt, [2, 2, 5]),
    "MultiStep at 0": lambda lib, opt: lib.MultiStepLR(opt, (40, 0, 3), gamma=0.5),
    "Constant": lambda lib, opt: lib.ConstantLR(opt),
    "Constant args": lambda lib, opt: lib.ConstantLR(opt, 0.1, 2),
    "Constant never": lambda lib, opt: lib.ConstantLR(opt, 0.5, total_iters=0),
    "Linear": lambda lib, opt: lib.LinearLR(opt),
    "Linear down": lambda lib, opt: lib.LinearLR(opt, 1.0, 0.2, 40),
    "Linear at once": lambda lib, opt: lib.LinearLR(opt, 0.5, 0.5, 0),
    "Exponential": lambda lib, opt: lib.ExponentialLR(opt, 0.97),
    "Polynomial": lambda lib, opt: lib.PolynomialLR(opt),
    "Polynomial power": lambda lib, opt: lib.PolynomialLR(opt, 30, power=2.5),
    "Cosine": lambda lib, opt: lib.CosineAnnealingLR(opt, 4),
    "Cosine eta_min": lambda lib, opt: lib.CosineAnnealingLR(opt, 31, eta_min=0.002),
    "Restarts": lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, 7),
    "Restarts longer": lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, 3, 2, 0.001),
    "SWA": lambda lib, opt: lib.SWALR(opt, 0.05, 4),
    "SWA linear": lambda lib, opt: lib.SWALR(opt, [0.2, 0.001], anneal_strategy="linear"),
    "SWA at once": lambda lib, opt: lib.SWALR(opt, (0.5, 0.6), 0),
}
# Those that write momentum too, or could.
CYCLES: dict[str, Build] = {
    "Cyclic": lambda lib, opt: lib.CyclicLR(opt, 0.01, 0.1, 4),
    "Cyclic lists": lambda lib, opt: lib.CyclicLR(
        opt, [0.01, 0.02], (0.1, 0.3), 3, 7, "triangular2", base_momentum=[0.5, 0.6]
    ),
    "Cyclic exp": lambda lib, opt: lib.CyclicLR(
        opt, 0.01, 0.1, 5, mode="exp_range", gamma=0.97, max_momentum=0.99
    ),
    "Cyclic function": lambda lib, opt: lib.CyclicLR(opt, 0.01, 0.1, 5, 1, scale_fn=Power(0.8)),
    "Cyclic iterations": lambda lib, opt: lib.CyclicLR(
        opt, 0.01, 0.1, 9, scale_fn=hyperbola, scale_mode="iterations", cycle_momentum=False
    ),
    "Cyclic sawtooth": lambda lib, opt: lib.CyclicLR(opt, 0.01, 0.1, 6, 0),
    "OneCycle": lambda lib, opt: lib.OneCycleLR(opt, 0.1, total_steps=230),
    "OneCycle lists": lambda lib, opt: lib.OneCycleLR(
        opt,
        [0.1, 0.7],
        epochs=23,
        steps_per_epoch=10,
        pct_start=0.45,
        anneal_strategy="linear",
        base_momentum=[0.7, 0.8],
        max_momentum=(0.9, 0.95),
    ),
    "OneCycle three": lambda lib, opt: lib.OneCycleLR(
        opt, 0.1, 211, div_factor=10, final_div_factor=100.0, three_phase=True
    ),
    "OneCycle rates": lambda lib, opt: lib.OneCycleLR(opt, 3, 210, cycle_momentum=False),
}


def _nested(lib: Any, opt: Any) -> Any:
    return lib.ChainedScheduler(
        [
            lib.SequentialLR(opt, [lib.LinearLR(opt), lib.StepLR(opt, 20)], [5]),
            lib.ExponentialLR(opt, 0.99),
        ]
    )


# Those that step others.
COMPOSITES: dict[str, Build] = {
    "Sequential": lambda lib, opt: lib.SequentialLR(
        opt,
        [lib.LinearLR(opt), lib.CosineAnnealingLR(opt, 9), lib.CosineAnnealingWarmRestarts(opt, 5)],
        [3, 50],
    ),
    "Sequential at 0": lambda lib, opt: lib.SequentialLR(
        opt, [lib.ConstantLR(opt), lib.ExponentialLR(opt, 0.9), lib.StepLR(opt, 9)], [0, 9]
    ),
    "Sequential cycles": lambda lib, opt: lib.SequentialLR(
        # the groups' own rates: torch's CyclicLR starts from the ConstantLR's initial_lr
        opt,
        [lib.ConstantLR(opt, 0.1, 9), lib.CyclicLR(opt, [0.1, 0.03], 0.5, 4)],
        [7],
    ),
    "Chained": lambda lib, opt: lib.ChainedScheduler(
        [lib.ConstantLR(opt, 0.1, 2), lib.ExponentialLR(opt, 0.9)]
    ),
    "Chained Sequential": _nested,
}
ALL = PLAIN | CYCLES | COMPOSITES


def over(builds: dict[str, Build]) -> Any:
    return pytest.mark.parametrize("build", builds.values(), ids=list(builds))


def pair(build: Build, kind: str = "SGD", **kwargs: Any) -> tuple[tuple[Any, Any], ...]:
    """An optimizer with a scheduler of ours, and of torch's."""
    opts = [(lib, optimizer(lib, kind, **kwargs)) for lib in (OURS, torchs())]
    ours, theirs = [(opt, build(lib, opt)) for lib, opt in opts]
    return ours, theirs


def seen(opt: Any, schedulers: Iterable[Any] = ()) -> list[float]:
    """All numbers that schedulers write and tell."""
    found = [s.get_last_lr() for s in schedulers]
    for group in opt.param_groups:
        momentum = [group["momentum"]] if "momentum" in group else group["betas"]
        found.append([group["lr"], *momentum])
    return [float(x) for values in found for x in values]


def advance(opt: Any, *schedulers: Any) -> list[float]:
    opt.step()
    for scheduler in schedulers:
        scheduler.step()
    return seen(opt, schedulers)


def assert_same(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def assert_same_state(ours: Any, theirs: Any) -> None:
    """Equal keys in equal order, and equal values but for rounding."""
    assert type(ours) is type(theirs) or {type(ours), type(theirs)} == {int, float}
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_state(a, b)
    elif isinstance(ours, float):
        assert_same(ours, theirs)
    else:
        assert ours == theirs
