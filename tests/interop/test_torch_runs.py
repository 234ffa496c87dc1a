"""A run that starts in torch, goes on here and returns is a run that never moved."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful.classes import SparseAdam
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import OF_TORCH as ROWS

torch = pytest.importorskip("torch")
interop = importlib.import_module("functorch_optim.interop.torch")

K = 5  # steps in each place

assert {row.torch_class for row in ROWS} >= set(
    [
        "SGD",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "Adagrad",
        "Adadelta",
        "ASGD",
        "Adafactor",
        "Muon",
    ]
)


def numbers(seed: str, shape: Any) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(seed.encode())).standard_normal(shape)


def plain(x: Any) -> np.ndarray:
    """A copy of a tensor, a Parameter or an array."""
    return (x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)).copy()


class Run:
    """Parameters and their optimizer, in one of the libraries."""

    def __init__(self, lib: Any, values: Any, kind: str, kwargs: Any, scheduler: Any = None):
        self.lib = lib
        make = torch.tensor if lib is torch.optim else optim.Parameter
        self.cells = [make(np.array(x)) for x in values]
        groups = [{"params": self.cells[:2]}, {"params": self.cells[2:], "lr": 0.03}]
        self.opt = getattr(lib, kind)(groups if kind != "Muon" else self.cells, **kwargs)
        self.scheduler = scheduler and scheduler(lib.lr_scheduler, self.opt)

    def steps(self, start: int) -> None:
        for step in range(start, start + K):
            for i, p in enumerate(self.cells):
                g = numbers(f"{step} {i}", tuple(p.shape))
                p.grad = torch.tensor(g) if self.lib is torch.optim else jnp.asarray(g)
                if (step, i) == (2, 1):
                    p.grad = None  # this one falls behind
            self.opt.step()
            if self.scheduler:
                metric = [numbers(str(step), ())] if hasattr(self.scheduler, "patience") else []
                self.scheduler.step(*map(float, metric))

    def values(self) -> list[np.ndarray]:
        return [plain(p) for p in self.cells]

    def saved(self) -> list[Any]:
        return [x.state_dict() for x in (self.opt, self.scheduler) if x]

    def load(self, saved: Any) -> Run:
        for x, state in zip((self.opt, self.scheduler), saved, strict=False):
            x.load_state_dict(state)
        return self


def moved_run(kind: str, kwargs: Any, shapes: Any, rtol: float, scheduler: Any = None) -> None:
    start = [numbers(f"start {i}", shape) for i, shape in enumerate(shapes)]

    def build(lib: Any, values: Any) -> Run:
        return Run(lib, values, kind, kwargs, scheduler)

    stays, there = build(torch.optim, start), build(torch.optim, start)
    stays.steps(0)
    there.steps(0)
    here = build(optim, there.values()).load(interop.from_torch(there.saved()))
    stays.steps(K)
    here.steps(K)
    compare(here.values(), stays.values(), rtol)
    back = build(torch.optim, here.values()).load(interop.to_torch(here.saved()))
    assert [[*x] for x in flat_state(back)] == [[*x] for x in flat_state(stays)]
    stays.steps(2 * K)
    back.steps(2 * K)
    compare(back.values(), stays.values(), rtol)
    for ours, theirs in zip(flat_state(back), flat_state(stays), strict=True):
        for name, value in theirs.items():
            assert type(ours[name]) is type(value), name
            if isinstance(value, torch.Tensor):
                assert ours[name].shape == value.shape, name
            if name == "step":
                assert ours[name] == value


def flat_state(run: Run) -> list[Any]:
    return [*run.opt.state_dict()["state"].values(), *run.opt.state_dict()["param_groups"]]


def compare(found: list[np.ndarray], wanted: list[np.ndarray], rtol: float) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.max(np.abs(y)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.torch_class)
def test_every_optimizer_moves_here_and_back(row: Algorithm, x64: None) -> None:
    kind = str(row.torch_class)
    kwargs = {**row.flags, **row.typical}
    shapes = ((2, 3), (2, 3), (2, 3)) if kind == "Muon" else ((2, 3), (), (3,))
    moved_run(kind, kwargs, shapes, max(row.rtol64, 1e-12))


SCHEDULED: dict[str, tuple[str, Any, Callable[[Any, Any], Any]]] = {
    "StepLR": ("SGD", {"lr": 0.1, "momentum": 0.9}, lambda lib, o: lib.StepLR(o, 4, 0.5)),
    "CosineAnnealingLR": (
        "AdamW",
        {"lr": 0.1},
        lambda lib, o: lib.CosineAnnealingLR(o, 12),
    ),
    "OneCycleLR": ("Adam", {"lr": 0.1}, lambda lib, o: lib.OneCycleLR(o, 0.1, 3 * K)),
    "CosineAnnealingWarmRestarts": (
        "Adamax",
        {"lr": 0.1},
        lambda lib, o: lib.CosineAnnealingWarmRestarts(o, 3, 2),
    ),
    "ReduceLROnPlateau": (
        "RMSprop",
        {"lr": 0.1},
        lambda lib, o: lib.ReduceLROnPlateau(o, patience=1, factor=0.5),
    ),
    "SequentialLR": (
        "NAdam",
        {"lr": 0.1},
        lambda lib, o: lib.SequentialLR(
            o, [lib.LinearLR(o, 0.1, total_iters=4), lib.ExponentialLR(o, 0.8)], [4]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_with_a_scheduler(name: str, x64: None) -> None:
    kind, kwargs, scheduler = SCHEDULED[name]
    moved_run(kind, kwargs, ((2, 3), (), (3,)), 1e-12, scheduler)


# L-BFGS takes a closure, which both libraries write in their own way.

TARGETS = (np.array([0.5, -1.0, 2.0]), np.array([[0.3, 1.5], [-0.7, 0.2]]))


def loss_of(xp: Any, x: Any, w: Any, like: Any) -> Any:
    a, b = like(TARGETS[0]), like(TARGETS[1])
    return (
        xp.sum((x - a) ** 4)
        + xp.sum((w @ w - b) ** 2)
        + xp.sum(xp.cos(3 * x)) * xp.sum(w[0])
        + 0.1 * xp.sum(w**2)
    )


def lbfgs_steps(run: Any, count: int) -> list[float]:
    opt, cells = run
    losses = []
    for _ in range(count):
        if isinstance(opt, torch.optim.LBFGS):

            def closure() -> Any:
                opt.zero_grad()
                loss = loss_of(torch, *cells, torch.tensor)
                loss.backward()
                return loss.detach()

            losses.append(float(opt.step(closure)))
        else:

            def closure() -> Any:
                opt.zero_grad()
                return optim.backward(lambda p: loss_of(jnp, *p, jnp.asarray), cells)

            losses.append(float(opt.step(closure)))
    return losses


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_moves_here_and_back(search: str | None, x64: None) -> None:
    kwargs = {"lr": 0.05 if search is None else 1, "max_iter": 2, "history_size": 3}
    start = [np.array([0.1, 0.2, 0.3]), np.array([[0.5, -0.4], [0.3, 0.8]])]

    def theirs(values: Any) -> Any:
        cells = [torch.tensor(np.array(x)).requires_grad_() for x in values]
        return torch.optim.LBFGS(cells, line_search_fn=search, **kwargs), cells

    def ours(values: Any) -> Any:
        cells = [optim.Parameter(np.array(x)) for x in values]
        return optim.LBFGS(cells, line_search_fn=search, **kwargs), cells

    def data(run: Any) -> list[np.ndarray]:
        return [plain(p) for p in run[1]]

    stays, there = theirs(start), theirs(start)
    lbfgs_steps(stays, 3)
    lbfgs_steps(there, 3)
    here = ours(data(there))
    here[0].load_state_dict(interop.from_torch(there[0].state_dict()))
    np.testing.assert_allclose(lbfgs_steps(here, 3), lbfgs_steps(stays, 3), rtol=1e-9)
    back = theirs(data(here))
    back[0].load_state_dict(interop.to_torch(here[0].state_dict()))
    wanted, found = stays[0].state_dict()["state"][0], back[0].state_dict()["state"][0]
    assert found.keys() == wanted.keys()
    assert (found["func_evals"], found["n_iter"]) == (wanted["func_evals"], wanted["n_iter"])
    np.testing.assert_allclose(lbfgs_steps(back, 3), lbfgs_steps(stays, 3), rtol=1e-9)
    compare(data(back), data(stays), 1e-9)


def test_sparse_adam_moves_here_and_back(x64: None) -> None:
    from jax.experimental.sparse import BCOO

    start = numbers("table", (6, 2))

    def steps(run: Any, begin: int) -> None:
        opt, p = run
        for step in range(begin, begin + 3):
            rows = np.array([step % 6, (2 * step + 1) % 6])
            g = numbers(f"rows {step}", (2, 2))
            if isinstance(opt, torch.optim.Optimizer):
                p.grad = torch.sparse_coo_tensor(rows[None], g, (6, 2), check_invariants=True)
            else:
                p.grad = BCOO((jnp.asarray(g), jnp.asarray(rows[:, None])), shape=(6, 2))
            opt.step()

    def theirs(value: Any) -> Any:
        p = torch.tensor(np.array(value))
        return torch.optim.SparseAdam([p], lr=0.1), p

    def ours(value: Any) -> Any:
        p = optim.Parameter(np.array(value))
        return SparseAdam([p], lr=0.1), p

    stays, there = theirs(start), theirs(start)
    steps(stays, 0)
    steps(there, 0)
    here = ours(plain(there[1]))
    here[0].load_state_dict(interop.from_torch(there[0].state_dict()))
    steps(stays, 3)
    steps(here, 3)
    back = theirs(plain(here[1]))
    back[0].load_state_dict(interop.to_torch(here[0].state_dict()))
    assert type(back[0].state_dict()["state"][0]["step"]) is int
    steps(stays, 6)
    steps(back, 6)
    compare([plain(back[1])], [plain(stays[1])], 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_dict_goes_round_exactly(dtype: str) -> None:
    p = optim.Parameter(jnp.arange(1, 4).astype(dtype))
    opt = optim.Adam([p], amsgrad=True)
    p.grad = jnp.ones(3, dtype)
    opt.step()
    saved = opt.state_dict()
    tensors = interop.to_torch(saved)
    assert tensors["state"][0]["step"].dtype == torch.float32
    assert tensors["state"][0]["exp_avg"].dtype == getattr(torch, dtype)
    again = interop.from_torch(tensors)
    assert list(again["state"][0]) == list(saved["state"][0])
    for name, x in saved["state"][0].items():
        assert isinstance(again["state"][0][name], jax.Array)
        assert again["state"][0][name].dtype == x.dtype
        np.testing.assert_array_equal(again["state"][0][name], x)
    assert again["param_groups"] == saved["param_groups"]
