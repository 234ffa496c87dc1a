"""Half-precision parameters: with wide copies (master_weights), or rounded at random."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.master_weights import MasterWeightsState, master_weights
from functorch_optim.transforms.stochastic_rounding import (
    StochasticRoundingState,
    rounded,
    stochastic_rounding,
)
from functorch_optim.transforms.support.random_keys import kept_key
from tests.support.problems import assert_trees_close, at, loop, problem, types

FLOAT0 = np.zeros(2, jax.dtypes.float0)
HALVES = ["bfloat16", "float16"]


def stochastic(tx: Any) -> Any:
    return stochastic_rounding(tx, 0)


def halves(dtype: str, steps: int = 3) -> tuple[Any, Any]:
    params, grads = problem(steps=steps)
    return jax.tree.map(lambda x: x.astype(dtype), (params, grads))


def buffers(tree: Any) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


class TestMasterWeights:
    @pytest.mark.parametrize("dtype", HALVES)
    @pytest.mark.parametrize("inner", [fo.adam(1e-3), optax.sgd(1e-3, momentum=0.9)])
    def test_the_parameters_are_those_of_a_float32_run_rounded(
        self, dtype: str, inner: Any
    ) -> None:
        params, grads = halves(dtype, steps=8)
        tx = master_weights(inner)
        jitted = fo.GradientTransformation(tx.init, jax.jit(tx.update))
        wide = jax.tree.map(lambda x: x.astype(np.float32), params)
        state, p = jitted.init(params), params
        wide_state = inner.init(wide)
        for i in range(8):
            updates, state = jitted.update(at(grads, i), state, p)
            p = fo.apply_updates(p, updates)
            g = jax.tree.map(lambda g: g.astype(np.float32), at(grads, i))
            wide_updates, wide_state = inner.update(g, wide_state, wide)
            wide = optax.apply_updates(wide, wide_updates)
            assert {x.dtype.name for x in jax.tree.leaves(updates)} == {"float32"}
            assert_trees_close(state.master, wide, 1e-6)
            want = jax.tree.map(lambda x: x.astype(dtype), state.master)
            chex.assert_trees_all_equal(p, want)
        assert_trees_close(state.inner_state, wide_state, 1e-5)
        assert types(state) == types(jitted.init(params))

    @pytest.mark.parametrize("dtype", HALVES)
    def test_both_ways_of_adding_give_the_rounded_copy(self, dtype: str) -> None:
        random = np.random.RandomState(0)
        p = jnp.asarray(random.standard_normal(2000) * 10 ** random.uniform(-3, 3, 2000), dtype)
        g = jnp.asarray(random.standard_normal(2000) * 10 ** random.uniform(-3, 3, 2000), dtype)
        tx = master_weights(fo.sgd(1.0))
        updates, state = tx.update(g, tx.init(p), p)
        # A copy that is much smaller than the parameter was has less room, as the docstring says.
        want = np.asarray(state.master).astype(np.asarray(p).dtype)
        apart = np.abs(np.asarray(p, np.float32)) > 2**12 * np.abs(np.asarray(want, np.float32))
        assert apart.sum() < 10
        with jax.numpy_dtype_promotion("standard"):
            theirs = optax.apply_updates(p, updates)
        for new in (fo.apply_updates(p, updates), theirs):
            np.testing.assert_array_equal(np.asarray(new)[~apart], want[~apart])

    def test_steps_too_small_for_bfloat16_add_up(self) -> None:
        p, g = jnp.ones((), jnp.bfloat16), jnp.ones((100,), jnp.bfloat16)
        plain, _ = loop(fo.sgd(2.0**-10), p, g)
        mine, state = loop(master_weights(fo.sgd(2.0**-10)), p, g)
        assert float(plain) == 1.0
        assert float(state.master) == 1 - 100 / 1024
        assert float(mine) == float(np.float32(1 - 100 / 1024).astype(ml_dtypes.bfloat16))

    def test_infinite_parameters_stay_so(self) -> None:
        """The copy goes beyond float16's range; inf - inf would be NaN."""
        p = jnp.asarray([65504.0], jnp.float16)
        mine, state = loop(master_weights(fo.sgd(1000.0)), p, -jnp.ones((3, 1), jnp.float16))
        assert np.isposinf(mine[0])
        np.testing.assert_array_equal(state.master, [68504.0])

    def test_which_leaves_have_a_copy(self, x64: None) -> None:
        kinds = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128", "int32")
        params = {kind: jnp.ones(2, kind) for kind in kinds} | {"none": None}
        for dtype, narrow in (
            (jnp.float32, kinds[:2]),
            (np.float64, (*kinds[:3], "complex64")),
            ("bfloat16", ()),
        ):
            tx = master_weights(fo.adam(0.1), dtype)
            state = tx.init(params)
            assert {k for k, x in state.master.items() if x is not None} == set(narrow)
            grads = {**params, "int32": FLOAT0}
            updates, after = tx.update(grads, state, params)
            assert types(after) == types(state)
            assert updates["int32"] is updates["none"] is None
            for kind in kinds[:-1]:
                wide = (
                    (np.complex128 if "c" in kind else np.dtype(dtype)) if kind in narrow else kind
                )
                assert updates[kind].dtype == wide
                assert state.inner_state.exp_avg[kind].dtype == wide
                np.testing.assert_allclose(
                    np.asarray(updates[kind]).astype(complex), np.full(2, -0.1), rtol=0.02
                )

    def test_a_leaf_without_a_gradient_stays(self) -> None:
        params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
        tx = master_weights(fo.sgd(0.5))
        updates, state = tx.update({"a": params["a"], "b": None}, tx.init(params), params)
        assert updates["b"] is None
        np.testing.assert_array_equal(state.master["b"], [1, 1])
        np.testing.assert_array_equal(state.master["a"], [0.5, 0.5])

    def test_a_parameter_that_was_wider_at_init_is_refused(self) -> None:
        """It would be trained without a copy, and nobody would know."""
        p = {"w": jnp.ones(2, jnp.bfloat16)}
        tx = fo.float32_state(master_weights(fo.sgd()))
        with pytest.raises(ValueError, match=r"no copy of the bfloat16 parameter at \['w'\]"):
            tx.update(p, tx.init(p), p)

    def test_dtypes_are_checked(self) -> None:
        for dtype in (jnp.int32, jnp.complex64):
            with pytest.raises(TypeError, match="dtype should be a real floating-point dtype"):
                master_weights(fo.sgd(), dtype)
        assert master_weights(fo.sgd()) is master_weights(fo.sgd(), jnp.float32)


