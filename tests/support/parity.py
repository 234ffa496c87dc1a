"""The runs that are compared with torch: their inputs, and how a result is laid out.

A result is a dict from (field, parameter) to an array: `("params", "0")`, `("exp_avg", "0")`, ...
In a recorded file it is one flat array per run, the fields in the order of the algorithm's state.
"""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functorch_optim as fo
from tests.tables.algorithm import Algorithm, Kwargs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
STEPS = {"float64": 50, "float32": 10}
LR_CHANGE = 0.3  # what lr is multiplied by in the middle of each run

Result = dict[tuple[str, str], np.ndarray]


def inputs(row: Algorithm, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters by name, and for each its gradients of all steps along a first axis.

    RandomState's stream is frozen: every numpy gives the same numbers. Gradients change sign, span
    four orders of magnitude, and are exactly 0 in places: one element always (a second moment that
    stays 0), everything at some steps (the first one for the last parameter).

    Each shape is a compilation, so float64 takes every other shape of the row, and a complex
    one; float32 takes the rest.
    """
    random = np.random.RandomState(2026)
    wide = dtype == "float64"
    kinds = [(shape, dtype) for shape in row.shapes[0 if wide else 1 :: 2]]
    if wide and row.complex:
        kinds.append(((2, 2), "complex128"))
    params, grads = {}, {}
    for index, (shape, kind) in enumerate(kinds):

        def draw(*size: int, kind: str = kind) -> np.ndarray:
            real = random.standard_normal(size)
            return real + 1j * random.standard_normal(size) if "complex" in kind else real

        name = str(index)
        params[name] = draw(*shape).astype(kind)
        gradients = draw(max(STEPS.values()), *shape) * 10 ** random.uniform(-3, 1, shape)
        gradients[7 + index] = 0
        if index + 1 == len(kinds):
            gradients[0] = 0
        if shape:
            gradients[:, *np.zeros(len(shape), int)] = 0
        grads[name] = gradients[: STEPS[dtype]].astype(kind)
    return params, grads


def learning_rates(row: Algorithm, case: Kwargs) -> tuple[float, float]:
    """The learning rates of the first and of the second half of a run."""
    lr = case.get("lr", inspect.signature(row.factory).parameters["lr"].default)
    return lr, lr * LR_CHANGE


def outcome(row: Algorithm, params: Mapping[str, Any], state: Any) -> Result:
    """The result of a run of ours. Numbers that torch keeps per parameter are repeated."""
    result = {("params", name): np.asarray(p) for name, p in params.items()}
    for field in row.state:
        value = getattr(state, field)
        if field == "step" or value is None:
            continue
        by_name = value if isinstance(value, dict) else dict.fromkeys(params, value)
        result |= {(field, n): np.asarray(x) for n, x in by_name.items() if x is not None}
    return result


def flat(result: Result) -> np.ndarray:
    """A result as one array of reals."""
    return np.concatenate([as_reals(x) for x in result.values()])


def unflat(array: np.ndarray, like: Result) -> Result:
    """The inverse of `flat`, each part a flat array of reals."""
    sizes = [as_reals(x).size for x in like.values()]
    assert sum(sizes) == array.size, "another layout than recorded: a buffer more or less, or size"
    parts = np.split(array, np.cumsum(sizes)[:-1])
    return dict(zip(like, parts, strict=True))


def as_reals(x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x).reshape(-1)
    return x.view(x.real.dtype)


def run_with_schedule(
    row: Algorithm, case: Kwargs, params: dict[str, Any], grads: dict[str, Any], steps: int
) -> tuple[Any, Any]:
    """Parameters and state after the run; lr changes by a schedule."""
    first, second = learning_rates(row, case)

    def lr(count: Any) -> jax.Array:
        return jnp.where(count < steps // 2, first, second)

    tx = row.factory(**{**case, "lr": lr})
    return run(tx, params, tx.init(params), grads, range(steps))


def run_with_two_pairs(
    row: Algorithm, case: Kwargs, params: dict[str, Any], grads: dict[str, Any], steps: int
) -> tuple[Any, Any]:
    """The same; in the middle another pair, with the new lr, takes over the state."""
    first, second = (row.factory(**{**case, "lr": lr}) for lr in learning_rates(row, case))
    half = steps // 2
    params, state = run(first, params, first.init(params), grads, range(half))
    return run(second, params, state, grads, range(half, steps))


def run(
    tx: fo.GradientTransformation, params: Any, state: Any, grads: dict[str, Any], steps: range
) -> tuple[Any, Any]:
    for i in steps:
        updates, state = tx.update({k: g[i] for k, g in grads.items()}, state, params)
        params = fo.apply_updates(params, updates)
    return params, state


def assert_close(actual: np.ndarray, wanted: np.ndarray, rtol: float, what: str) -> None:
    """Every element within rtol of itself, plus rtol / 10 of the array's largest.

    The second part is for elements that are small because large numbers cancelled. Numbers too
    small for float32's normal range count as 0: XLA computes so.
    """
    actual, wanted = as_reals(np.asarray(actual)), as_reals(np.asarray(wanted))
    assert actual.shape == wanted.shape, what
    allowed = rtol * (np.abs(wanted) + 0.1 * np.max(np.abs(wanted), initial=0.0)) + 1.2e-38
    wrong = ~(np.abs(actual - wanted) <= allowed)  # true for NaN as well
    assert not np.any(wrong), (
        f"{what}: {actual[wrong]} instead of {wanted[wrong]}, allowed is {allowed[wrong]}"
    )
