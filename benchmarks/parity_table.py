"""How far each algorithm is from torch.optim: the table of the README, measured.

    python -m pip install -e ".[parity]" && python benchmarks/parity_table.py

For every algorithm and a list of configurations, the largest relative difference of any parameter
after 50 steps in float64 and 10 steps in float32, with random gradients, some of them zero; of the
pure pair under `jax.jit`, and of the stateful class. Relative to the largest element of each
parameter.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

import functorch_optim as fo
import functorch_optim.stateful as optim

jax.config.update("jax_enable_x64", True)

ADAM = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "maximize": True}


class Row(NamedTuple):
    """An algorithm: its class in torch, the paper, and configurations besides the defaults."""

    name: str
    paper: str
    configurations: list[dict[str, Any]]
    shapes: tuple[tuple[int, ...], ...] = ((), (7,), (5, 4), (3, 2, 4))


ROWS = [
    Row(
        "Adadelta",
        "Zeiler 2012",
        [{"rho": 0.8, "eps": 1e-4, "weight_decay": 0.1, "maximize": True}],
    ),
    Row(
        "Adafactor",
        "Shazeer, Stern 2018",
        [{"lr": 0.05, "weight_decay": 0.1, "d": 2.0}, {"eps": (1e-3, 1e-2), "beta2_decay": -0.5}],
        ((), (7,), (5, 4), (3, 2, 4), (2, 3, 2, 4)),
    ),
    Row(
        "Adagrad",
        "Duchi, Hazan, Singer 2011",
        [{"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}],
    ),
    Row("Adam", "Kingma, Ba 2015", [ADAM, {**ADAM, "amsgrad": True}]),
    Row("AdamW", "Loshchilov, Hutter 2019", [ADAM, {**ADAM, "amsgrad": True}]),
    Row("Adamax", "Kingma, Ba 2015", [ADAM]),
    Row(
        "ASGD",
        "Polyak, Juditsky 1992",
        [{"lr": 0.05, "t0": 5, "lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1}],
    ),
    Row(
        "Muon",
        "Jordan et al. 2024",
        [{"lr": 0.02, "nesterov": False}, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"}],
        ((5, 4), (4, 5), (8, 8)),
    ),
    Row(
        "NAdam",
        "Dozat 2016",
        [{**ADAM, "momentum_decay": 0.1}, {**ADAM, "decoupled_weight_decay": True}],
    ),
    Row("RAdam", "Liu et al. 2020", [ADAM, {**ADAM, "decoupled_weight_decay": True}]),
    Row(
        "RMSprop",
        "Hinton 2012; Graves 2013",
        [{"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}, {"centered": True, "eps": 1e-3}],
    ),
    Row(
        "Rprop",
        "Riedmiller, Braun 1993",
        [{"lr": 0.05, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1)}],
    ),
    Row(
        "SGD",
        "Sutskever et al. 2013",
        [
            {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
            {"lr": 0.02, "momentum": 0.9, "dampening": 0.5, "maximize": True},
        ],
    ),
]


def differences(row: Row, options: dict[str, Any], dtype: str, steps: int) -> tuple[float, float]:
    """The relative differences of the pair and of the stateful class after a run."""
    random = np.random.RandomState(0)
    start = [np.asarray(random.randn(*shape), dtype) for shape in row.shapes]
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in start]
    reference = getattr(torch.optim, row.name)(theirs, **options)
    cells = [optim.Parameter(p) for p in start]
    stateful = getattr(optim, row.name)(cells, **options)
    tx = getattr(fo, row.name.lower())(**options)
    params, state, update = start, tx.init(start), jax.jit(tx.update)
    for _ in range(steps):
        grads = [
            np.asarray(random.randn(*shape) * random.choice([0.0, 1.0, 3.0]), dtype)
            for shape in row.shapes
        ]
        for p, cell, grad in zip(theirs, cells, grads, strict=True):
            p.grad, cell.grad = torch.tensor(grad), grad
        reference.step()
        stateful.step()
        updates, state = update(grads, state, params)
        params = fo.apply_updates(params, updates)
    wanted = [p.detach().numpy() for p in theirs]
    return largest(params, wanted), largest([cell.data for cell in cells], wanted)


def largest(actual: list[Any], wanted: list[np.ndarray]) -> float:
    return max(
        float(np.max(np.abs(np.asarray(a) - w)) / np.max(np.abs(w)))
        for a, w in zip(actual, wanted, strict=True)
    )


def main() -> None:
    print("| algorithm | paper | options | pair f64 | f32 | stateful f64 | f32 |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        cells = []
        for dtype, steps in (("float64", 50), ("float32", 10)):
            pairs = [
                differences(row, options, dtype, steps) for options in ({}, *row.configurations)
            ]
            cells.append([max(column) for column in zip(*pairs, strict=True)])
        (pair64, stateful64), (pair32, stateful32) = cells
        factory = row.name.lower()
        options = ", ".join(inspect.signature(getattr(fo, factory)).parameters)
        numbers = " | ".join(f"{x:.0e}" for x in (pair64, pair32, stateful64, stateful32))
        print(f"| `{factory}` | {row.paper} | {options} | {numbers} |")


if __name__ == "__main__":
    main()
