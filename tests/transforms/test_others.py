"""Centralization, noise, signs, trust ratios, cautious steps, lookahead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.cautious import cautious
from functorch_optim.transforms.centralize import centralize
from functorch_optim.transforms.lookahead import LookaheadState, lookahead
from functorch_optim.transforms.momentum import trace
from functorch_optim.transforms.noise import AddNoiseState, add_noise
from functorch_optim.transforms.sign import sign
from functorch_optim.transforms.trust_ratio import trust_ratio
from tests.support.problems import at, draw, loop, one_step, problem, types

KINDS = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")


def applied(tx: Any, updates: Any, params: Any = None) -> Any:
    return tx.update(updates, tx.init(updates if params is None else params), params)[0]


def assert_close(got: Any, wanted: Any, rtol: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), got, wanted)


# What all of them promise

TRANSFORMS = {
    "centralize": centralize(),
    "add_noise": add_noise(0.1, 0.55, 3),
    "sign": sign(),
    "trust_ratio": trust_ratio(0.1),
    "cautious": cautious(fo.adam(0.1)),
    "lookahead": lookahead(2),
}


@pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS)
class TestEveryOne:
    def test_leaves_without_an_update_are_skipped(self, tx: Any) -> None:
        p = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "d": None}
        u = {"a": jnp.ones(2), "b": None, "c": np.zeros(2, jax.dtypes.float0), "d": None}
        state = tx.init(p)
        new, after = tx.update(u, state, p)
        assert (new["b"], new["c"], new["d"]) == (None, None, None)
        assert new["a"].shape == (2,)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for empty in ({}, [None]):
            assert applied(tx, empty, empty) == empty

    def test_dtypes_and_types_stay(self, tx: Any, x64: None) -> None:
        tree = {kind: jnp.ones((2, 2), kind) for kind in KINDS}
        state = tx.init(tree)
        new, after = tx.update(tree, state, tree)
        assert {kind: x.dtype.name for kind, x in new.items()} == {kind: kind for kind in KINDS}
        assert types(after) == types(state)

    def test_half_precision_is_rounded_once(self, tx: Any) -> None:
        p, u = (jnp.asarray(draw(4, 3, seed=i)).astype(jnp.bfloat16) for i in range(2))
        wanted = applied(fo.float32_state(tx), u.astype(jnp.float32), p.astype(jnp.float32))
        got = applied(fo.float32_state(tx), u, p)
        np.testing.assert_array_equal(got, wanted.astype(jnp.bfloat16))

    def test_gradients_are_finite(self, tx: Any) -> None:
        params, _ = problem()
        zeros = jax.tree.map(jnp.zeros_like, params)

        def total(g: Any, p: Any) -> jax.Array:
            return sum(jnp.sum(u) for u in jax.tree.leaves(applied(tx, g, p)))

        for g, p in ((params, params), (zeros, params), (params, zeros), (zeros, zeros)):
            slopes = jax.grad(total, (0, 1))(g, p)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_equal_arguments_make_one_pair() -> None:
    assert centralize() is centralize(-1)
    assert sign() is sign()
    assert trust_ratio() is trust_ratio(1.0, 0.0, 0.0)
    assert lookahead() is lookahead(6, slow_step_size=0.5)
    assert add_noise(0.1, 0.5, 1) is add_noise(0.1, 0.5, key=1)
    assert add_noise(0.1, 0.5, 1) is not add_noise(0.1, 0.5, 2)
    assert cautious(fo.adam(0.1)) is cautious(fo.adam(0.1), maximize=False)


def test_missing_params_are_asked_for() -> None:
    u = jnp.ones(2)
    for name, tx in (("trust_ratio", trust_ratio()), ("lookahead", lookahead())):
        with pytest.raises(ValueError, match=f"^{name}: the argument `params` of update is miss"):
            tx.update(u, tx.init(u))


def test_numbers_out_of_their_range_are_refused() -> None:
    for build, name in (
        (trust_ratio, "coefficient"),
        (lambda eps: trust_ratio(eps=eps), "eps"),
        (lambda norm: trust_ratio(min_norm=norm), "min_norm"),
        (lambda eta: add_noise(eta, 0.5, 0), "eta"),
        (lambda gamma: add_noise(0.1, gamma, 0), "gamma"),
        (lambda size: lookahead(slow_step_size=size), "slow_step_size"),
    ):
        for value in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"^Invalid {name} value: {value}$"):
                build(value)
        for value in (lambda count: 1.0, "1", None):
            with pytest.raises(TypeError, match=f"^{name} should be a number"):
                build(value)


# Centralization


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("shape", "unit_axis", "inside"),
    [
        ((3, 4), -1, (0,)),
        ((3, 4), 0, (1,)),
        ((2, 3, 4), -1, (0, 1)),
        ((2, 3, 4), (-2, 2), (0,)),
        ((2, 2, 3, 4), -1, (0, 1, 2)),
        ((4, 3, 2, 2), 0, (1, 2, 3)),
    ],
)
def test_each_unit_loses_its_mean(
    shape: tuple[int, ...], unit_axis: Any, inside: tuple[int, ...], dtype: str, x64: None
) -> None:
    u = draw(*shape, dtype=dtype) + 1
    got = np.asarray(applied(centralize(unit_axis), jnp.asarray(u)))
    np.testing.assert_allclose(got, u - u.mean(inside, keepdims=True), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(got.mean(inside), np.zeros_like(got.mean(inside)), atol=1e-14)


def test_leaves_without_other_axes_are_not_centralized() -> None:
    for shape, unit_axis in (((), -1), ((3,), -1), ((3,), 0), ((3, 4), (-2, -1))):
        u = jnp.asarray(draw(*shape, dtype="float32"))
        np.testing.assert_array_equal(applied(centralize(unit_axis), u), u)


def test_optax_centralizes_in_torchs_layout() -> None:
    tree = {"w": draw(3, 4, dtype="float32"), "k": draw(4, 2, 3, dtype="float32"), "b": draw(4)}
    tree = {name: jnp.asarray(x, jnp.float32) for name, x in tree.items()}
    wanted, _ = optax.centralize().update(tree, optax.EmptyState())
    assert_close(applied(centralize(unit_axis=0), tree), wanted)


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unit_axis: a leaf of shape \(2, 3\) has no axis 2"):
        applied(centralize(2), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="unit_axis should be an axis or a tuple of axes"):
        centralize("last")


# Noise


def noises(tx: Any, size: int, steps: int, dtype: str = "float32") -> np.ndarray:
    """The noise of each step for a leaf of so many elements."""
    zeros = jnp.zeros(size, dtype)
    step = jax.jit(tx.update)
    state, out = tx.init(zeros), []
    for _ in range(steps):
        updates, state = step(zeros, state)
        out.append(np.asarray(updates))
    return np.stack(out)


def test_noise_has_the_variance_of_its_step() -> None:
    """The bounds are five standard errors for 20,000 draws; the seed is fixed."""
    size, eta, gamma = 20_000, 0.3, 0.55
    rows = noises(add_noise(eta, gamma, 0), size, 3).astype(np.float64)
    for step, row in enumerate(rows):
        variance = eta / (1 + step) ** gamma
        assert abs(row.mean()) < 5 * np.sqrt(variance / size)
        assert abs(np.mean(row**2) / variance - 1) < 5 * np.sqrt(2 / size)
        assert abs(np.mean(row**4) / variance**2 / 3 - 1) < 5 * np.sqrt(96 / 9 / size)  # normal
    scaled = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
    for i, j in ((0, 1), (0, 2), (1, 2)):  # each step's noise is its own
        assert abs(np.mean(scaled[i] * scaled[j])) < 5 / np.sqrt(size)


def test_each_part_of_a_complex_element_gets_noise() -> None:
    (row,) = noises(add_noise(4.0, 1.0, 5), 5_000, 1, "complex64")
    for part in (row.real, row.imag):
        assert abs(np.mean(part.astype(np.float64) ** 2) / 4 - 1) < 5 * np.sqrt(2 / 5_000)
    assert abs(np.mean(row.real * row.imag)) < 5 * 4 / np.sqrt(5_000)


def test_the_variance_falls_as_that_of_optax() -> None:
    """The draws are others, so the deviations are compared: within five standard errors."""
    ours = noises(add_noise(1.0, 4.0, 0), 4_000, 3)
    with jax.numpy_dtype_promotion("standard"):  # optax's power of a count needs it
        theirs = noises(optax.add_noise(1.0, 4.0, key=0), 4_000, 3)
    np.testing.assert_allclose(ours.std(1), theirs.std(1), rtol=5 / np.sqrt(4_000))


def test_leaves_have_noise_of_their_own_whichever_others_have_updates() -> None:
    tx = add_noise(1.0, 0.5, 7)
    tree = {"a": jnp.zeros(8), "b": jnp.zeros(8)}
    both, alone = applied(tx, tree), applied(tx, {"a": None, "b": jnp.zeros(8)})
    assert (both["a"] != both["b"]).all()
    np.testing.assert_array_equal(both["b"], alone["b"])


def test_a_seed_and_both_kinds_of_keys_give_the_same_noise() -> None:
    """Also after the state was given away, for it has a copy of the key."""
    zeros = jnp.zeros(4)
    wanted = noises(add_noise(1.0, 0.5, 11), 4, 2)
    for key in (
        jax.random.PRNGKey(11),
        np.asarray(jax.random.PRNGKey(11)),
        jax.random.key(11),
        np.int64(11),
    ):
        tx = add_noise(1.0, 0.5, key)
        np.testing.assert_array_equal(noises(tx, 4, 2), wanted)
        state = tx.init(zeros)
        assert isinstance(state, AddNoiseState)
        kept = jax.random.PRNGKey(11) if isinstance(key, np.int64) else key
        assert (state.key.dtype, state.key.shape) == (kept.dtype, kept.shape)
        jax.jit(lambda state: state, donate_argnums=0)(state)
        tx.init(zeros)  # the key that was given is still there
    assert (noises(add_noise(1.0, 0.5, 12), 4, 2) != wanted).all()


def test_noise_goes_on_from_a_saved_state() -> None:
    tx, zeros = add_noise(1.0, 0.5, 2), jnp.zeros(3)
    rows = noises(tx, 3, 3)
    _, state = tx.update(zeros, tx.init(zeros))
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
    np.testing.assert_allclose(tx.update(zeros, restored)[0], rows[1], rtol=1e-6)


def test_numbers_and_keys_of_noise_may_be_batched() -> None:
    def noisy(eta: Any, gamma: Any, key: Any) -> jax.Array:
        tx, ones = add_noise(eta, gamma, key), jnp.ones(3)
        return tx.update(ones, AddNoiseState(jnp.int32(3), tx.init(ones).key))[0]

    keys = jax.random.split(jax.random.key(0), 2)
    got = jax.vmap(noisy)(jnp.asarray([4.0, 0.0]), jnp.asarray([1.0, 2.0]), keys)
    assert_close(got[0] - 1, noisy(4.0, 1.0, keys[0]) - 1, 1e-5)
    np.testing.assert_array_equal(got[1], np.ones(3))


def test_what_is_no_key_is_refused() -> None:
    for key in (0.5, None, "0", jnp.zeros(2), jnp.zeros(2, jnp.int32)):
        with pytest.raises(TypeError, match="key should be a seed or a key of jax"):
            add_noise(0.1, 0.5, key)


# Signs


def test_signs_are_those_of_the_elements_or_of_their_parts() -> None:
    x = jnp.asarray([-2.0, 0.0, 1e-30, np.inf, np.nan])
    wanted, _ = optax.scale_by_sign().update(x, optax.EmptyState())
    np.testing.assert_array_equal(applied(sign(), x), wanted)
    np.testing.assert_array_equal(wanted, [-1, 0, 1, 1, np.nan])
    z = jnp.asarray([3 - 4j, -2 + 0j, 0j], jnp.complex64)
    np.testing.assert_array_equal(applied(sign(), z), np.array([1 - 1j, -1, 0], np.complex64))


# Trust ratio


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("coefficient", "eps", "min_norm"), [(1.0, 0.0, 0.0), (0.3, 0.5, 0.0), (0.3, 0.5, 1.5)]
)
def test_updates_get_the_length_of_their_parameter(
    coefficient: float, eps: float, min_norm: float, dtype: str, x64: None
) -> None:
    p = {"a": 0.1 * draw(4, dtype=dtype), "b": draw(2, 3, seed=1, dtype=dtype)}
    u = {"a": draw(4, seed=2, dtype=dtype), "b": 0.2 * draw(2, 3, seed=3, dtype=dtype)}
    tx = trust_ratio(coefficient, eps, min_norm)
    got = applied(tx, jax.tree.map(jnp.asarray, u), jax.tree.map(jnp.asarray, p))
    for name in p:
        weights = max(np.sqrt(np.sum(np.abs(p[name]) ** 2)), min_norm)
        norm = max(np.sqrt(np.sum(np.abs(u[name]) ** 2)), min_norm)
        wanted = u[name] * coefficient * weights / (norm + eps)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-13)


@pytest.mark.parametrize("min_norm", [0.0, 0.5])
def test_zeros_are_treated_as_optax_treats_them(min_norm: float) -> None:
    zeros, ones = jnp.zeros(3), jnp.full(3, 2.0)
    theirs = optax.scale_by_trust_ratio(min_norm, 0.1, 0.2)
    for u, p in ((ones, zeros), (zeros, ones), (zeros, zeros), (ones, ones)):
        wanted, _ = theirs.update(u, optax.EmptyState(), p)
        assert_close(applied(trust_ratio(0.1, 0.2, min_norm), u, p), wanted)
    np.testing.assert_array_equal(applied(trust_ratio(0.1), ones, zeros), ones)


def test_lars_and_lamb_are_the_chains_of_the_module_docstring() -> None:
    params, grads = problem(steps=5)
    params["rest"] = [jnp.zeros((2, 3))]
    lr, wd, momentum = 0.1, 0.05, 0.9
    lars = fo.chain(fo.add_decayed_weights(wd), trust_ratio(0.001), fo.scale(-lr), trace(momentum))
    lamb = fo.chain(
        fo.adam(1.0, eps=1e-6), fo.add_decayed_weights(-wd), trust_ratio(), fo.scale(lr)
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's power of a count needs it
        wanted = [
            loop(tx, params, grads)[0]
            for tx in (optax.lars(lr, wd, momentum=momentum), optax.lamb(lr, weight_decay=wd))
        ]
    assert_close(loop(lars, params, grads)[0], wanted[0])
    assert_close(loop(lamb, params, grads)[0], wanted[1], 1e-5)


# Cautious


def cautious_in_double(u: np.ndarray, g: np.ndarray, sign: int) -> np.ndarray:
    kept = u * g * sign > 0
    return u * kept / max(kept.mean(), 1e-3)


@pytest.mark.parametrize("maximize", [False, True])
def test_cautious_keeps_what_agrees_with_the_gradient(maximize: bool, x64: None) -> None:
    """Of momentum's steps, which often disagree with a random gradient."""
    inner = fo.sgd(0.1, momentum=0.9, maximize=maximize)
    tx = cautious(inner, maximize=maximize)
    grads = draw(6, 40)
    state, buffer, disagreed = tx.init(jnp.zeros(40)), np.zeros(40), 0
    for g in grads:
        update, state = tx.update(jnp.asarray(g), state)
        buffer = 0.9 * buffer + g
        step = (0.1 if maximize else -0.1) * buffer
        wanted = cautious_in_double(step, g, 1 if maximize else -1)
        np.testing.assert_allclose(update, wanted, rtol=1e-12)
        disagreed += np.sum(wanted == 0)
    assert 0 < disagreed < 240
    assert jax.tree.structure(state) == jax.tree.structure(inner.init(jnp.zeros(40)))