def neighbours(x: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """What numpy says lies below and above each number, itself where it is exact."""
    near = x.astype(dtype)
    down = np.nextafter(near, dtype(-np.inf)).astype(dtype)
    up = np.nextafter(near, dtype(np.inf)).astype(dtype)
    wide = near.astype(np.float64)
    return np.where(wide > x, down, near), np.where(wide < x, up, near)


class TestStochasticRounding:
    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
    def test_the_mean_is_the_number_and_values_are_its_neighbours(self, dtype: Any) -> None:
        random = np.random.RandomState(1)
        x = (random.standard_normal(40) * 10 ** random.uniform(-4, 4, 40)).astype(np.float32)
        x[:6] = [1 + 2.0**-12, -1 - 2.0**-9, 2 - 2.0**-12, 1e-5, -0.999, 2.0**-24 * 1.25]
        draws = 4000
        keys = jax.random.split(jax.random.key(3), draws)
        drawn = np.asarray(
            jax.jit(jax.vmap(lambda k: rounded(jnp.asarray(x), dtype, k)))(keys)
        ).astype(np.float64)
        low, high = (a.astype(np.float64) for a in neighbours(x, dtype))
        assert np.all((drawn == low) | (drawn == high))
        # Five standard deviations of a coin's mean, and what the draws' 23 bits may be off.
        chance = (x - low) / np.where(high > low, high - low, 1)
        bound = 5 * np.sqrt(chance * (1 - chance) / draws) + 1e-6
        seen = (drawn == high).mean(0)
        uneven = high > low
        assert uneven.sum() > 30
        assert np.all(np.abs(seen - chance)[uneven] <= bound[uneven])

    @pytest.mark.parametrize("dtype", HALVES)
    def test_exact_values_stay(self, dtype: str) -> None:
        info = jnp.finfo(dtype)
        values = [0.0, -0.0, 1.0, -1.5, float(info.max), float(info.min), float(info.tiny)]
        x = jnp.asarray([*values, np.inf, -np.inf, np.nan], jnp.float32)
        for key in range(5):
            drawn = rounded(x, dtype, jax.random.key(key)).astype(jnp.float32)
            np.testing.assert_array_equal(drawn, x)
            assert np.signbit(drawn[1])

    def test_subnormals_of_float16_and_the_edge_of_its_range(self) -> None:
        """Above 65504 the next number would be 65536: infinity as often as that."""
        x = jnp.asarray([65504 + 8.0, -65504 - 24.0, 65536, 1e9, 2.0**-26, -3 * 2.0**-25])
        keys = jax.random.split(jax.random.key(0), 4000)
        drawn = np.asarray(jax.vmap(lambda k: rounded(x, jnp.float16, k))(keys), np.float64)
        assert set(np.unique(drawn[:, 0])) == {65504, np.inf}
        assert set(np.unique(drawn[:, 1])) == {-65504, -np.inf}
        assert np.all(np.isposinf(drawn[:, 2:4]))
        assert set(np.unique(drawn[:, 4])) == {0, 2.0**-24}
        assert set(np.unique(drawn[:, 5])) == {-(2.0**-23), -(2.0**-24)}
        shares = [np.isinf(drawn[:, 0]).mean(), np.isinf(drawn[:, 1]).mean()]
        shares += [(drawn[:, 4] > 0).mean(), (drawn[:, 5] < -(2.0**-24)).mean()]
        np.testing.assert_allclose(shares, [0.25, 0.75, 0.25, 0.5], atol=0.04)

    def test_bfloat16s_largest_number(self) -> None:
        top = np.float32(jnp.finfo(jnp.bfloat16).max)
        x = jnp.asarray([top + np.float32(2.0**118)])
        keys = jax.random.split(jax.random.key(0), 2000)
        drawn = np.asarray(jax.vmap(lambda k: rounded(x, jnp.bfloat16, k))(keys), np.float32)
        assert set(np.unique(drawn)) == {top, np.inf}
        np.testing.assert_allclose(np.isinf(drawn).mean(), 0.25, atol=0.05)

    @pytest.mark.parametrize("dtype", HALVES)
    def test_the_step_is_the_inner_pairs_in_float32_rounded_to_a_neighbour(
        self, dtype: str
    ) -> None:
        params, grads = halves(dtype)
        for inner in (fo.adam(1e-3), optax.sgd(1e-3)):
            tx = stochastic(inner)
            updates, state = jax.jit(tx.update)(at(grads, 0), tx.init(params), params)
            wide = jax.tree.map(lambda x: x.astype(np.float32), (at(grads, 0), params))
            u, _ = inner.update(wide[0], inner.init(wide[1]), wide[1])
            new = fo.apply_updates(params, updates)
            with jax.numpy_dtype_promotion("standard"):
                assert_trees_close(optax.apply_updates(params, updates), new, 0.0)
            for name in ("kernel", "rest"):
                (x,) = jax.tree.leaves(jax.tree.map(jnp.add, wide[1][name], u[name]))
                (got,) = jax.tree.leaves(new[name])
                (step,) = jax.tree.leaves(updates[name])
                low, high = neighbours(np.asarray(x), np.asarray(got).dtype.type)
                got = np.asarray(got)
                assert step.dtype == np.float32
                assert np.all((got == low) | (got == high))
            assert types(state) == types(tx.init(params))
            assert {x.dtype.name for x in jax.tree.leaves(state.inner_state) if x.ndim} <= {dtype}

    def test_steps_too_small_for_bfloat16_add_up_on_average(self) -> None:
        p, g = jnp.ones(4000, jnp.bfloat16), jnp.ones(4000, jnp.bfloat16)
        tx = stochastic(fo.sgd(2.0**-12))

        def body(carry: Any, _: Any) -> Any:
            p, state = carry
            updates, state = tx.update(g, state, p)
            return (fo.apply_updates(p, updates), state), None

        (new, _), _ = jax.lax.scan(body, (p, tx.init(p)), length=64)
        np.testing.assert_allclose(np.mean(np.asarray(new, np.float64)), 1 - 64 / 4096, atol=1e-3)

    def test_each_update_leaf_and_seed_draws_its_own_numbers(self) -> None:
        p = {"a": jnp.ones(64, jnp.bfloat16), "b": jnp.ones(64, jnp.bfloat16)}
        tx = stochastic(fo.sgd(2.0**-9))
        state = tx.init(p)
        first, state = tx.update(p, state, p)
        second, state = tx.update(p, state, p)
        other, _ = stochastic_rounding(fo.sgd(2.0**-9), 1).update(
            p, tx.init(p)._replace(key=jax.random.PRNGKey(1)), p
        )
        again, _ = tx.update(p, tx.init(p), p)
        assert int(state.step) == 2 and state.step.dtype == np.int32
        assert np.any(first["a"] != first["b"])
        assert np.any(first["a"] != second["a"])
        assert np.any(first["a"] != other["a"])
        assert_trees_close(first, again, 0.0)

    def test_wide_and_skipped_leaves_are_left_to_the_inner_pair(self, x64: None) -> None:
        kinds = ("float32", "float64", "complex64")
        params = {kind: jnp.ones(2, kind) for kind in kinds}
        params |= {"int": jnp.arange(2), "none": None, "still": jnp.ones(2, jnp.bfloat16)}
        grads = {**params, "int": FLOAT0, "still": None}
        tx = stochastic(fo.adam(0.1))
        updates, state = tx.update(grads, tx.init(params), params)
        wanted, plain = fo.adam(0.1).update(grads, fo.adam(0.1).init(params), params)
        assert_trees_close(updates, wanted, 1e-7)
        assert_trees_close(state.inner_state, plain, 1e-7)
        assert updates["int"] is updates["none"] is updates["still"] is None

    def test_keys(self) -> None:
        typed, raw = jax.random.key(3), jax.random.PRNGKey(3)
        for key in (3, np.int64(3), jnp.int32(3), np.asarray(raw), raw):
            kept = kept_key(key)
            np.testing.assert_array_equal(kept, raw)
            assert kept is not key
        np.testing.assert_array_equal(jax.random.key_data(kept_key(typed)), raw)
        states = [stochastic_rounding(fo.sgd(), k).init(()) for k in (raw, raw)]
        assert len({*buffers([s.key for s in states]), *buffers(raw)}) == 3
        for key in (1.0, "1", None, True, jnp.ones(2)):
            with pytest.raises(TypeError, match="key should be a seed or a key of jax"):
                stochastic_rounding(fo.sgd(), key)
        assert stochastic_rounding(fo.sgd(), 3) is stochastic_rounding(fo.sgd(), 3)
        # A typed key rounds like the raw one, and stays typed.
        p = jnp.ones(8, jnp.bfloat16)
        tx = stochastic_rounding(fo.sgd(2.0**-9), typed)
        updates, state = tx.update(p, tx.init(p), p)
        assert state.key.dtype == typed.dtype
        same = stochastic_rounding(fo.sgd(2.0**-9), 3)
        assert_trees_close(updates, same.update(p, same.init(p), p)[0], 0.0)


@pytest.mark.parametrize("wrap", [master_weights, stochastic])
class TestBoth:
    def test_scans_batches_and_compiles_once(self, wrap: Any) -> None:
        params, grads = halves("bfloat16")
        tx = wrap(fo.adam(0.1))
        traces = []

        def body(carry: Any, g: Any) -> Any:
            traces.append(1)
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (fo.apply_updates(params, updates), state), None

        last, _ = jax.lax.scan(body, (params, tx.init(params)), grads)
        assert types(last) == types((params, tx.init(params)))
        traces.clear()
        step = jax.jit(body, donate_argnums=0)
        carry = (jax.tree.map(jnp.copy, params), tx.init(params))
        for i in range(3):
            carry, _ = step(carry, at(grads, i))
        assert len(traces) == 1
        assert_trees_close(carry[0], last[0], 1e-2)
        batch = jax.tree.map(lambda g: g[:2], grads)
        updates, _ = jax.vmap(lambda g: tx.update(g, tx.init(params), params))(batch)
        wanted, _ = tx.update(at(grads, 1), tx.init(params), params)
        assert_trees_close(at(updates, 1), wanted, 1e-5)

    def test_a_fresh_state_shares_no_memory(self, wrap: Any) -> None:
        params, _ = halves("float16")
        state = wrap(fo.adam(0.1)).init(params)
        pointers = buffers((params, state))
        assert len(set(pointers)) == len(pointers)

    def test_the_derivative_is_that_of_the_inner_step(self, wrap: Any) -> None:
        p = jnp.asarray([1.0, 2.0], jnp.bfloat16)

        def new(lr: Any) -> Any:
            tx = wrap(fo.sgd(lr))
            updates, _ = tx.update(p, tx.init(p), p)
            return jnp.sum(updates)

        assert jax.grad(new)(jnp.float32(0.125)) == -3.0

    def test_a_sparse_gradient_is_made_dense(self, wrap: Any) -> None:
        sparse = pytest.importorskip("jax.experimental.sparse")
        p = jnp.ones(3, jnp.bfloat16)
        g = sparse.BCOO((jnp.ones(1, jnp.bfloat16), jnp.asarray([[1]])), shape=(3,))
        tx = wrap(fo.sgd(0.5))
        np.testing.assert_array_equal(tx.update(g, tx.init(p), p)[0], [0, -0.5, 0])

    def test_exports(self, wrap: Any) -> None:
        p = jnp.ones(4, jnp.bfloat16)
        tx = wrap(fo.adam(0.1))
        exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
            p, tx.init(p), p
        )
        updates, _ = exported.call(p, tx.init(p), p)
        np.testing.assert_allclose(updates, np.full(4, -0.1), atol=0.005)

    def test_empty_trees_and_extra_arguments(self, wrap: Any) -> None:
        tx = wrap(fo.adam(0.1))
        updates, state = tx.update({}, tx.init({}), {})
        assert updates == {}
        assert isinstance(state, MasterWeightsState | StochasticRoundingState)
        seen = []

        def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> tuple[Any, Any]:
            seen.append((value, params.dtype.name, updates.dtype.name))
            return updates, state

        p = jnp.ones(2, jnp.bfloat16)
        tx = wrap(fo.GradientTransformation(lambda params: (), update))
        tx.update(p, tx.init(p), p, value=3, unknown=4)
        assert seen == [(3, "float32", "float32")]

    def test_what_is_refused(self, wrap: Any) -> None:
        p = {"w": jnp.ones(2, jnp.bfloat16)}
        tx = wrap(fo.sgd())
        name = "master_weights" if wrap is master_weights else "stochastic_rounding"
        with pytest.raises(
            ValueError, match=f"^{name}: the argument `params` of update is missing"
        ):
            tx.update(p, tx.init(p))
        with pytest.raises(ValueError, match=r"grads and params differ in shape at \['w'\]"):
            tx.update({"w": jnp.ones(1)}, tx.init(p), p)
        with pytest.raises(TypeError, match="grads and params differ in structure"):
            tx.update({"v": jnp.ones(2)}, tx.init(p), p)
        with pytest.raises(TypeError, match=f"the transform of {name} should be an"):
            wrap(fo.sgd)
