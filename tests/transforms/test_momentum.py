"""Momentum as a transform: `trace` and `ema`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.momentum import EmaState, TraceState, ema, trace
from tests.support.problems import at, loop, problem, types


def run(tx: Any, grads: np.ndarray, params: Any = None) -> tuple[np.ndarray, Any]:
    """The updates of all steps, and the last state, by a scan."""

    def body(state: Any, g: jax.Array) -> tuple[Any, jax.Array]:
        updates, state = tx.update(g, state, params)
        return state, updates

    state, updates = jax.jit(lambda state, gs: jax.lax.scan(body, state, gs))(
        tx.init(jnp.zeros(grads.shape[1:], grads.dtype)), jnp.asarray(grads)
    )
    return np.asarray(updates), state


def gradients(dtype: str = "float64", steps: int = 6) -> np.ndarray:
    random = np.random.RandomState(5)
    x = random.standard_normal((steps, 3))
    if "complex" in dtype:
        x = x + 1j * random.standard_normal((steps, 3))
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_trace_is_a_decaying_sum(decay: float, nesterov: bool, dtype: str, x64: None) -> None:
    grads = gradients(dtype)
    updates, state = run(trace(decay, nesterov), grads)
    total = np.zeros(3, dtype)
    for g, update in zip(grads, updates, strict=True):
        total = g + decay * total
        np.testing.assert_allclose(update, g + decay * total if nesterov else total, rtol=1e-13)
    assert isinstance(state, TraceState)
    assert float(state.step) == len(grads)
    np.testing.assert_allclose(state.trace, total, rtol=1e-13)
    assert state.trace.dtype == dtype


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_ema_is_a_running_average(decay: float, debias: bool, dtype: str, x64: None) -> None:
    grads = gradients(dtype)
    updates, state = run(ema(decay, debias), grads)
    average = np.zeros(3, dtype)
    for t, (g, update) in enumerate(zip(grads, updates, strict=True), start=1):
        average = decay * average + (1 - decay) * g
        wanted = average / (1 - decay**t) if debias else average
        np.testing.assert_allclose(update, wanted, rtol=1e-12)
    assert isinstance(state, EmaState)
    np.testing.assert_allclose(state.ema, average, rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_trace_is_that_of_optax(nesterov: bool) -> None:
    grads = gradients("float32")
    wanted, _ = run(optax.trace(0.9, nesterov), grads)
    np.testing.assert_allclose(run(trace(0.9, nesterov), grads)[0], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("debias", [False, True])
def test_ema_is_that_of_optax(debias: bool) -> None:
    """With a decay of 0.9, where the rounding of optax's `1 - decay**t` is small."""
    grads = gradients("float32")
    with jax.numpy_dtype_promotion("standard"):  # optax's power of a count needs it
        wanted, _ = run(optax.ema(0.9, debias), grads)
    np.testing.assert_allclose(run(ema(0.9, debias), grads)[0], wanted, rtol=2e-6, atol=1e-7)


def test_the_weight_of_the_new_update_is_not_formed_from_a_rounded_decay() -> None:
    """1 - float32(0.9999) is off by 1.7e-4 of itself."""
    updates, state = run(ema(0.9999, False), np.ones((1, 3), np.float32))
    np.testing.assert_allclose(updates[0], np.full(3, 1e-4), rtol=2e-7)
    np.testing.assert_allclose(state.ema, np.full(3, 1e-4), rtol=2e-7)
    updates, _ = run(ema(0.9999), np.ones((4, 3), np.float32))
    np.testing.assert_allclose(updates, np.ones((4, 3)), rtol=1e-6)


def test_a_chain_with_trace_is_sgd_with_momentum() -> None:
    params, grads = problem()
    for nesterov in (False, True):
        wanted, _ = loop(fo.sgd(0.1, momentum=0.9, nesterov=nesterov), params, grads)
        for tx in (
            fo.chain(trace(0.9, nesterov), fo.scale(-0.1)),
            fo.chain(fo.scale(-0.1), trace(0.9, nesterov)),
        ):
            got, _ = loop(tx, params, grads)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, wanted)