def test_each_leaf_and_each_part_is_kept_for_itself() -> None:
    steps = {"a": jnp.asarray([1.0, -2.0]), "z": jnp.asarray([1 - 2j, 3 + 4j], jnp.complex64)}
    grads = {"a": jnp.asarray([1.0, 3.0]), "z": jnp.asarray([-1 - 1j, -1 + 1j], jnp.complex64)}
    fixed = fo.GradientTransformation(lambda p: (), lambda g, s, p=None: (steps, s))
    got = applied(cautious(fixed), grads)
    np.testing.assert_array_equal(got["a"], [0, -4])
    np.testing.assert_array_equal(got["z"], np.array([2, 6], np.complex64))


def test_nothing_kept_is_no_step_and_tiny_gradients_count() -> None:
    fixed = fo.GradientTransformation(lambda p: (), lambda g, s, p=None: (jnp.ones(4), s))
    np.testing.assert_array_equal(applied(cautious(fixed), jnp.ones(4)), np.zeros(4))
    np.testing.assert_array_equal(applied(cautious(fixed), jnp.zeros(4)), np.zeros(4))
    small = fo.GradientTransformation(lambda p: (), lambda g, s, p=None: (-g, s))
    g = jnp.asarray([1e-30, -1e-30])  # whose square is 0 in float32
    np.testing.assert_array_equal(applied(cautious(small), g), -g)
    one = jnp.zeros(4000).at[0].set(-1.0)
    largest = applied(cautious(fo.scale(-1.0)), one)[0]  # 1 / 0.001, not 1 / (1 / 4000)
    np.testing.assert_allclose(largest, 1000, rtol=1e-6)
    assert applied(cautious(fo.scale(-1.0)), jnp.zeros((0, 2))).shape == (0, 2)


