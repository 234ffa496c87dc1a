"""The small parts: clipping, scaling, weight decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import assert_trees_close

FLOAT0 = np.zeros(2, jax.dtypes.float0)


def clipped(max_norm: Any, tree: Any) -> Any:
    tx = fo.clip_by_global_norm(max_norm)
    updates, state = tx.update(tree, tx.init(tree))
    assert state == fo.EmptyState()
    return updates


def numpy_tree(dtype: Any, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.RandomState(3)
    tree = {"w": random.standard_normal((2, 3)), "b": random.standard_normal(4)}
    if np.issubdtype(dtype, np.complexfloating):
        tree = {k: x + 1j * random.standard_normal(x.shape) for k, x in tree.items()}
    return {name: (x * scale).astype(dtype) for name, x in tree.items()}


def clip_in_double(tree: dict[str, np.ndarray], max_norm: float) -> dict[str, np.ndarray]:
    wide = {k: x.astype(np.result_type(x.dtype.type(0), np.float64)) for k, x in tree.items()}
    norm = np.sqrt(sum(np.sum(np.abs(x) ** 2) for x in wide.values()))
    return {k: x * min(1.0, max_norm / (norm + 1e-6)) for k, x in wide.items()}


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_clipping_is_torchs_formula(dtype: str, max_norm: float, scale: float) -> None:
    """Including the 1e-6 beside the norm: a norm a little above max_norm ends a little below."""
    tree = numpy_tree(dtype, scale)
    actual = clipped(max_norm, jax.tree.map(jnp.asarray, tree))
    wanted = clip_in_double(tree, max_norm)
    for name, x in actual.items():
        assert x.dtype == dtype
        np.testing.assert_allclose(x, wanted[name], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_clipping_agrees_with_torch(dtype: str, max_norm: float, x64: None) -> None:
    torch = pytest.importorskip("torch", reason="compares with clip_grad_norm_")
    tree = numpy_tree(dtype)
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in tree.items()}
    for name, p in params.items():
        p.grad = torch.tensor(tree[name])
    norm = torch.nn.utils.clip_grad_norm_(params.values(), max_norm)
    arrays = jax.tree.map(jnp.asarray, tree)
    np.testing.assert_allclose(fo.global_norm(arrays), norm.numpy(), rtol=1e-14)
    for name, x in clipped(max_norm, arrays).items():
        np.testing.assert_allclose(x, params[name].grad.numpy(), rtol=1e-14)


def test_a_norm_below_the_bound_changes_nothing() -> None:
    tree = jax.tree.map(jnp.asarray, numpy_tree("float32"))
    assert_trees_close(clipped(1e3, tree), tree, 0.0)


def test_half_precision_is_clipped_in_float32() -> None:
    """In bfloat16 itself the sum of squares would lose every small leaf, in float16 overflow."""
    small, large = jnp.full(4096, 1.0, jnp.bfloat16), jnp.full(4096, 300.0, jnp.float16)
    np.testing.assert_allclose(fo.global_norm([small]), 64.0)
    np.testing.assert_allclose(fo.global_norm([large]), 64 * 300.0)
    assert fo.global_norm([small, large]).dtype == np.float32
    x = clipped(1.0, [small, large])
    assert (x[0].dtype, x[1].dtype) == (jnp.bfloat16, jnp.float16)
    np.testing.assert_allclose(fo.global_norm(x), 1.0, rtol=4e-3)


def test_the_norm_of_mixed_leaves_is_their_common_norm(x64: None) -> None:
    tree = [jnp.float32(3), jnp.complex64(4j), jnp.float64(12), None, FLOAT0, jnp.arange(5)]
    norm = fo.global_norm(tree)
    assert norm.dtype == np.float64
    np.testing.assert_allclose(norm, 13.0, rtol=1e-7)


def test_the_norm_of_nothing_is_zero() -> None:
    for empty in ({}, None, [None, jnp.arange(3)]):
        norm = fo.global_norm(empty)
        assert (float(norm), norm.dtype, norm.shape) == (0.0, np.float32, ())


def test_zero_gradients_stay_zero_and_let_gradients_through() -> None:
    """d sqrt(x)/dx is infinite at 0: the derivative through the clip must not become NaN."""
    zeros = {"w": jnp.zeros(3), "c": jnp.zeros(2, jnp.complex64)}
    out = clipped(1.0, zeros)
    assert_trees_close(out, zeros, 0.0)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(clipped(1.0, {"w": x})["w"])

    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros(3)), np.ones(3))
    norm = jax.grad(lambda x: fo.global_norm([x]))(jnp.zeros(3))
    np.testing.assert_array_equal(norm, np.zeros(3))


def test_the_derivative_through_clipping_is_right(x64: None) -> None:
    tree = jax.tree.map(jnp.asarray, numpy_tree("float64"))
    for max_norm in (0.5, 100.0):
        jax.test_util.check_grads(
            lambda tree, bound: clipped(bound, tree), (tree, jnp.asarray(max_norm)), 1, rtol=1e-5
        )


def test_equal_transforms_are_one_pair() -> None:
    assert fo.clip_by_global_norm(1.0) is fo.clip_by_global_norm(max_norm=1.0)
    assert fo.scale(2.0) is fo.scale(2.0)
    assert fo.scale(2.0) is not fo.scale(3.0)
    schedule = fo.linear_lr(0.1)
    assert fo.scale_by_schedule(schedule) is fo.scale_by_schedule(fo.linear_lr(0.1))
    assert fo.add_decayed_weights(0.1) is fo.add_decayed_weights(0.1)


def test_factors_may_be_traced_and_batched() -> None:
    tree = {"w": jnp.asarray([3.0, 4.0])}
    factors = jnp.asarray([0.5, 1.0, 10.0])
    norms = jax.jit(jax.vmap(lambda bound: fo.global_norm(clipped(bound, tree))))(factors)
    np.testing.assert_allclose(norms, [0.5, 1.0, 5.0], rtol=1e-5)
    scaled = jax.vmap(lambda k: fo.scale(k).update(tree, fo.EmptyState())[0]["w"])(factors)
    np.testing.assert_array_equal(scaled, factors[:, None] * np.array([[3.0, 4.0]], np.float32))
    decayed = jax.vmap(
        lambda k: fo.add_decayed_weights(k).update(tree, fo.EmptyState(), tree)[0]["w"]
    )(factors)
    np.testing.assert_allclose(decayed, (1 + factors[:, None]) * np.float32([[3, 4]]), rtol=1e-6)


def test_a_schedule_is_asked_for_the_count_of_updates_made_before() -> None:
    tx = fo.scale_by_schedule(lambda count: 10.0 + count.astype(np.float32))
    g = jnp.ones(())
    state, seen = tx.init(g), []
    for _ in range(3):
        updates, state = tx.update(g, state)
        seen.append(float(updates))
    assert seen == [10.0, 11.0, 12.0]
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 3)


def test_decay_adds_a_share_of_the_parameter_where_the_mask_says() -> None:
    params = {"kernel": jnp.asarray([2.0]), "bias": jnp.asarray([4.0])}
    grads = {"kernel": jnp.asarray([1.0]), "bias": jnp.asarray([1.0])}
    everywhere = {"kernel": [1.2], "bias": [1.4]}
    kernels = {"kernel": [1.2], "bias": [1.0]}
    by_name = {"kernel": True, "bias": False}
    for mask, wanted in (
        (None, everywhere),
        (by_name, kernels),
        (lambda params: {name: name == "kernel" for name in params}, kernels),
    ):
        tx = fo.add_decayed_weights(0.1, mask)
        updates, _ = tx.update(grads, tx.init(params), params)
        for name in params:
            np.testing.assert_allclose(updates[name], wanted[name], rtol=1e-6)


def test_decay_is_computed_in_float32_for_half_precision() -> None:
    p, u = jnp.bfloat16(3.0), jnp.bfloat16(1.0)
    updates, _ = fo.add_decayed_weights(1 / 3).update(u, fo.EmptyState(), p)
    assert updates == jnp.bfloat16(2.0)  # a third in bfloat16 is more: 2.0078


def test_what_a_transform_cannot_use_is_refused() -> None:
    p = {"w": jnp.ones(2)}
    decay = fo.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match="add_decayed_weights: the argument `params` of update"):
        decay.update(p, decay.init(p))
    with pytest.raises(ValueError, match=r"updates and params differ in shape at \['w'\]"):
        decay.update({"w": jnp.ones(1)}, decay.init(p), p)
    with pytest.raises(TypeError, match=r"mask and params differ in structure.*\['w'\]"):
        fo.add_decayed_weights(0.1, {"v": True}).update(p, fo.EmptyState(), p)
    with pytest.raises(ValueError, match=r"^Invalid max_norm value: -1$"):
        fo.clip_by_global_norm(-1)
    with pytest.raises(ValueError, match=r"^Invalid max_norm value: nan$"):
        fo.clip_by_global_norm(float("nan"))
    schedule = fo.linear_lr(0.1)
    for build, name in (
        (fo.clip_by_global_norm, "max_norm"),
        (fo.scale, "factor"),
        (fo.add_decayed_weights, "weight_decay"),
    ):
        for value in (schedule, "1", None):
            with pytest.raises(TypeError, match=rf"^{name} should be a number"):
                build(value)
    with pytest.raises(TypeError, match=r"schedule should be a function .* but got 0\.1"):
        fo.scale_by_schedule(0.1)
