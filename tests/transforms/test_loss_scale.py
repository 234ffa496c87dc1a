"""dynamic_loss_scale: torch.amp.GradScaler's rules."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.transforms.loss_scale import LossScaleState, dynamic_loss_scale
from functorch_optim.transforms.master_weights import master_weights
from tests.support.problems import assert_trees_close, types

FLOAT0 = np.zeros(2, jax.dtypes.float0)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"init_scale": 1024.0, "growth_interval": 3},
        {"init_scale": 3.0, "growth_factor": 1.7, "backoff_factor": 0.3, "growth_interval": 2},
        {"init_scale": 2.0**126, "growth_interval": 1},
    ],
)
def test_scale_tracker_and_parameters_are_torchs(kwargs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch.amp.GradScaler")
    scaler = torch.amp.GradScaler(device="cpu", enabled=True, **kwargs)
    start = np.float32([1.0, -2.0, 3.0])
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([p], lr=0.01, momentum=0.9)
    tx = dynamic_loss_scale(fo.sgd(0.01, 0.9), **kwargs)
    ours, state, step = jnp.asarray(start), tx.init(jnp.asarray(start)), jax.jit(tx.update)
    bad = {3: np.inf, 4: np.nan, 9: -np.inf}
    for i in range(14):
        optimizer.zero_grad()
        # A linear loss, so that the gradients are these numbers times the scale.
        direction = np.float32([0.01, 0.02, -0.03]) * (i + 1)
        scaler.scale((p * torch.tensor(direction)).sum()).backward()
        if i in bad:
            p.grad[1] = bad[i]
        grads = jnp.asarray(direction * np.asarray(state.scale))
        if i in bad:
            grads = grads.at[1].set(bad[i])
        scaler.step(optimizer)
        scaler.update()
        updates, state = step(grads, state, ours)
        ours = fo.apply_updates(ours, updates)
        np.testing.assert_allclose(state.scale, scaler.get_scale(), rtol=1e-6)
        assert int(state.growth_tracker) == scaler._get_growth_tracker()
        np.testing.assert_allclose(ours, p.detach().numpy(), rtol=1e-6)
    assert step._cache_size() == 1


def test_the_rules_in_numpy() -> None:
    """Growth after the interval, backoff and reset after a bad step, a scale that stays finite."""
    tx = dynamic_loss_scale(fo.sgd(1.0), 2.0**127, growth_interval=2)
    g, state, seen = jnp.ones(2), tx.init(jnp.ones(2)), []
    for good in (1, 1, 0, 1, 0, 1, 1):
        updates, state = tx.update(g * state.scale if good else g * np.nan, state)
        assert bool(np.any(updates)) == bool(good)
        seen.append((float(np.log2(state.scale)), int(state.growth_tracker)))
    assert seen == [(127, 1), (127, 0), (126, 0), (126, 1), (125, 0), (125, 1), (126, 0)]
    assert (state.scale.dtype, state.growth_tracker.dtype) == (np.float32, np.int32)


def test_gradients_are_unscaled_exactly_even_by_a_scale_whose_reciprocal_is_subnormal() -> None:
    for scale in (2.0**127, 2.0**16, 2.0**-100):
        tx = dynamic_loss_scale(fo.sgd(1.0), scale)
        g = jnp.asarray([1.5, -0.25]) * np.float32(scale)
        for update in (tx.update, jax.jit(tx.update)):
            np.testing.assert_array_equal(update(g, tx.init(g))[0], [-1.5, 0.25])


def test_the_inner_pair_sees_halves_in_float32_and_others_in_their_dtype(x64: None) -> None:
    seen = {}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        seen.update({name: g.dtype.name for name, g in updates.items()})
        return updates, state

    tx = dynamic_loss_scale(fo.GradientTransformation(lambda params: (), update), 2.0**20)
    kinds = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
    grads = {kind: jnp.full(2, 0.5, kind) for kind in kinds}
    updates, _ = tx.update(grads, tx.init(grads))
    assert seen == {kind: "float32" if "16" in kind else kind for kind in kinds}
    for g in updates.values():  # 2**-21 is subnormal in float16
        np.testing.assert_array_equal(g, np.full(2, 2.0**-21))


def test_float16_training_needs_the_scale_and_succeeds_with_it() -> None:
    """Gradients of 1e-8 are 0 in float16; scaled, and with wide copies, they train."""
    p = jnp.asarray([1.0, 2.0], jnp.float16)

    def loss(p: Any) -> Any:
        return jnp.sum(p * jnp.float16(2.0**-10)) * jnp.float16(2.0**-17)

    assert not np.any(jax.grad(loss)(p))
    tx = dynamic_loss_scale(master_weights(fo.sgd(2.0**20)), 2.0**15)
    state = tx.init(p)
    grads = jax.grad(lambda p: loss(p) * state.scale.astype(p.dtype))(p)
    updates, state = tx.update(grads, state, p)
    np.testing.assert_array_equal(fo.apply_updates(p, updates), np.float16([1, 2]) - 2.0**-7)


def test_leaves_without_a_gradient_and_empty_trees() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "d": None}
    tx = dynamic_loss_scale(fo.adam(0.1))
    for g in (jnp.ones(2), jnp.asarray([1.0, np.inf])):
        grads = {"a": g, "b": None, "c": FLOAT0, "d": None}
        updates, state = tx.update(grads, tx.init(params), params)
        assert updates["b"] is updates["c"] is updates["d"] is None
        assert types(state) == types(tx.init(params))
    updates, state = tx.update({}, tx.init({}), {})
    assert updates == {} and isinstance(state, LossScaleState) and state.growth_tracker == 1


def test_scans_batches_differentiates_and_donates() -> None:
    p = jnp.asarray([1.0, 2.0])
    grads = jnp.asarray([[1.0, 2.0], [np.nan, 1.0], [3.0, 4.0]])
    init_scale = jnp.float32(4.0)
    tx = dynamic_loss_scale(fo.adam(0.1), init_scale, growth_interval=jnp.int32(2))

    def body(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, p)
        return state, updates

    last, updates = jax.lax.scan(body, tx.init(p), grads)
    assert types(last) == types(tx.init(p))
    step, state = jax.jit(body, donate_argnums=0), tx.init(p)
    for g in grads:
        state, update = step(state, g)
    assert_trees_close(state, last, 1e-6)
    np.testing.assert_allclose(update, updates[-1], rtol=1e-6)
    assert init_scale == 4.0  # not given away with the state

    states, batched = jax.vmap(body, (None, 0))(tx.init(p), grads)
    np.testing.assert_array_equal(states.scale, [4, 2, 4])
    assert not np.any(batched[1]) and np.all(batched[0] != 0)

    def loss(lr: Any, g: Any) -> Any:
        tx = dynamic_loss_scale(fo.adam(lr))
        return jnp.sum(tx.update(g, tx.init(p), p)[0])

    slopes = jax.vmap(jax.grad(loss), (None, 0))(jnp.float32(0.1), grads)
    np.testing.assert_allclose(slopes, [-2, 0, -2], rtol=1e-3)


def test_exports() -> None:
    p = jnp.ones(3)
    tx = dynamic_loss_scale(fo.adam(0.1))
    exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
        p, tx.init(p), p
    )
    _, state = exported.call(p * np.nan, tx.init(p), p)
    assert state.scale == 2.0**15


def test_equal_pairs_and_what_is_refused() -> None:
    assert dynamic_loss_scale(fo.sgd()) is dynamic_loss_scale(fo.sgd(), 2.0**16)
    with pytest.raises(AssertionError, match=r"^The growth factor must be > 1\.0\.$"):
        dynamic_loss_scale(fo.sgd(), growth_factor=1.0)
    with pytest.raises(AssertionError, match=r"^The backoff factor must be < 1\.0\.$"):
        dynamic_loss_scale(fo.sgd(), backoff_factor=1)
    for name in ("init_scale", "growth_factor", "backoff_factor", "growth_interval"):
        with pytest.raises(TypeError, match=f"^{name} should be a number"):
            dynamic_loss_scale(fo.sgd(), **{name: "1"})
    with pytest.raises(TypeError, match="the transform of dynamic_loss_scale should be an"):
        dynamic_loss_scale(fo.sgd)


def test_the_scale_stays_inside_of_its_limits() -> None:
    """After many bad steps a good one is a step; torch's scale is 0 then, and the step NaN."""
    p, bad = jnp.ones(2), jnp.full(2, jnp.inf)
    for limits, lowest in (({}, 2.0**-24), ({"min_scale": 1.0}, 1.0), ({"min_scale": 3.0}, 3.0)):
        tx = dynamic_loss_scale(fo.sgd(1.0), growth_interval=1, max_scale=2.0**17, **limits)
        state = jax.lax.scan(
            lambda state, _, tx=tx: (tx.update(bad, state)[1], None), tx.init(p), None, length=200
        )[0]
        assert float(state.scale) == lowest
        updates, state = tx.update(p * state.scale, state)
        np.testing.assert_array_equal(updates, [-1, -1])
        for _ in range(60):
            _, state = tx.update(p, state)
        assert float(state.scale) == 2.0**17


def test_limits_and_intervals_are_checked() -> None:
    for arguments in (
        {"min_scale": 0.0},
        {"min_scale": 2.0**17},
        {"max_scale": 2.0**15},
        {"max_scale": float("inf")},
        {"init_scale": float("nan")},
        {"init_scale": 0},
        {"init_scale": -1.0},
        {"growth_interval": 0},
        {"growth_interval": 1.5},
        {"backoff_factor": 0.0},
        {"growth_factor": float("nan")},
        {"min_scale": jnp.ones(2)},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=name):
            dynamic_loss_scale(fo.sgd(), **arguments)
    with pytest.raises(TypeError, match="growth_interval should be a number"):
        dynamic_loss_scale(fo.sgd(), growth_interval=True)
