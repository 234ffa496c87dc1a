"""Records torch's results for the cases of the table: `python tests/golden/record.py [name ...]`.

Writes tests/golden/<algorithm>.npz, for all algorithms if none is named. Needs torch.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.support.parity import (
    GOLDEN,
    LR_CHANGE,
    STEPS,
    Result,
    flat,
    inputs,
)
from tests.tables.algorithm import Algorithm, Kwargs, case_id  # path set above
from tests.tables.algorithms import OF_TORCH


def torch_result(row: Algorithm, case: Kwargs, dtype: str) -> Result:
    """Final parameters and state of a torch run."""
    start, grads = inputs(row, dtype)
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start.items()}
    optimizer = getattr(torch.optim, row.torch_class)(params.values(), **case)
    steps = STEPS[dtype]
    for i in range(steps):
        if i == steps // 2:
            optimizer.param_groups[0]["lr"] *= LR_CHANGE
        for name, p in params.items():
            p.grad = torch.tensor(grads[name][i])
        optimizer.step()
    result = {("params", name): p.detach().numpy() for name, p in params.items()}
    for field in row.state:
        for name, p in params.items():
            value = optimizer.state[p].get(field)
            if field != "step" and value is not None:
                result[field, name] = value.detach().numpy()
    return result


def main(names: list[str]) -> None:
    for row in OF_TORCH:
        if names and row.name not in names:
            continue
        runs = {
            f"{case_id(case)}/{dtype}": flat(torch_result(row, case, dtype))
            for case in row.cases
            for dtype in STEPS
        }
        path = GOLDEN / f"{row.name}.npz"
        np.savez_compressed(path, **runs)
        print(f"{path.name}: {len(runs)} runs, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
