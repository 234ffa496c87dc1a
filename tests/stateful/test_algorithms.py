"""Every algorithm behind torch's face: the pair's numbers, and torch's where it is installed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.parity import assert_close
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import over_torch

STEPS = 6


def problem(row: Algorithm) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters of the row's shapes in float64, and gradients for each step."""
    random = np.random.RandomState(3)
    shapes = row.shapes[:3]
    params = [np.asarray(random.standard_normal(shape)) for shape in shapes]
    grads = [[np.asarray(random.standard_normal(s)) for s in shapes] for _ in range(2 * STEPS)]
    return params, grads


def options(row: Algorithm) -> dict[str, Any]:
    return {**row.flags, **row.typical}


def run(opt: optim.Optimizer, grads: list[list[np.ndarray]]) -> None:
    for step in grads:
        for p, grad in zip(opt.param_groups[0]["params"], step, strict=True):
            p.grad = grad
        opt.step()


def stepped(row: Algorithm) -> optim.Optimizer:
    params, grads = problem(row)
    opt = getattr(optim, row.torch_class)(list(map(optim.Parameter, params)), **options(row))
    run(opt, grads[:STEPS])
    return opt


@over_torch
def test_the_class_has_the_pairs_numbers(row: Algorithm, x64: None) -> None:
    params, grads = problem(row)
    tx = row.factory(**options(row))
    state, update = tx.init(params), jax.jit(tx.update)
    for step in grads[:STEPS]:
        updates, state = update(step, state, params)
        params = fo.apply_updates(params, updates)
    for p, wanted in zip(stepped(row).params, params, strict=True):
        assert_close(np.asarray(p), np.asarray(wanted), max(row.rtol64, 1e-12), row.name)


@over_torch
def test_numbers_change_without_a_compile_and_have_their_effect(row: Algorithm) -> None:
    opt, twin = stepped(row), stepped(row)
    _, grads = problem(row)
    count = opt.compile_count
    group = opt.param_groups[0]
    for name, value in row.typical.items():
        group[name] = jax.tree.map(lambda x: x * 0.75, value)
    group["weight_decay" if "weight_decay" in group else "lr"] = 0.5
    run(opt, grads[STEPS : STEPS + 2])
    run(twin, grads[STEPS : STEPS + 2])
    assert opt.compile_count == count
    assert not np.array_equal(opt.params[-1], twin.params[-1])


@over_torch
def test_state_dict_round_trip_goes_on_identically(row: Algorithm, x64: None) -> None:
    opt = stepped(row)
    _, grads = problem(row)
    cells = [optim.Parameter(np.asarray(p)) for p in opt.params]
    resumed = getattr(optim, row.torch_class)(cells, lr=1.0)
    resumed.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    duplicates = [resumed, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    run(opt, grads[STEPS:])
    for other in duplicates:
        run(other, grads[STEPS:])
        for p, wanted in zip(other.params, opt.params, strict=True):
            np.testing.assert_array_equal(p, wanted)


@over_torch
def test_a_learning_rate_array_gives_the_same_numbers(row: Algorithm, x64: None) -> None:
    params, grads = problem(row)
    arrays = {**options(row), "lr": jnp.asarray(options(row)["lr"])}
    opt = getattr(optim, row.torch_class)(list(map(optim.Parameter, params)), **arrays)
    run(opt, grads[:STEPS])
    for p, wanted in zip(opt.params, stepped(row).params, strict=True):
        assert_close(np.asarray(p), np.asarray(wanted), max(row.rtol64, 1e-12), row.name)


def in_torch(row: Algorithm) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="compares with torch's own optimizer")
    params, grads = problem(row)
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    reference = getattr(torch.optim, row.torch_class)(theirs, **options(row))
    run_torch(torch, theirs, reference, grads[:STEPS])
    return theirs, reference


def run_torch(torch: Any, params: Any, reference: Any, grads: Any) -> None:
    for step in grads:
        for p, grad in zip(params, step, strict=True):
            p.grad = torch.tensor(grad)
        reference.step()


def as_numpy(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: as_numpy(value) for key, value in x.items()}
    return x.numpy().copy() if hasattr(x, "numpy") else x


@over_torch
def test_state_dict_and_repr_are_torchs(row: Algorithm, x64: None) -> None:
    _, reference = in_torch(row)
    opt = stepped(row)
    assert repr(opt) == repr(reference)
    ours, wanted = opt.state_dict(), reference.state_dict()
    assert ours["param_groups"] == wanted["param_groups"]
    assert list(ours["param_groups"][0]) == list(wanted["param_groups"][0])
    assert list(ours["state"]) == list(wanted["state"])
    for key, entries in wanted["state"].items():
        assert list(ours["state"][key]) == list(entries)
        for name, value in entries.items():
            actual = np.asarray(ours["state"][key][name])
            assert actual.dtype == value.numpy().dtype, (row.name, name)
            assert_close(actual, value.numpy(), max(row.rtol64, 1e-12), f"{row.name} {name}")


@over_torch
def test_torchs_checkpoint_goes_on_here(row: Algorithm, x64: None) -> None:
    theirs, reference = in_torch(row)
    cells = [optim.Parameter(p.detach().numpy().copy()) for p in theirs]
    opt = getattr(optim, row.torch_class)(cells)
    opt.load_state_dict(as_numpy(reference.state_dict()))
    _, grads = problem(row)
    run(opt, grads[STEPS:])
    run_torch(pytest.importorskip("torch"), theirs, reference, grads[STEPS:])
    for p, wanted in zip(opt.params, theirs, strict=True):
        assert_close(np.asarray(p), wanted.detach().numpy(), max(row.rtol64, 1e-12), row.name)
