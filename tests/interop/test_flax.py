"""flax: TrainState, nnx's optimizers, serialization, and nnx modules in the stateful layer."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.problems import assert_trees_close, at, problem
from tests.tables.algorithms import TABLE as ALGORITHMS
from tests.tables.transforms import TABLE as TRANSFORMS

pytest.importorskip("flax")
import flax.linen as nn
from flax import nnx, serialization
from flax.training.train_state import TrainState

from functorch_optim.interop.flax import parameters
from functorch_optim.interop.optax import to_optax

X = jnp.asarray(np.random.RandomState(0).standard_normal((6, 3)), jnp.float32)


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class Tied(nnx.Module):
    """With shared weights, running statistics and a random stream."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = self.first

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.drop(self.norm(self.first(x))))


def loss_fn(module: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((module(x) - 1.0) ** 2)


def loss_and_rest(module: Any, x: jax.Array) -> Any:
    return loss_fn(module, x), nnx.state(module, nnx.Not(nnx.Param))


def plain_loop(tx: Any, module: nnx.Module, steps: int) -> Any:
    """The parameters after some steps, by functions of jax alone."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    params = nnx.as_pure(params)
    state = tx.init(params)
    grad = jax.jit(jax.grad(lambda p: loss_fn(nnx.merge(graphdef, p, rest), X)))
    for _ in range(steps):
        updates, state = tx.update(grad(params), state, params)
        params = fo.apply_updates(params, updates)
    return params


PAIRS: dict[str, Callable[[], Any]] = {
    "adamw": lambda: fo.adamw(0.1),
    "named_chain": lambda: fo.named_chain(
        ("clip", fo.clip_by_global_norm(0.1)), ("sgd", fo.sgd(1))
    ),
    "partition": lambda: fo.partition(
        {"a": fo.adam(0.1), "b": fo.sgd(0.1, momentum=0.9)}, fo.by_path([("bias$", "b")], "a")
    ),
    "accumulate": lambda: fo.accumulate(fo.adam(0.1), 2),
    "skip_nonfinite": lambda: fo.skip_nonfinite(fo.adam(0.1)),
    "inject_hyperparams": lambda: fo.inject_hyperparams(fo.adamw)(lr=0.1),
}
over_pairs = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("adamw", "partition") else pytest.mark.slow)
        for name in PAIRS
    ],
)


def train_state(tx: Any) -> Any:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))

    model = Linen()
    return TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), X)["params"], tx=tx
    )


@over_pairs
def test_train_state(name: str) -> None:
    tx = PAIRS[name]()
    state = train_state(tx)
    params = state.params

    def loss(params: Any) -> jax.Array:
        return jnp.mean((state.apply_fn({"params": params}, X) - 1.0) ** 2)

    step = jax.jit(lambda s: s.apply_gradients(grads=jax.grad(loss)(s.params)))
    for _ in range(3):
        state = step(state)

    own = tx.init(params)
    grad = jax.jit(jax.grad(loss))
    for _ in range(3):
        updates, own = tx.update(grad(params), own, params)
        params = fo.apply_updates(params, updates)
    assert_trees_close(state.params, params, 5e-6)


@over_pairs
def test_nnx_optimizer(name: str) -> None:
    wanted = plain_loop(PAIRS[name](), Mlp(nnx.Rngs(0)), 3)
    module = Mlp(nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, PAIRS[name](), wrt=nnx.Param)

    @nnx.jit
    def step(module: Any, optimizer: Any) -> None:
        optimizer.update(module, nnx.grad(loss_fn)(module, X))

    for _ in range(3):
        step(module, optimizer)
    assert_trees_close(nnx.as_pure(nnx.state(module, nnx.Param)), wanted, 5e-6)


def test_nnx_model_and_optimizer() -> None:
    wanted = plain_loop(fo.adamw(0.1), Mlp(nnx.Rngs(0)), 3)
    optimizer = nnx.ModelAndOptimizer(Mlp(nnx.Rngs(0)), fo.adamw(0.1))

    @nnx.jit
    def step(optimizer: Any) -> None:
        optimizer.update(nnx.grad(loss_fn)(optimizer.model, X))

    for _ in range(3):
        step(optimizer)
    assert_trees_close(nnx.as_pure(nnx.state(optimizer.model, nnx.Param)), wanted, 5e-6)


def test_nnx_optimizer_hands_on_extra_arguments() -> None:
    module = Mlp(nnx.Rngs(0))
    pair = fo.chain(fo.sgd(0.1), fo.scale_by_plateau(patience=0, factor=0.5))
    optimizer = nnx.Optimizer(module, to_optax(pair), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(module, nnx.grad(loss_fn)(module, X), value=jnp.float32(1.0))
    assert optimizer.opt_state[1].plateau.lr[...] == 0.5


def assert_serializes(tx: Any, **extra: Any) -> None:
    params, grads = problem(steps=1)
    _, state = tx.update(at(grads, 0), tx.init(params), params, **extra)
    fresh = tx.init(params)
    by_dict = serialization.from_state_dict(fresh, serialization.to_state_dict(state))
    keys = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key), state)
    assert not any(jax.tree.leaves(keys)), "msgpack has no typed keys"
    by_bytes = serialization.from_bytes(fresh, serialization.to_bytes(state))
    for restored in by_dict, by_bytes:
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        chex.assert_trees_all_equal_dtypes(restored, state)
        chex.assert_trees_all_equal(restored, state)
        tx.update(at(grads, 0), restored, params, **extra)


@pytest.mark.parametrize("row", ALGORITHMS, ids=lambda row: row.name)
def test_states_of_algorithms_serialize(row: Any) -> None:
    assert_serializes(row.pair())


@pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
def test_states_of_transforms_serialize(row: Any) -> None:
    assert_serializes(row.pair(), **row.extra)


# The stateful layer over nnx modules.


def adam(module: Any, **options: Any) -> tuple[Any, Any]:
    model = parameters(module)
    return model, optim.Adam(optim.named_parameters(model), lr=0.1, **options)


def test_names_are_paths() -> None:
    names = [name for name, _ in optim.named_parameters(parameters(Mlp(nnx.Rngs(0))))]
    assert names == ["layers.0.bias", "layers.0.kernel", "layers.1.bias", "layers.1.kernel"]
    # A shared Variable is one, and what is no Param is none.
    names = [name for name, _ in optim.named_parameters(parameters(Tied(nnx.Rngs(0))))]
    assert names == ["first.bias", "first.kernel", "norm.bias", "norm.scale"]


@pytest.mark.parametrize("how", ["backward", "make_step"])
def test_a_step_changes_the_module(how: str) -> None:
    module = Mlp(nnx.Rngs(0))
    wanted = plain_loop(fo.adam(0.1), Mlp(nnx.Rngs(0)), 3)
    model, opt = adam(module)
    variable = module.layers[0].kernel
    step = opt.make_step(loss_fn, model)
    losses = []
    for _ in range(3):
        if how == "make_step":
            losses.append(step(X))
        else:
            losses.append(optim.backward(loss_fn, model, X))
            opt.step()
            opt.zero_grad()
    assert module.layers[0].kernel is variable
    assert losses[2] < losses[0]
    assert_trees_close(nnx.as_pure(nnx.state(module, nnx.Param)), wanted, 5e-6)
    assert opt.compile_count == 1


def test_a_module_without_other_variables_goes_in_as_it_is() -> None:
    model = parameters(Mlp(nnx.Rngs(0)))
    opt = optim.SGD(model, lr=0.1)
    optim.backward(loss_fn, model, X)
    opt.step()
    assert isinstance(opt.params, Mlp)
    np.testing.assert_array_equal(opt.params(X), optim.values(model)(X))

    with pytest.raises(TypeError, match=r"give it optim\.named_parameters"):
        optim.SGD(parameters(Tied(nnx.Rngs(0))), lr=0.1)


def test_shared_weights_have_one_gradient_and_stay_shared() -> None:
    module = Tied(nnx.Rngs(0))
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    wanted = jax.grad(lambda p: loss_fn(nnx.merge(graphdef, p, rest), X))(nnx.as_pure(params))
    model, opt = adam(module)
    optim.backward(loss_fn, model, X)
    grads = {name: p.grad for name, p in optim.named_parameters(model)}
    np.testing.assert_allclose(grads["first.kernel"], wanted["first"]["kernel"], rtol=1e-6)
    opt.step()
    assert module.second is module.first
    plain = optim.values(model)
    assert plain.second is plain.first and plain is not module


def test_other_variables_are_read_live_and_come_back_as_aux() -> None:
    module = Tied(nnx.Rngs(0))
    model, opt = adam(module)
    step = opt.make_step(loss_and_rest, model, has_aux=True)
    for i in range(2):
        _, rest = step(X)
        assert module.drop.rngs.count[...] == i
        nnx.update(module, rest)
        assert module.drop.rngs.count[...] == i + 1
    assert jnp.any(module.norm.mean[...] != 0)
    assert opt.compile_count == 1
    module.eval()
    np.testing.assert_array_equal(optim.values(model)(X), module(X))


def test_values_written_to_the_module_are_the_parameters() -> None:
    module = Mlp(nnx.Rngs(0))
    named = dict(optim.named_parameters(parameters(module)))
    module.layers[0].kernel[...] = jnp.ones((3, 4))
    np.testing.assert_array_equal(named["layers.0.kernel"].data, jnp.ones((3, 4)))
    named["layers.0.bias"].data = jnp.ones(4)
    np.testing.assert_array_equal(module.layers[0].bias[...], jnp.ones(4))


def test_what_somebody_holds_of_the_module_stays_as_it_is() -> None:
    module = Mlp(nnx.Rngs(0))
    given = jnp.ones((3, 4))
    module.layers[0].kernel[...] = given
    model, opt = adam(module)
    step = opt.make_step(loss_fn, model)
    step(X)
    held = module.layers[0].kernel[...]
    before = np.array(held)
    step(X)
    step(X)
    np.testing.assert_array_equal(held, before)
    np.testing.assert_array_equal(given, np.ones((3, 4)))
    # The second array over one buffer, which no reference count shows.
    outside = jnp.full((3, 4), 2.0)
    module.layers[0].kernel[...] = jax.device_put(outside)
    step(X)
    np.testing.assert_array_equal(outside, np.full((3, 4), 2.0))


def test_what_nobody_holds_is_reused() -> None:
    module = Mlp(nnx.Rngs(0))
    model, opt = adam(module)
    step = opt.make_step(loss_fn, model)
    step(X)
    where = module.layers[0].kernel[...].unsafe_buffer_pointer()
    for _ in range(4):
        step(X)
        if module.layers[0].kernel[...].unsafe_buffer_pointer() == where:
            return
    raise AssertionError("each step took new memory")


def test_state_dict_round_trip_by_name() -> None:
    model, opt = adam(Mlp(nnx.Rngs(0)))
    optim.backward(loss_fn, model, X)
    opt.step()
    saved = opt.state_dict()
    assert saved["param_groups"][0]["param_names"][1] == "layers.0.kernel"
    other, again = adam(Mlp(nnx.Rngs(0)))
    again.load_state_dict(saved, match="name")
    for (name, p), (_, q) in zip(
        optim.named_parameters(model), optim.named_parameters(other), strict=True
    ):
        np.testing.assert_array_equal(
            opt.state[p]["exp_avg"], again.state[q]["exp_avg"], err_msg=name
        )


def test_groups_by_path_and_frozen_parameters() -> None:
    module = Mlp(nnx.Rngs(0))
    model = parameters(module)
    named = dict(optim.named_parameters(model))
    named["layers.1.kernel"].requires_grad = False
    frozen = np.array(module.layers[1].kernel[...])
    opt = optim.AdamW(optim.group_by_path(model, [("bias$", {"weight_decay": 0.0})]), lr=0.1)
    assert [len(group["params"]) for group in opt.param_groups] == [2, 2]
    opt.make_step(loss_fn, model)(X)
    np.testing.assert_array_equal(module.layers[1].kernel[...], frozen)


def test_a_filter_chooses_what_is_trained() -> None:
    class Adapter(nnx.Param):
        pass

    module = Mlp(nnx.Rngs(0))
    module.layers[0].bias = Adapter(jnp.zeros(4))
    model = parameters(module, wrt=[Adapter])
    assert [name for name, _ in optim.named_parameters(model)] == ["layers.0.bias"]
    kernel = np.array(module.layers[0].kernel[...])
    opt = optim.SGD(optim.named_parameters(model), lr=0.1)
    opt.make_step(loss_fn, model)(X)
    np.testing.assert_array_equal(module.layers[0].kernel[...], kernel)
    assert jnp.any(module.layers[0].bias[...] != 0)


def test_copies() -> None:
    module = Mlp(nnx.Rngs(0))
    model, opt = adam(module)
    optim.backward(loss_fn, model, X)
    opt.step()
    before = np.array(module.layers[0].kernel[...])

    # pickled together they belong together
    module2, model2, opt2 = pickle.loads(pickle.dumps((module, model, opt)))
    opt2.make_step(loss_fn, model2)(X)
    assert np.any(np.asarray(module2.layers[0].kernel[...]) != before)

    # a copied optimizer, and a copied model, leave the module alone
    copied = copy.deepcopy(opt)
    for p in copied.param_groups[0]["params"]:
        p.grad = jnp.ones_like(p.data)
    copied.step()
    averaged = optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    np.testing.assert_array_equal(module.layers[0].kernel[...], before)

    opt.make_step(loss_fn, model)(X)
    averaged.update_parameters(model)
    mean = (before + np.asarray(module.layers[0].kernel[...])) / 2
    np.testing.assert_allclose(optim.values(averaged.module).layers[0].kernel[...], mean, rtol=1e-6)


def test_averages_of_a_module_with_statistics() -> None:
    module = Tied(nnx.Rngs(0))
    model = parameters(module)
    averaged = optim.swa_utils.AveragedModel(model)
    for mean in (1.0, 2.0):
        module.norm.mean[...] = jnp.full(3, mean)
        averaged.update_parameters(model)
    plain = optim.values(averaged.module)
    np.testing.assert_array_equal(plain.norm.mean[...], [2.0, 2.0, 2.0])
    assert isinstance(plain, Tied) and plain.second is plain.first


def test_to_functional_and_back() -> None:
    module = Mlp(nnx.Rngs(0))
    _, opt = adam(module)
    tx, params, state = opt.to_functional()
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, state, params)
    params = fo.apply_updates(params, updates)
    opt.from_functional(params, state)
    np.testing.assert_array_equal(module.layers[0].bias[...], params[0])


def test_errors() -> None:
    module = Mlp(nnx.Rngs(0))
    with pytest.raises(ValueError, match="no Variable of the kind"):
        parameters(module, wrt=nnx.BatchStat)
    model, opt = adam(module)
    module.layers[0].kernel = nnx.Param(jnp.ones((3, 4)))
    with pytest.raises(RuntimeError, match=r"another Variable 'layers\.0\.kernel'"):
        opt.make_step(loss_fn, model)(X)
    module.layers[0].bias = nnx.Param({"a": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"Variable 'layers\.0\.bias' should hold an array"):
        parameters(module)


def test_without_flax_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flax", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "functorch_optim.interop.flax")
    with pytest.raises(ImportError, match=r"pip install \"functorch_optim\[flax\]\""):
        importlib.import_module("functorch_optim.interop.flax")
