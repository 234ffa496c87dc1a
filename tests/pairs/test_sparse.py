"""Sparse gradients: how tables get them, and what every part of the library does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.algorithms.sparse_adam import sparse_adam
from functorch_optim.core import trees
from functorch_optim.embeddings import sparse_value_and_grad, take
from tests.support.stateful import numbers

TABLE = numbers(0, (7, 2))
KERNEL = numbers(1, (2, 3))
# Row 5 twice and row 1 twice; the last three slots are not in use, and hold what they may.
DATA = numbers(2, (7, 2))
INDICES = np.asarray([5, 1, 5, -6, 7, 9, -8])


def scattered(dtype: Any = np.float32) -> BCOO:
    return BCOO((jnp.asarray(DATA, dtype), jnp.asarray(INDICES[:, None])), shape=(7, 2))


def summed() -> np.ndarray:
    dense = np.zeros((7, 2), np.float32)
    dense[5] = DATA[0] + DATA[2]
    dense[1] = DATA[1] + DATA[3]
    return dense


def dense(x: Any) -> np.ndarray:
    return np.asarray(x.todense() if trees.is_sparse(x) else x)


class TestValueAndGrad:
    @staticmethod
    def params() -> Any:
        return {
            "layers": [{"table": jnp.asarray(TABLE)}, {"table": jnp.asarray(TABLE) + 1}],
            "kernel": jnp.asarray(KERNEL),
            "count": jnp.asarray(3),
            "none": None,
        }

    tables = staticmethod(fo.by_path([("table", True)], default=False))

    @staticmethod
    def loss(params: Any, ids: Any, other: Any) -> Any:
        """Two takes of one table, one of the other, and a dense parameter."""
        first, second = (layer["table"] for layer in params["layers"])
        vectors = take(first, ids) @ params["kernel"]
        return jnp.sum(vectors**2) + jnp.sum(take(first, other) ** 3 * take(second, other))

    @pytest.mark.parametrize("compile_it", [False, True])
    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
    def test_the_gradients_are_those_of_the_dense_loss(self, dtype: Any, compile_it: bool) -> None:
        params = self.params()
        ids = jnp.asarray([[[3], [0]], [[3], [6]]], dtype)
        other = jnp.asarray([3, 3, 2], dtype)
        function = sparse_value_and_grad(self.loss, self.tables)
        loss, grads = (jax.jit(function) if compile_it else function)(params, ids, other)
        wanted, wanted_grads = jax.value_and_grad(self.loss, allow_int=True)(params, ids, other)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        for got, want in zip(grads["layers"], wanted_grads["layers"], strict=True):
            assert isinstance(got["table"], BCOO)
            np.testing.assert_allclose(dense(got["table"]), want["table"], rtol=1e-5, atol=1e-6)
        assert grads["layers"][0]["table"].nse == 7
        np.testing.assert_allclose(grads["kernel"], wanted_grads["kernel"], rtol=1e-5)
        assert grads["count"] is None
        assert grads["none"] is None

    def test_negative_ids_count_from_the_end_and_bad_ones_have_no_gradient(self) -> None:
        def loss(table: Any, ids: Any) -> Any:
            rows = take(table, ids)
            return jnp.sum(jnp.where(jnp.isnan(rows), 0.0, rows) * KERNEL.T[:2].sum())

        ids = jnp.asarray([-1, 7, -8, 2])
        table = jnp.asarray(TABLE)
        np.testing.assert_array_equal(take(table, ids), jnp.take(table, ids, axis=0))
        _, got = sparse_value_and_grad(loss, True)(table, ids)
        np.testing.assert_allclose(dense(got), jax.grad(loss)(table, ids), rtol=1e-6)
        np.testing.assert_array_equal(got.indices[:, 0], [6, 7, 7, 2])

    def test_the_auxiliary_result_and_keywords(self) -> None:
        def loss(params: Any, *, ids: Any) -> Any:
            rows = take(params["t"], ids)
            return jnp.sum(rows), {"rows": rows}

        function = sparse_value_and_grad(loss, {"t": True}, has_aux=True)
        (value, aux), _ = jax.jit(function)({"t": jnp.asarray(TABLE)}, ids=jnp.asarray([4]))
        np.testing.assert_allclose(value, TABLE[4].sum(), rtol=1e-6)
        np.testing.assert_array_equal(aux["rows"], TABLE[[4]])

    def test_a_table_that_is_not_read_has_an_empty_gradient(self) -> None:
        params = {"t": jnp.asarray(TABLE), "k": jnp.asarray(KERNEL)}
        _, grads = sparse_value_and_grad(lambda p: jnp.sum(p["k"]), {"t": True, "k": False})(params)
        assert (grads["t"].nse, grads["t"].shape) == (0, (7, 2))
        updates, _ = fo.sgd(0.1).update(grads, fo.sgd(0.1).init(params), params)
        np.testing.assert_array_equal(fo.apply_updates(params, updates)["t"], TABLE)

    def test_a_table_may_have_any_rank_and_be_complex(self) -> None:
        table = jnp.asarray(numbers(3, (4, 2, 3), np.complex64))
        vector = jnp.asarray(numbers(4, (5,)))
        ids = jnp.asarray([3, 0, 3])

        def loss(tables: Any) -> Any:
            return jnp.sum(jnp.abs(take(tables[0], ids)) ** 2) + jnp.sum(take(tables[1], 2) ** 2)

        _, grads = sparse_value_and_grad(loss, True)((table, vector))
        wanted = jax.grad(loss)((table, vector))
        for got, want in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(dense(got), want, rtol=1e-6)

    @pytest.mark.parametrize(
        "use",
        [
            jnp.sum,
            jnp.square,
            lambda t: t * 2,
            lambda t: jnp.ones(2) * t,
            lambda t: jnp.ones((3, 2)) @ t.T,
            lambda t: jnp.ones((2, 7)) @ t,
            lambda t: t[0],
            lambda t: jnp.take(t, 0, axis=0),
            lambda t: take(t, 0) + jnp.sum(t.astype(jnp.float32)),
            lambda t: np.asarray(t),
            lambda t: sum(t),
            lambda t: jax.jit(lambda x: x)(t),
        ],
    )
    def test_another_use_of_a_table_raises(self, use: Callable[[Any], Any]) -> None:
        with pytest.raises(TypeError, match=r"Table|take rows"):
            sparse_value_and_grad(lambda t: jnp.sum(use(t)), True)(jnp.asarray(TABLE))

    @pytest.mark.parametrize(
        "inside",
        [
            lambda t, ids: jax.vmap(lambda i: take(t, i))(ids),
            lambda t, ids: jax.jit(lambda i: take(t, i))(ids),
            lambda t, ids: jax.checkpoint(lambda i: take(t, i))(ids),
            lambda t, ids: jax.lax.map(lambda i: take(t, i), ids),
        ],
    )
    def test_a_take_inside_a_transformation_raises(self, inside: Callable[..., Any]) -> None:
        function = sparse_value_and_grad(lambda t: jnp.sum(inside(t, jnp.arange(3))), True)
        with pytest.raises(RuntimeError, match="inside a transformation"):
            function(jnp.asarray(TABLE))

    def test_wrong_inputs(self) -> None:
        with pytest.raises(TypeError, match="ids should be integers, but have dtype float32"):
            take(jnp.asarray(TABLE), 1.5)
        with pytest.raises(TypeError, match="a table should be a floating-point array"):
            sparse_value_and_grad(lambda t: 0.0, True)(jnp.arange(3))
        with pytest.raises(TypeError, match="mask and params differ in structure"):
            sparse_value_and_grad(lambda t: 0.0, {"a": True})({"b": jnp.ones(3)})


def shapes_made(jaxpr: Any) -> list[tuple[str, tuple[int, ...]]]:
    """What every equation makes, those of inner jaxprs too: `(primitive, shape)`."""
    found = []
    for equation in jaxpr.eqns:
        for x in jax.tree.leaves(list(equation.params.values())):
            if hasattr(x, "jaxpr") or hasattr(x, "eqns"):
                found += shapes_made(getattr(x, "jaxpr", x))
        if equation.primitive.name != "jit":
            found += [(equation.primitive.name, v.aval.shape) for v in equation.outvars]
    return found


@pytest.mark.parametrize(
    ("tx", "scatters"), [(sparse_adam(0.1), 3), (fo.sgd(0.1), 1), (fo.adagrad(0.1), 2)]
)
def test_nothing_of_the_tables_size_is_made(tx: Any, scatters: int) -> None:
    """Of the table's shape there are its own new values and its buffers', and they are written in
    place: the donated arrays are given back, and what is needed besides is small."""
    rows = 50_000
    table = jnp.zeros((rows, 4))
    function = sparse_value_and_grad(lambda t, ids: jnp.sum(take(t, ids) ** 2), True)

    def step(table: Any, state: Any, ids: Any) -> Any:
        _, grads = function(table, ids)
        updates, state = tx.update(grads, state, table)
        return fo.apply_updates(table, updates), state

    arguments = table, tx.init(table), jnp.zeros(8, jnp.int32)
    made = shapes_made(jax.make_jaxpr(step)(*arguments).jaxpr)
    assert len(made) > 20
    large = [name for name, shape in made if np.prod(shape) >= rows]
    assert set(large) == {"scatter", "scatter-add"} - ({"scatter"} if scatters == 1 else set())
    assert len(large) == scatters
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < rows
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < rows


class TestTransforms:
    """Each gives what it gives for the dense gradient, or refuses."""

    @pytest.mark.parametrize(
        "tx",
        [
            fo.clip_by_global_norm(0.1),
            fo.clip_by_leaf_norm(0.1),
            fo.clip_by_value(0.3),
            fo.scale(-0.5),
            fo.scale_by_schedule(lambda step: 0.5),
            fo.sign(),
            fo.freeze(),
            fo.masked(fo.scale(2.0), {"t": False, "k": True}),
            fo.masked(fo.scale(2.0), {"t": False, "k": True}, pass_through=True),
            fo.masked(fo.scale(2.0), {"t": True, "k": False}),
            fo.chain(fo.clip_by_global_norm(0.1), fo.sgd(0.1)),
            fo.chain(fo.sgd(0.1), fo.scale(0.5)),
            fo.partition({"a": fo.sgd(0.1), "b": fo.adam(0.1)}, {"t": "a", "k": "b"}),
            fo.skip_nonfinite(fo.adagrad(0.1)),
            fo.inject_hyperparams(fo.adagrad, "weight_decay")(0.1),
            fo.accumulate(fo.sgd(0.1), 2),
            fo.master_weights(fo.sgd(0.1)),
        ],
        ids=lambda tx: tx.update.__qualname__.split(".")[0],
    )
    def test_the_update_is_that_of_the_dense_gradient(self, tx: Any) -> None:
        params = {"t": jnp.asarray(TABLE), "k": jnp.asarray(KERNEL)}
        other = {"k": jnp.asarray(KERNEL) * 2}
        update = jax.jit(tx.update)
        got, state = update({"t": scattered(), **other}, tx.init(params), params)
        want, wanted = update({"t": jnp.asarray(summed()), **other}, tx.init(params), params)
        new, new_wanted = fo.apply_updates(params, got), fo.apply_updates(params, want)
        for x, y in zip(
            jax.tree.leaves((new, state)), jax.tree.leaves((new_wanted, wanted)), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)

    def test_a_skipped_step_changes_nothing(self) -> None:
        table = jnp.asarray(TABLE)
        tx = fo.skip_nonfinite(sparse_adam(0.1))
        bad = BCOO((scattered().data.at[0].set(np.nan), scattered().indices), shape=(7, 2))
        updates, state = jax.jit(tx.update)(bad, tx.init(table), table)
        np.testing.assert_array_equal(fo.apply_updates(table, updates), TABLE)
        assert int(state.total) == 1
        assert not np.any(state.inner_state.exp_avg)

    def test_the_norm_is_that_of_the_sums(self) -> None:
        tree = {"t": scattered(), "k": jnp.asarray(KERNEL)}
        wanted = np.sqrt(np.sum(summed() ** 2) + np.sum(KERNEL**2))
        np.testing.assert_allclose(fo.global_norm(tree), wanted, rtol=1e-6)

    @pytest.mark.parametrize(
        "tx",
        [fo.trust_ratio(), fo.centralize(), fo.cautious(fo.sgd(0.1)), fo.adaptive_grad_clip(0.1)],
        ids=["trust_ratio", "centralize", "cautious", "adaptive_grad_clip"],
    )
    def test_the_others_refuse(self, tx: Any) -> None:
        params = {"t": jnp.asarray(TABLE)}
        with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*\['t'\]"):
            tx.update({"t": scattered()}, tx.init(params), params)

    def test_weight_decay_is_refused_in_torchs_words(self) -> None:
        params = {"t": jnp.asarray(TABLE)}
        words = "^weight_decay option is not compatible with sparse gradients$"
        for tx in (fo.add_decayed_weights(0.1), fo.adagrad(weight_decay=0.1)):
            with pytest.raises(RuntimeError, match=words):
                tx.update({"t": scattered()}, tx.init(params), params)
        tx = fo.add_decayed_weights(0.1, {"t": False})
        assert isinstance(tx.update({"t": scattered()}, (), params)[0]["t"], BCOO)


class TestApplyUpdates:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("of", ["float32", "bfloat16"])
    def test_the_sum_is_rounded_once(self, dtype: str, of: str) -> None:
        table = jnp.asarray(TABLE, dtype)
        update = scattered(of)
        new = jax.jit(fo.apply_updates)(table, update)
        assert new.dtype == dtype
        wide = np.asarray(update.data, np.float32)
        wanted = np.array(table, np.float32)
        wanted[5] += wide[0] + wide[2]
        wanted[1] += wide[1] + wide[3]
        np.testing.assert_allclose(
            np.asarray(new, np.float32),
            np.asarray(jnp.asarray(wanted, dtype), np.float32),
            rtol=1e-6,
        )

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ValueError, match="differ in shape at the root"):
            fo.apply_updates(jnp.ones((6, 2)), scattered())

    def test_batched_and_elementwise_formats(self) -> None:
        x = numbers(5, (3, 4, 2)) * (numbers(6, (3, 4, 2)) > 0)
        for n_batch, n_dense in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):

            @jax.jit  # the conversion alone is dozens of small programs
            def both(x: Any, n_batch: int = n_batch, n_dense: int = n_dense) -> Any:
                update = BCOO.fromdense(x, nse=x.size, n_batch=n_batch, n_dense=n_dense)
                signs = fo.sign().update(update, fo.EmptyState())[0]
                return fo.apply_updates(jnp.ones((3, 4, 2)), update), signs.todense()

            added, signs = both(jnp.asarray(x))
            np.testing.assert_allclose(added, 1 + x)
            np.testing.assert_array_equal(signs, np.sign(x))


class TestStateful:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("SGD", {}),
            ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
            ("SGD", {"maximize": True}),
            ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
        ],
    )
    def test_a_step_is_that_of_the_dense_gradient(self, name: str, options: Any) -> None:
        p, q = optim.Parameter(TABLE), optim.Parameter(TABLE)
        opts = [getattr(optim, name)([x], lr=0.1, **options) for x in (p, q)]
        for _ in range(3):
            p.grad, q.grad = scattered(), summed()
            for opt in opts:
                opt.step()
        np.testing.assert_allclose(p.data, q.data, rtol=1e-6)
        for key, value in opts[0].state[p].items():
            np.testing.assert_allclose(value, opts[1].state[q][key], rtol=1e-6)
        assert opts[0].compile_count == 1

    def test_adagrad_refuses_weight_decay_before_anything_changes(self) -> None:
        p = optim.Parameter(TABLE)
        opt = optim.Adagrad([p], weight_decay=0.1)
        p.grad = scattered()
        with pytest.raises(RuntimeError, match="weight_decay option is not compatible"):
            opt.step()
        np.testing.assert_array_equal(p.data, TABLE)
        assert opt.state[p]["step"] == 0

    @pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, np.inf, -np.inf, 0.0, -1.0])
    def test_clipping_by_the_norm(self, norm_type: float) -> None:
        p, q = optim.Parameter(TABLE), optim.Parameter(TABLE)
        p.grad, q.grad = scattered(), summed()
        norms = [optim.clip_grad_norm_([x], 0.1, norm_type) for x in (p, q)]
        np.testing.assert_allclose(*norms, rtol=1e-6)
        assert isinstance(p.grad, BCOO)
        np.testing.assert_allclose(dense(p.grad), q.grad, rtol=1e-5, atol=1e-7)

    def test_clipping_by_value(self) -> None:
        p = optim.Parameter(TABLE)
        p.grad = scattered()
        optim.clip_grad_value_([p], 0.2)
        np.testing.assert_allclose(dense(p.grad), np.clip(summed(), -0.2, 0.2), rtol=1e-6)

    def test_gradients_of_zero_touch_no_row(self) -> None:
        p = optim.Parameter(TABLE)
        p.grad = scattered()
        optim.SGD([p]).zero_grad(set_to_none=False)
        assert p.grad.nse == 7
        assert np.all(np.asarray(p.grad.indices) == 7)
        assert not np.any(p.grad.data)
