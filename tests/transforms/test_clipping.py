"""Clipping by leaf, by value, and by the norm of each unit's weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest

from functorch_optim.core.pair import EmptyState
from functorch_optim.transforms.adaptive_clipping import adaptive_grad_clip
from functorch_optim.transforms.clipping import clip_by_leaf_norm, clip_by_value
from tests.support.problems import draw

KINDS = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")


def applied(tx: Any, updates: Any, params: Any = None) -> Any:
    new, state = tx.update(updates, tx.init(updates), params)
    assert state == EmptyState()
    return new


# By leaf


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 2.0])
def test_each_leaf_is_scaled_to_its_own_norm(max_norm: float, dtype: str, x64: None) -> None:
    small, large = 0.1 * draw(4, dtype=dtype), 10 * draw(2, 3, seed=1, dtype=dtype)
    new = applied(clip_by_leaf_norm(max_norm), {"a": jnp.asarray(small), "b": jnp.asarray(large)})
    for got, leaf in ((new["a"], small), (new["b"], large)):
        norm = np.sqrt(np.sum(np.abs(leaf) ** 2))
        np.testing.assert_allclose(got, leaf * min(1.0, max_norm / (norm + 1e-6)), rtol=1e-14)


def test_clipping_a_leaf_is_torchs_clipping_of_one_parameter() -> None:
    torch = pytest.importorskip("torch")
    leaves = [3 * draw(5, dtype="float32"), 1e-3 * draw(2, 2, seed=1, dtype="float32")]
    new = applied(clip_by_leaf_norm(0.5), [jnp.asarray(leaf) for leaf in leaves])
    for got, leaf in zip(new, leaves, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(leaf.shape))
        parameter.grad = torch.tensor(leaf)
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        np.testing.assert_allclose(got, parameter.grad.numpy(), rtol=1e-6)


# By value


@pytest.mark.parametrize("max_value", [0.0, 0.5, 10.0])
def test_values_are_clipped_as_torch_clips_them(max_value: float) -> None:
    torch = pytest.importorskip("torch")
    leaf = np.array([-3.0, -0.5, -0.0, 0.2, 0.7, np.inf, -np.inf, np.nan], np.float32)
    parameter = torch.nn.Parameter(torch.zeros(leaf.shape))
    parameter.grad = torch.tensor(leaf)
    torch.nn.utils.clip_grad_value_([parameter], max_value)
    got = applied(clip_by_value(max_value), {"w": jnp.asarray(leaf)})["w"]
    np.testing.assert_array_equal(got, parameter.grad.numpy())


def test_values_are_clipped_as_optax_clips_them() -> None:
    tree = {"w": jnp.asarray(draw(3, 4, dtype="float32"))}
    wanted, _ = optax.clip(0.5).update(tree, optax.EmptyState())
    np.testing.assert_array_equal(applied(clip_by_value(0.5), tree)["w"], wanted["w"])


def test_each_part_of_a_complex_element_is_clipped() -> None:
    z = jnp.asarray([3 - 0.2j, -0.1 + 4j, -2 - 2j], jnp.complex64)
    got = applied(clip_by_value(1.0), z)
    np.testing.assert_array_equal(got, np.array([1 - 0.2j, -0.1 + 1j, -1 - 1j], np.complex64))


# By the norm of each unit


def clip_units(
    u: np.ndarray, p: np.ndarray, axes: tuple[int, ...] | None, clipping: float, eps: float
) -> np.ndarray:
    """The paper's rule, one unit at a time. `axes` are those of the units; None: one unit."""
    out = np.array(u)
    outer = () if axes is None else tuple(u.shape[axis] for axis in axes)
    for index in np.ndindex(*outer):
        where: list[Any] = [slice(None)] * u.ndim
        for axis, i in zip(axes or (), index, strict=True):
            where[axis] = i
        unit = tuple(where)
        norm = np.sqrt(np.sum(np.abs(u[unit]) ** 2))
        bound = clipping * max(np.sqrt(np.sum(np.abs(p[unit]) ** 2)), eps)
        if norm > bound:
            out[unit] = u[unit] * bound / norm
    return out


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("shape", "unit_axis", "axes"),
    [
        ((), -1, None),
        ((4,), -1, None),
        ((4,), 0, None),
        ((3, 4), -1, (1,)),
        ((3, 4), 1, (1,)),
        ((3, 4), 0, (0,)),
        ((2, 3, 4), -1, (2,)),
        ((2, 2, 3, 4), -1, (3,)),
        ((4, 3, 2, 2), 0, (0,)),
        ((2, 3, 4), (-2, -1), (1, 2)),
        ((3, 4), (-2, -1), None),
    ],
)
def test_units_are_clipped_by_their_own_weights(
    shape: tuple[int, ...], unit_axis: Any, axes: Any, dtype: str, x64: None
) -> None:
    p = draw(*shape, dtype=dtype)
    u = draw(*shape, seed=1, dtype=dtype) * np.linspace(0.01, 1, p.size).reshape(shape)
    tx = adaptive_grad_clip(0.3, 0.5, unit_axis=unit_axis)
    got = applied(tx, {"w": jnp.asarray(u)}, {"w": jnp.asarray(p)})["w"]
    wanted = clip_units(u, p, axes, 0.3, 0.5)
    np.testing.assert_allclose(got, wanted, rtol=1e-14)


