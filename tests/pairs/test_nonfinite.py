"""One gradient with NaN and infinity in it spoils those entries that it spoils in torch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.tables.algorithms import OF_TORCH, Algorithm, over_table

GOOD = np.array([1.0, 1.0, 1.0, 1.0, -1.0, 0.5], np.float32)
BAD = np.array([np.nan, np.inf, -np.inf, 1.0, 0.0, -1.0], np.float32)
ONLY_NAN = np.array([np.nan, 1.0, 1.0, 1.0, 0.0, -1.0], np.float32)
RUNS = {
    "late": (GOOD, BAD, GOOD, -GOOD, GOOD, GOOD, GOOD),
    "first": (BAD, GOOD, -GOOD, GOOD, GOOD, GOOD, GOOD),
    "nan": (GOOD, ONLY_NAN, GOOD, GOOD),
}
# Of all six entries, those that are not finite at the end; recorded from torch where it has them.
ALL, PLAIN = {0, 1, 2, 3, 4, 5}, {0, 1, 2}
SPOILED = {
    "lamb": ALL,  # a norm of the leaf spoils all of it
    "lars": ALL,
    "muon": ALL,
    "prodigy": ALL,  # the estimate of the step size is that of all
    "rprop": set(),
    "lion": {0},  # the sign of infinity is finite
    "adopt": {0},  # which clips
}
SHAPE = {"muon": (2, 3)}

over_runs = pytest.mark.parametrize("run", RUNS)


def ours(row: Algorithm, run: str) -> np.ndarray:
    tx = row.factory()
    p = jnp.ones(SHAPE.get(row.name, (6,)))
    state, points = tx.init(p), []
    for g in RUNS[run]:
        updates, state = tx.update(jnp.asarray(g).reshape(p.shape), state, p)
        p = fo.apply_updates(p, updates)
        points.append(np.asarray(p).ravel())
    return np.array(points)


@over_runs
@pytest.mark.parametrize("row", OF_TORCH, ids=lambda row: row.name)
def test_the_same_entries_are_finite_as_in_torch(row: Algorithm, run: str) -> None:
    """And equal. (Where updates are added, what is infinite there may be NaN here.)"""
    torch = pytest.importorskip("torch", reason="compares with torch's own run")
    p = torch.nn.Parameter(torch.ones(SHAPE.get(row.name, (6,))))
    optimizer = getattr(torch.optim, row.torch_class)([p])
    points = []
    for g in RUNS[run]:
        p.grad = torch.tensor(g).reshape(p.shape)
        optimizer.step()
        points.append(p.detach().numpy().copy().ravel())
    wanted, actual = np.array(points), ours(row, run)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    np.testing.assert_allclose(actual[finite], wanted[finite], rtol=1e-5)


@over_runs
@over_table
def test_only_the_entries_without_a_number_are_spoiled(row: Algorithm, run: str) -> None:
    """What torch does, recorded: all others stay finite."""
    points = ours(row, run)
    expected = SPOILED.get(row.name, PLAIN)
    bad = {i for i in range(6) if not all(np.isfinite(g[i]) for g in RUNS[run])}
    found = set(np.flatnonzero(~np.isfinite(points[-1])).tolist())
    assert found == (expected if expected == ALL else expected & bad)


def test_rprop_goes_on_after_a_nan() -> None:
    tx = fo.rprop(0.1)
    p = jnp.ones(2)
    state = tx.init(p)
    for g in ([np.nan, 1.0], [1.0, 1.0]):
        updates, state = tx.update(jnp.asarray(g), state, p)
        p = p + updates
    np.testing.assert_allclose(p, [0.9, 0.78], rtol=1e-6)


@pytest.mark.parametrize("factory", [fo.sgd, fo.adam, fo.adamw, fo.lion, fo.adan, fo.adopt])
def test_a_weight_decay_of_zero_leaves_infinite_parameters(factory: Any) -> None:
    p = jnp.asarray([1.0, np.inf, -np.inf])
    g = jnp.ones(3)
    for weight_decay in (0.0, jnp.float32(0), lambda count: jnp.float32(0)):
        tx = factory(weight_decay=weight_decay)
        updates, _ = tx.update(g, tx.init(p), p)
        assert np.all(np.isfinite(updates))
