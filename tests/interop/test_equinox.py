"""equinox: filtered and whole models with pairs, and in the stateful layer."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.problems import assert_trees_close

eqx = pytest.importorskip("equinox")
optax = pytest.importorskip("optax")
from functorch_optim.interop.equinox import filtered  # noqa: E402 (once equinox is there)

X = jnp.asarray(np.random.RandomState(0).standard_normal((6, 3)), jnp.float32)


class Model(eqx.Module):
    """With activation functions, an integer array, numbers and `None` among its leaves."""

    mlp: eqx.nn.MLP
    counts: jax.Array
    bias: jax.Array | None
    power: float

    def __init__(self) -> None:
        self.mlp = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
        self.counts = jnp.arange(3)
        self.bias = None
        self.power = 2.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(x) ** self.power


def loss_fn(model: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - 1.0) ** 2)


def plain_loop(tx: Any, model: Any, steps: int) -> Any:
    """The parameters after some steps, by functions of jax alone."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = tx.init(params)
    grad = jax.jit(jax.grad(lambda p: loss_fn(eqx.combine(p, static), X)))
    for _ in range(steps):
        updates, state = tx.update(grad(params), state, params)
        params = fo.apply_updates(params, updates)
    return params


PAIRS = {
    "adamw": lambda: fo.adamw(0.1),
    "chain": lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.sgd(1, momentum=0.9)),
    "partition": lambda: fo.partition(
        {"a": fo.adam(0.1), "b": fo.sgd(0.1)}, fo.by_path([("bias$", "b")], "a")
    ),
    "accumulate": lambda: fo.accumulate(fo.adam(0.1), 2),
    "inject_hyperparams": lambda: fo.inject_hyperparams(fo.adamw)(lr=0.1),
    "master_weights": lambda: fo.master_weights(fo.adam(0.1)),
    "optax": lambda: optax.adamw(0.1),
}
over_pairs = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("adamw", "partition") else pytest.mark.slow)
        for name in PAIRS
    ],
)


@pytest.fixture(autouse=True)
def standard_promotion() -> Any:
    """equinox's and optax's own arithmetic need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@over_pairs
@pytest.mark.parametrize("whole", [False, True], ids=["eqx.filter", "filtered"])
def test_filter_jit_loop(name: str, whole: bool) -> None:
    wanted = plain_loop(PAIRS[name](), Model(), 3)
    model = Model()
    tx = filtered(PAIRS[name]()) if whole else PAIRS[name]()
    seen = (lambda m: m) if whole else (lambda m: eqx.filter(m, eqx.is_inexact_array))
    state = tx.init(seen(model))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        grads = eqx.filter_grad(loss_fn)(model, X)
        updates, state = tx.update(grads, state, seen(model))
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
    assert_trees_close(eqx.filter(model, eqx.is_inexact_array), wanted, 5e-6)
    np.testing.assert_array_equal(model.counts, [0, 1, 2])
    assert (model.power, model.bias) == (2.0, None)


def test_filtered_works_with_both_apply_updates_and_without_params() -> None:
    model = Model()
    grads = eqx.filter_grad(loss_fn)(model, X)
    tx = filtered(fo.sgd(0.1))
    for params in (model, None):
        updates, _ = tx.update(grads, tx.init(model), params)
        new = fo.apply_updates(model, updates)
        wanted = eqx.apply_updates(model, updates)
        assert eqx.tree_equal(new, wanted)
        moved = model.mlp.layers[0].weight - 0.1 * grads.mlp.layers[0].weight
        np.testing.assert_allclose(new.mlp.layers[0].weight, moved, rtol=1e-6)
        assert new.mlp.activation is model.mlp.activation


def test_filtered_hands_on_extra_arguments_and_is_one_object() -> None:
    tx = filtered(fo.chain(fo.sgd(1.0), fo.scale_by_plateau(patience=0, factor=0.5)))
    model = Model()
    grads = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    state = tx.init(model)
    for wanted in (-1.0, -0.5):
        updates, state = tx.update(grads, state, model, value=jnp.float32(1.0))
        np.testing.assert_array_equal(updates.mlp.layers[0].bias, jnp.full(4, wanted))
    assert filtered(fo.adam(0.1)) is filtered(fo.adam(0.1))
    with pytest.raises(TypeError, match="the transform of filtered should be an"):
        filtered(fo.adam)  # type: ignore[arg-type]


def test_filtered_around_a_chain_outside_of_jit() -> None:
    model = Model()
    wanted = plain_loop(fo.chain(fo.scale(0.5), fo.adam(0.1)), model, 2)
    tx = filtered(fo.chain(fo.scale(0.5), fo.adam(0.1)))
    state = tx.init(model)
    for _ in range(2):
        grads = eqx.filter_jit(eqx.filter_grad(loss_fn))(model, X)
        updates, state = tx.update(grads, state, model)
        model = eqx.apply_updates(model, updates)
    assert_trees_close(eqx.filter(model, eqx.is_inexact_array), wanted, 5e-6)


@pytest.mark.parametrize("how", ["backward", "make_step"])
def test_the_stateful_layer_takes_a_whole_model(how: str) -> None:
    wanted = plain_loop(fo.adam(0.1), Model(), 3)
    model = optim.parameters(Model())
    assert model.mlp.activation is Model().mlp.activation
    named = dict(optim.named_parameters(model))
    assert list(named) == [
        "mlp.layers.0.weight",
        "mlp.layers.0.bias",
        "mlp.layers.1.weight",
        "mlp.layers.1.bias",
        "counts",
    ]
    assert not named["counts"].requires_grad
    opt = optim.Adam(optim.named_parameters(model), lr=0.1)
    step = opt.make_step(loss_fn, model)
    for _ in range(3):
        if how == "make_step":
            step(X)
        else:
            optim.backward(loss_fn, model, X)
            opt.step()
            opt.zero_grad()
    plain = optim.values(model)
    assert isinstance(plain, Model)
    assert_trees_close(eqx.filter(plain, eqx.is_inexact_array), wanted, 5e-6)


def test_an_optimizer_says_what_to_give_it_of_a_model_with_functions() -> None:
    with pytest.raises(TypeError, match=r"give its Parameters: optim\.named_parameters"):
        optim.Adam(optim.parameters(Model()))


def test_without_equinox_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "equinox", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "functorch_optim.interop.equinox")
    with pytest.raises(ImportError, match=r"pip install \"functorch_optim\[equinox\]\""):
        importlib.import_module("functorch_optim.interop.equinox")