def test_units_are_those_of_optax_where_both_mean_the_same() -> None:
    """Not of three dimensions: optax takes such a leaf for an attention kernel, and clips over
    the first axis only; that is `unit_axis=(-2, -1)` here."""
    shapes = {"bias": (4,), "dense": (3, 4), "conv": (2, 2, 3, 4)}
    p = {k: jnp.asarray(draw(*s, dtype="float32")) for k, s in shapes.items()}
    u = {k: jnp.asarray(draw(*s, seed=1, dtype="float32")) for k, s in shapes.items()}
    p["bias"] = jnp.zeros(4)
    wanted, _ = jax.jit(optax.adaptive_grad_clip(0.05).update)(u, optax.EmptyState(), p)
    got = jax.jit(lambda u, p: applied(adaptive_grad_clip(0.05), u, p))(u, p)
    for name in shapes:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-6)
    attention = [jnp.asarray(draw(3, 2, 4, seed=i, dtype="float32")) for i in range(2)]
    wanted, _ = optax.adaptive_grad_clip(0.5).update(attention[0], optax.EmptyState(), attention[1])
    got = applied(adaptive_grad_clip(0.5, unit_axis=(-2, -1)), *attention)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    assert not np.allclose(got, applied(adaptive_grad_clip(0.5), *attention))


def test_weights_of_zero_count_as_eps_and_updates_of_zero_stay() -> None:
    zeros, ones = jnp.zeros((4, 2)), jnp.ones((4, 2))
    got = applied(adaptive_grad_clip(0.1, 0.5), ones, zeros)
    np.testing.assert_allclose(got, np.full((4, 2), 0.1 * 0.5 / 2), rtol=1e-6)
    for tx in (adaptive_grad_clip(), adaptive_grad_clip(0.0, 0.0)):
        np.testing.assert_array_equal(applied(tx, zeros, zeros), zeros)
    np.testing.assert_array_equal(applied(adaptive_grad_clip(0.0, 0.0), ones, zeros), zeros)


# What all of them promise

TRANSFORMS = [clip_by_leaf_norm(0.5), clip_by_value(0.5), adaptive_grad_clip(0.1)]
IDS = ["clip_by_leaf_norm", "clip_by_value", "adaptive_grad_clip"]


