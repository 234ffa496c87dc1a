"""The same numbers as torch: parameters and state of every case, against recorded results.

The recorded files make this run without torch; where torch is installed, it must still agree
with them.
"""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

from tests.support.parity import (
    GOLDEN,
    STEPS,
    assert_close,
    flat,
    inputs,
    outcome,
    run_with_schedule,
    run_with_two_pairs,
    unflat,
)
from tests.tables.algorithm import Algorithm, Kwargs, case_id
from tests.tables.algorithms import OF_TORCH, over_torch

over_cases = pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.name}-{case_id(case)}")
        for row in OF_TORCH
        for case in row.cases
    ],
)


@functools.cache
def recording(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def recorded(row: Algorithm, case: Kwargs, dtype: str) -> np.ndarray:
    key = f"{case_id(case)}/{dtype}"
    runs = recording(row.name)
    assert key in runs, f"not recorded: run `python tests/golden/record.py {row.name}`"
    return runs[key]


@over_cases
def test_float64_agrees_with_torch(row: Algorithm, case: Kwargs, x64: None) -> None:
    """50 steps, with a schedule that changes lr in the middle."""
    params, grads = inputs(row, "float64")
    params, state = run_with_schedule(row, case, params, grads, STEPS["float64"])
    result = outcome(row, params, state)
    assert float(state.step) == STEPS["float64"]
    for where, wanted in unflat(recorded(row, case, "float64"), result).items():
        assert_close(result[where], wanted, row.rtol64, f"{row.name} {case} {where}")


@over_cases
def test_float32_agrees_with_torch(row: Algorithm, case: Kwargs) -> None:
    """10 steps, half of them with a second pair that has another lr and takes over the state."""
    params, grads = inputs(row, "float32")
    params, state = run_with_two_pairs(row, case, params, grads, STEPS["float32"])
    result = outcome(row, params, state)
    assert float(state.step) == STEPS["float32"]
    for where, wanted in unflat(recorded(row, case, "float32"), result).items():
        assert_close(result[where], wanted, row.rtol32, f"{row.name} {case} {where}")


@over_torch
def test_torch_still_computes_what_was_recorded(row: Algorithm) -> None:
    pytest.importorskip("torch", reason="compares the recorded results with torch's own")
    from tests.golden.record import torch_result

    for case in row.cases:
        for dtype, rtol in (("float64", 1e-13), ("float32", 1e-6)):
            result = torch_result(row, case, dtype)
            wanted = recorded(row, case, dtype)
            assert_close(flat(result), wanted, rtol, f"{row.name} {case} {dtype}")


@over_torch
def test_nothing_is_recorded_that_no_case_compares(row: Algorithm) -> None:
    keys = {f"{case_id(case)}/{dtype}" for case in row.cases for dtype in STEPS}
    assert set(recording(row.name)) == keys, "run `python tests/golden/record.py` again"


@over_torch
def test_arguments_and_their_defaults_are_torchs(row: Algorithm) -> None:
    torch = pytest.importorskip("torch", reason="compares signatures with torch's")
    theirs = inspect.signature(getattr(torch.optim, row.torch_class)).parameters
    ours = inspect.signature(row.factory).parameters
    for name, parameter in ours.items():
        assert parameter.default == theirs[name].default, name
    shared = [name for name in theirs if name in ours]
    positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == shared[: len(positional)], "positional arguments in another order"
