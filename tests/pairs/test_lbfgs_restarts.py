"""L-BFGS goes on after a trial that is not finite: pairs that led there are dropped."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.algorithms import lbfgs as algorithm

WOLFE = "strong_wolfe"


def barrier(x: jax.Array) -> jax.Array:
    """Its minimum is at 1; below 0 it is NaN."""
    return jnp.sum(x - jnp.log(x))


@functools.partial(jax.jit, static_argnames=("search", "updates", "max_iter"))
def minimized(
    x: jax.Array, search: str | None, updates: int = 30, max_iter: int = 7
) -> tuple[jax.Array, Any]:
    tx = fo.lbfgs(max_iter=max_iter, history_size=5, line_search_fn=search)
    function = jax.value_and_grad(barrier)

    def update(carry: Any, _: None) -> Any:
        x, state = carry
        change, state = tx.update(None, state, x, value_and_grad_fn=function)
        return (x + change, state), None

    return jax.lax.scan(update, (x, tx.init(x)), length=updates)[0]


def test_a_search_that_met_nan_reaches_the_minimum() -> None:
    x, state = minimized(jnp.full(1, 30.0), WOLFE, max_iter=20)
    np.testing.assert_allclose(x, [1.0], rtol=1e-4)
    assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(state))


def test_without_a_search_it_does_too() -> None:
    x, state = minimized(jnp.asarray([30.0, 3.0, 0.1, 200.0]), None, max_iter=20)
    np.testing.assert_allclose(x, np.ones(4), rtol=1e-3)
    assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(state))


def test_a_bad_problem_touches_no_other_under_vmap() -> None:
    starts = jnp.asarray([[30.0], [2.0], [-1.0], [jnp.nan], [0.5]])
    batched, _ = jax.vmap(lambda x: minimized(x, WOLFE))(starts)
    for start, found in zip(starts, batched, strict=True):
        np.testing.assert_allclose(found, minimized(start, WOLFE)[0], rtol=1e-3)
    np.testing.assert_allclose(batched[jnp.asarray([0, 1, 4])], np.ones((3, 1)), rtol=1e-3)
    assert batched[2] == -1  # where it started, and the function is NaN
    assert np.isnan(batched[3])


@pytest.mark.parametrize("search", [WOLFE, None])
@pytest.mark.parametrize(
    "spoiled",
    [
        {"old_dirs": np.nan, "pairs": 2},
        {"ro": np.inf, "pairs": 2},
        {"old_stps": -np.inf, "pairs": 2},
        {"H_diag": np.nan},
        {"H_diag": -1.0},  # uphill
    ],
    ids=str,
)
def test_a_history_that_gives_no_descent_is_dropped(search: str | None, spoiled: Any) -> None:
    function = jax.value_and_grad(lambda x: jnp.sum(x * x))
    tx = fo.lbfgs(0.5, max_iter=3, max_eval=20, history_size=2, line_search_fn=search)
    x = jnp.asarray([3.0, 4.0])
    state = tx.init(x)._replace(n_iter=jnp.int32(5), t=jnp.float32(1))
    filled = {name: jnp.full_like(getattr(state, name), value) for name, value in spoiled.items()}
    change, state = tx.update(None, state._replace(**filled), x, value_and_grad_fn=function)
    assert np.linalg.norm(x + change) < 4.5
    assert np.all(np.isfinite(state.d))
    assert np.isfinite(state.H_diag)


@pytest.mark.parametrize("search", [WOLFE, None])
def test_a_caller_that_drives_it_by_hand_gets_there_too(search: str | None) -> None:
    """As the stateful optimizer does with a closure."""
    function = jax.jit(jax.value_and_grad(barrier))
    advance = jax.jit(algorithm.advance, static_argnums=(4, 5))
    numbers = algorithm.SearchNumbers(
        jnp.float32(1), jnp.int32(20), jnp.int32(25), jnp.float32(1e-7), jnp.float32(1e-9)
    )
    x = jnp.asarray([30.0, 3.0, 0.1, 200.0])
    state = algorithm.empty(4, x.dtype, 5)
    for _ in range(25):
        run = algorithm.begin(state, x)
        while not run.stopped:
            run = advance(run, *function(run.trial), numbers, search is not None, True)
        x, state = run.x, run.state
    np.testing.assert_allclose(x, np.ones(4), rtol=1e-3)


def test_the_step_is_a_whole_number_that_stays_at_its_last() -> None:
    x = jnp.ones(1)
    tx = fo.lbfgs(history_size=1)
    state = tx.init(x)
    assert state.step.dtype == jnp.int32
    last = state._replace(step=jnp.int32(2**31 - 1))
    _, after = tx.update(None, last, x, value_and_grad_fn=jax.value_and_grad(jnp.sum))
    assert int(after.step) == 2**31 - 1