@pytest.mark.parametrize("tx", TRANSFORMS, ids=IDS)
class TestEveryOne:
    def test_dtypes_stay_and_halves_are_computed_in_float32(self, tx: Any, x64: None) -> None:
        """300**2 overflows float16, and a sum of 300 ones in bfloat16 stops at 256."""
        u = {kind: jnp.full(300, 300.0, kind) for kind in KINDS}
        p = {kind: jnp.full(300, 1.0, kind) for kind in KINDS}
        new = applied(tx, u, p)
        assert {kind: x.dtype.name for kind, x in new.items()} == {kind: kind for kind in KINDS}
        for half, tolerance in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
            np.testing.assert_allclose(
                np.asarray(new[half], np.float64), new["float64"], rtol=tolerance
            )

    def test_leaves_without_an_update_are_skipped(self, tx: Any) -> None:
        p = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "d": None}
        u = {"a": jnp.ones(2), "b": None, "c": np.zeros(2, jax.dtypes.float0), "d": jnp.ones(2)}
        new = applied(tx, u, p)
        assert (new["b"], new["c"]) == (None, None)
        assert new["a"].shape == (2,)
        for empty in ({}, [None]):
            assert applied(tx, empty, empty) == empty

    def test_jit_vmap_and_grad(self, tx: Any) -> None:
        p, u = (jnp.asarray(draw(3, 2, 2, seed=i, dtype="float32")) for i in range(2))

        def update(u: Any, p: Any) -> Any:
            return applied(tx, u, p)

        wanted = [update(u[i], p[i]) for i in range(3)]
        np.testing.assert_allclose(jax.jit(jax.vmap(update))(u, p), wanted, rtol=1e-6)
        for x in (u[0], jnp.zeros((2, 2))):
            slopes = jax.grad(lambda u, p: jnp.sum(update(u, p)), (0, 1))(x, jnp.zeros((2, 2)))
            assert all(np.isfinite(slope).all() for slope in slopes)

    def test_the_derivative_is_right(self, tx: Any, x64: None) -> None:
        p, u = jnp.asarray(draw(3, 2)), jnp.asarray(draw(3, 2, seed=1))
        jax.test_util.check_grads(lambda u, p: applied(tx, u, p), (u, p), 1, rtol=1e-5)


def test_bounds_may_be_traced_and_batched() -> None:
    u, bounds = jnp.asarray([3.0, 4.0]), jnp.asarray([0.5, 10.0])
    by_norm = jax.vmap(lambda bound: applied(clip_by_leaf_norm(bound), u))(bounds)
    np.testing.assert_allclose(by_norm, [[0.3, 0.4], [3, 4]], rtol=1e-5)
    by_value = jax.vmap(lambda bound: applied(clip_by_value(bound), u))(bounds)
    np.testing.assert_array_equal(by_value, [[0.5, 0.5], [3, 4]])
    by_units = jax.vmap(lambda bound: applied(adaptive_grad_clip(bound, bound), u, u))(bounds)
    np.testing.assert_allclose(by_units, [[1.5, 2], [3, 4]], rtol=1e-6)


def test_equal_clips_are_one_pair() -> None:
    assert clip_by_leaf_norm(1.0) is clip_by_leaf_norm(max_norm=1.0)
    assert clip_by_value(1.0) is clip_by_value(max_value=1.0)
    assert adaptive_grad_clip() is adaptive_grad_clip(0.01, unit_axis=-1)
    assert adaptive_grad_clip(unit_axis=0) is not adaptive_grad_clip()


def test_what_cannot_be_used_is_refused() -> None:
    for build, name in (
        (clip_by_leaf_norm, "max_norm"),
        (clip_by_value, "max_value"),
        (adaptive_grad_clip, "clipping"),
        (lambda eps: adaptive_grad_clip(eps=eps), "eps"),
    ):
        for value in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"^Invalid {name} value: {value}$"):
                build(value)
        for value in (lambda count: 1.0, "1", None):
            with pytest.raises(TypeError, match=f"^{name} should be a number"):
                build(value)
    for axis in (0.5, None, "a", (), (0, 0.5)):
        with pytest.raises(TypeError, match="unit_axis should be an axis or a tuple of axes"):
            adaptive_grad_clip(unit_axis=axis)
    matrix = jnp.ones((2, 3))
    for axis in (2, -3):
        with pytest.raises(ValueError, match=rf"a leaf of shape \(2, 3\) has no axis {axis}"):
            applied(adaptive_grad_clip(unit_axis=axis), matrix, matrix)
    with pytest.raises(ValueError, match="adaptive_grad_clip: the argument `params` of update is"):
        applied(adaptive_grad_clip(), matrix)
    with pytest.raises(ValueError, match="params and updates differ in shape at the root"):
        applied(adaptive_grad_clip(), matrix, jnp.ones((1, 3)))