def test_cautious_hands_on_params_and_extra_arguments() -> None:
    def update(g: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return -g * value * params, state

    tx = cautious(fo.GradientTransformation(lambda p: (), update))
    got, _ = tx.update(jnp.ones(2), (), jnp.full(2, 3.0), value=2.0, other=1)
    np.testing.assert_array_equal(got, [-6, -6])
    with pytest.raises(TypeError, match=r"the transform of cautious should be an \(init, update\)"):
        cautious(fo.adam)


# Lookahead


def test_lookahead_calls_back_every_so_many_updates(x64: None) -> None:
    period, size = 3, 0.25
    tx = fo.chain(fo.scale(-0.1), lookahead(period, size))
    start, grads = draw(4), draw(8, 4, seed=1)
    params, state = jnp.asarray(start), tx.init(jnp.asarray(start))
    fast, slow = start.copy(), start.copy()
    step = jax.jit(lambda p, s, g: one_step(tx, p, s, g))
    for t, g in enumerate(grads, start=1):
        fast = fast - 0.1 * g
        if t % period == 0:
            slow = slow + size * (fast - slow)
            fast = slow.copy()
        params, state = step(params, state, jnp.asarray(g))
        np.testing.assert_allclose(params, fast, rtol=1e-13)
        np.testing.assert_allclose(state[-1].slow, slow, rtol=1e-13)
    assert isinstance(state[-1], LookaheadState)
    assert (state[-1].step.dtype, int(state[-1].step)) == (jnp.int32, 8)


def test_lookahead_is_that_of_optax() -> None:
    params, grads = problem(steps=5)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies by a bool
        theirs = optax.lookahead(optax.sgd(0.1), 2, 0.3)
        pair = optax.LookaheadParams.init_synced(params)
        state = theirs.init(pair)
        for i in range(5):
            updates, state = theirs.update(at(grads, i), state, pair)
            pair = optax.apply_updates(pair, updates)
    got, state = loop(fo.chain(fo.sgd(0.1), lookahead(2, 0.3)), params, grads)
    assert_close(got, pair.fast)
    assert_close(state[-1].slow, pair.slow)


def test_complex_weights_are_called_back_as_pairs_of_reals(x64: None) -> None:
    p, u = (jnp.asarray(draw(3, seed=i, dtype="complex128")) for i in range(2))
    tx = lookahead(1, 0.25)
    update, state = tx.update(u, tx.init(p), p)
    np.testing.assert_allclose(state.slow, p + 0.25 * np.asarray(u), rtol=1e-14)
    np.testing.assert_allclose(update, 0.25 * np.asarray(u), rtol=1e-12)


def test_slow_weights_are_copies_and_may_be_float32() -> None:
    p = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.arange(2), "weak": jnp.asarray(1.0)}
    state = lookahead().init(p)
    assert state.slow["n"] is None
    assert not state.slow["weak"].weak_type
    assert state.slow["w"].unsafe_buffer_pointer() != p["w"].unsafe_buffer_pointer()
    tx = fo.float32_state(lookahead(1, 0.5))
    u = {"w": jnp.full(2, 2.0**-8, jnp.bfloat16), "n": None, "weak": None}
    _, state = tx.update(u, tx.init(p), p)
    np.testing.assert_array_equal(state.slow["w"], np.full(2, 1 + 2.0**-9, np.float32))
    assert int(state.step) == 1


def test_a_period_is_a_positive_integer() -> None:
    for period in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match="Expected positive integer sync_period, but got"):
            lookahead(period)


def test_the_slow_step_size_may_be_batched() -> None:
    p, u = jnp.zeros(2), jnp.ones(2)

    def slow(size: Any) -> jax.Array:
        tx = lookahead(1, size)
        return tx.update(u, tx.init(p), p)[1].slow

    got = jax.vmap(slow)(jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(got, [[0, 0], [0.5, 0.5], [1, 1]])