def test_decay_may_be_a_schedule_or_traced() -> None:
    grads = np.ones((3, 1), np.float32)
    decays = [0.5, 0.25, 0.0]
    schedule = lambda count: jnp.asarray(decays)[count]  # noqa: E731
    np.testing.assert_allclose(run(trace(schedule), grads)[0][:, 0], [1, 1.25, 1])
    np.testing.assert_allclose(run(ema(schedule, False), grads)[0][:, 0], [0.5, 0.875, 1])
    batched = jax.vmap(lambda decay: trace(decay).update(jnp.ones(2), TraceState(1.0, jnp.ones(2))))
    updates, _ = batched(jnp.asarray(decays))
    np.testing.assert_allclose(updates[:, 0], [1.5, 1.25, 1])


@pytest.mark.parametrize("tx", [trace(0.9, True), ema(0.9)], ids=["trace", "ema"])
class TestBoth:
    def test_skipped_leaves_keep_their_state(self, tx: Any) -> None:
        params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "d": None}
        grads = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None, "d": None}
        _, state = tx.update(grads, tx.init(params), params)
        updates, new = tx.update({**grads, "b": None}, state, params)
        assert (updates["b"], updates["c"], updates["d"]) == (None, None, None)
        np.testing.assert_array_equal(new[1]["b"], state[1]["b"])
        assert (new[1]["a"] != state[1]["a"]).all()
        assert (state[1]["c"], state[1]["d"]) == (None, None)
        assert tx.update({}, tx.init({}), {})[0] == {}

    def test_dtypes_and_types_stay(self, tx: Any, x64: None) -> None:
        kinds = ("bfloat16", "float16", "float32", "float64", "complex64")
        params = {kind: jnp.ones(2, kind) for kind in kinds}
        state = tx.init(params)
        updates, new = tx.update(params, state, params)
        for kind in kinds:
            kept = "float32" if "16" in kind else kind
            assert (updates[kind].dtype, new[1][kind].dtype) == (kind, kept)
        assert types(new) == types(state)

    def test_half_precision_is_rounded_once(self, tx: Any) -> None:
        """With a float32 buffer, only the update is rounded: the average of ones stays one."""
        wide = fo.float32_state(tx)
        params = jnp.ones(2, jnp.bfloat16)
        state = wide.init(params)
        reference = tx.init(params.astype(jnp.float32))
        for _ in range(5):
            updates, state = wide.update(params, state, params)
            wanted, reference = tx.update(params.astype(jnp.float32), reference)
        assert state[1].dtype == np.float32
        np.testing.assert_allclose(state[1], reference[1], rtol=1e-6)
        np.testing.assert_array_equal(updates, wanted.astype(jnp.bfloat16))

    def test_gradients_flow_and_memory_is_given_away(self, tx: Any) -> None:
        params, grads = problem()

        def total(g: Any) -> jax.Array:
            updates, _ = tx.update(g, tx.init(params), params)
            return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

        slopes = jax.grad(total)(jax.tree.map(jnp.zeros_like, params))
        assert all(np.isfinite(x).all() and (x > 0).all() for x in jax.tree.leaves(slopes))
        step = jax.jit(tx.update, donate_argnums=1)
        step(at(grads, 0), tx.init(params), params)


def test_equal_arguments_make_one_pair() -> None:
    assert trace(0.9) is trace(decay=0.9, nesterov=False)
    assert ema(0.9) is ema(0.9, True)
    assert ema(0.9) is not ema(0.9, False)


def test_what_cannot_be_used_is_refused() -> None:
    for decay in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"^Invalid decay value: {decay}$"):
            trace(decay)
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"^Invalid decay value: {decay}$"):
            ema(decay)
    for build in (trace, ema):
        for decay in ("0.9", None):
            with pytest.raises(TypeError, match="decay should be a number, an array or a sched"):
                build(decay)
    with pytest.raises(ValueError, match=r"shape at \['w'\]"):
        trace(0.9).update({"w": jnp.ones(1)}, trace(0.9).init({"w": jnp.ones(2)}))
