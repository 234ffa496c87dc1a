"""`AveragedModel` and `update_bn`: torch's numbers, and the formulas where there is no torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)
from tests.support.stateful import compilations, exactly, new_shape, numbers
from tests.support.twin import plain

STEPS = 4


def halfway(average: Any, current: Any, n_averaged: Any) -> Any:
    """An avg_fn that reads for both libraries, and depends on the count."""
    return average + (current - average) / (n_averaged + 1.0) * 0.5


# name: (arguments of ours, of torch's, f(average so far, current, count) in double)
WAYS: dict[str, tuple[Any, Any, Any]] = {
    "default": (dict, lambda t: {}, lambda a, p, n: a + (p - a) / (n + 1)),
    "ema": (
        lambda: {"avg_fn": get_ema_avg_fn(0.9)},
        lambda t: {"avg_fn": t.get_ema_avg_fn(0.9)},
        lambda a, p, n: 0.9 * a + (1 - 0.9) * p,
    ),
    "ema, lists": (
        lambda: {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        lambda t: {"multi_avg_fn": t.get_ema_multi_avg_fn(0.9)},
        lambda a, p, n: 0.9 * a + (1 - 0.9) * p,
    ),
    "swa": (
        lambda: {"avg_fn": get_swa_avg_fn()},
        lambda t: {"avg_fn": t.get_swa_avg_fn()},
        lambda a, p, n: a + (p - a) / (n + 1),
    ),
    "swa, lists": (
        lambda: {"multi_avg_fn": get_swa_multi_avg_fn()},
        # Its lists raise for integer buffers; one by one they are averaged as they should be.
        lambda t: {"avg_fn": t.get_swa_avg_fn()},
        lambda a, p, n: a + (p - a) / (n + 1),
    ),
    "own": (
        lambda: {"avg_fn": halfway},
        lambda t: {"avg_fn": halfway},
        lambda a, p, n: a + (p - a) / (n + 1) * 0.5,
    ),
}


def arrays(i: int) -> dict[str, np.ndarray]:
    """A model's weight, bias, and buffers after update i."""
    return {
        "weight": numbers(10 * i, (2, 3)),
        "bias": numbers(10 * i + 1, (3,)),
        "running_mean": numbers(10 * i + 2, (3,)),
        "count": np.asarray(10 * i + 10, np.int32),
    }


def model_at(i: int) -> dict[str, Any]:
    state = {name: jnp.asarray(x) for name, x in arrays(i).items()}
    boxed = {name: optim.Parameter(state[name]) for name in ("weight", "bias")}
    return {**state, **boxed}


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_the_formula(name: str, use_buffers: bool) -> None:
    build, _, formula = WAYS[name]
    averaged = AveragedModel(model_at(7), use_buffers=use_buffers, **build())
    wanted: dict[str, Any] = {}
    for n in range(STEPS):
        model = model_at(n)
        averaged.update_parameters(model)
        now = arrays(n)
        for key, x in now.items():
            kept = key in ("weight", "bias") or use_buffers
            new = formula(wanted[key], x.astype(np.float64), n) if n and kept else x
            wanted[key] = np.trunc(new) if key == "count" else new
        found = optim.values(averaged.module)
        for key, x in wanted.items():
            np.testing.assert_allclose(found[key], x, rtol=2e-6, atol=1e-7, err_msg=key)
            assert found[key].dtype == now[key].dtype
    assert averaged.n_averaged == STEPS


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_agrees_with_torch(name: str, use_buffers: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    build, theirs, _ = WAYS[name]

    class Model(torch.nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            for key, x in arrays(i).items():
                if key in ("weight", "bias"):
                    setattr(self, key, torch.nn.Parameter(torch.tensor(x)))
                else:
                    self.register_buffer(key, torch.tensor(x))

    averaged = AveragedModel(model_at(7), use_buffers=use_buffers, **build())
    reference = torch.optim.swa_utils.AveragedModel(
        Model(7), use_buffers=use_buffers, **theirs(torch.optim.swa_utils)
    )
    for n in range(STEPS):
        averaged.update_parameters(model_at(n))
        reference.update_parameters(Model(n))
        found, wanted = plain(averaged.state_dict()), plain(dict(reference.state_dict()))
        assert set(found) == set(wanted)
        assert next(iter(found)) == next(iter(wanted)) == "n_averaged"
        for key, x in wanted.items():
            np.testing.assert_allclose(found[key], x, rtol=2e-6, atol=1e-7, err_msg=key)
    # and a checkpoint of torch's is one of ours
    fresh = AveragedModel(model_at(7), use_buffers=use_buffers, **build())
    fresh.load_state_dict(reference.state_dict())
    for key, x in plain(fresh.state_dict()).items():
        np.testing.assert_array_equal(x, wanted[key], err_msg=key)
    fresh.update_parameters(model_at(5))
    reference.update_parameters(Model(5))
    np.testing.assert_allclose(
        fresh.module["weight"], plain(reference.module.weight), rtol=2e-6, atol=1e-7
    )


def test_the_functions_work_on_arrays_and_lists() -> None:
    a, p = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 6.0])
    np.testing.assert_allclose(get_swa_avg_fn()(a, p, 1), [2.0, 4.0])
    np.testing.assert_allclose(get_ema_avg_fn(0.75)(a, p, 1), [1.5, 3.0])
    for function, wanted in ((get_swa_multi_avg_fn(), 2.0), (get_ema_multi_avg_fn(0.75), 1.5)):
        first, second = function([a, a[:1]], [p, p[:1]], 1)
        np.testing.assert_allclose(first[0], wanted)
        np.testing.assert_allclose(second[0], wanted)


def test_the_average_is_a_copy() -> None:
    model = model_at(0)
    model["weight"].grad = jnp.ones((2, 3))
    averaged = AveragedModel(model)
    assert averaged.module["weight"] is not model["weight"]
    assert averaged.module["weight"].grad is None
    averaged.update_parameters(model)
    before = exactly(averaged.state_dict())
    opt = optim.SGD([model["weight"], model["bias"]], lr=1.0)
    model["weight"].grad = jnp.ones((2, 3))
    opt.step()
    model["running_mean"].delete()  # as a training step does that was given it to reuse
    assert exactly(averaged.state_dict()) == before


def test_what_was_read_stays_and_the_model_may_be_itself() -> None:
    averaged = AveragedModel(model_at(0))
    averaged.update_parameters(model_at(0))
    read = averaged.module["weight"].data, averaged.state_dict()["module.weight"]
    averaged.update_parameters(model_at(1))
    for x in read:
        np.testing.assert_array_equal(x, arrays(0)["weight"])
    before = np.array(averaged.module["weight"])
    averaged.update_parameters(averaged.module)
    np.testing.assert_allclose(averaged.module["weight"], before, rtol=1e-6)


@pytest.mark.parametrize("name", WAYS)
def test_one_program_whatever_the_count(name: str) -> None:
    shape = new_shape()
    averaged = AveragedModel({"w": optim.Parameter(jnp.ones(shape))}, **WAYS[name][0]())
    given = [{"w": optim.Parameter(numbers(i, shape))} for i in range(STEPS)]
    for i, model in enumerate(given):
        with compilations() as compiled:
            averaged.update_parameters(model)
        # (what came from outside is copied at the first update)
        found = [x for x in compiled if "copy" not in x]
        assert found == (["jit(_updated)"] if i == 0 else [])


def test_memory_is_reused() -> None:
    averaged = AveragedModel({"w": optim.Parameter(jnp.ones(1000))})
    model = {"w": optim.Parameter(jnp.ones(1000))}
    averaged.update_parameters(model)
    held = averaged.module["w"]._data
    pointer = held.unsafe_buffer_pointer()
    averaged.update_parameters(model)
    assert held.is_deleted()
    assert averaged.module["w"]._data.unsafe_buffer_pointer() == pointer


def test_a_tree_of_arrays_is_boxed_and_values_are_taken() -> None:
    averaged = AveragedModel({"w": jnp.zeros(2), "rate": 0.5})
    for i in (1.0, 2.0, 6.0):
        averaged.update_parameters({"w": jnp.full(2, i), "rate": 0.5})
    np.testing.assert_allclose(averaged.module["w"], [3.0, 3.0])
    assert averaged.module["rate"] == 0.5


def test_a_parameter_in_two_places_is_one() -> None:
    p = optim.Parameter(jnp.zeros(2))
    averaged = AveragedModel({"a": p, "b": p})
    for i in (1.0, 3.0):
        p.data = jnp.full(2, i)
        averaged.update_parameters({"a": p, "b": p})
    assert averaged.module["a"] is averaged.module["b"]
    np.testing.assert_allclose(averaged.module["a"], [2.0, 2.0])
    assert list(averaged.state_dict()) == ["n_averaged", "module.a", "module.b"]


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_other_dtypes(dtype: str) -> None:
    xs = [numbers(i, (4,), np.complex64).astype(np.complex64) for i in range(3)]
    if dtype == "bfloat16":
        xs = [x.real for x in xs]
    averaged = AveragedModel({"w": optim.Parameter(jnp.zeros(4, dtype))})
    for x in xs:
        averaged.update_parameters({"w": optim.Parameter(jnp.asarray(x).astype(dtype))})
    found = averaged.module["w"].data
    assert found.dtype == dtype
    tolerance = 0.02 if dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(plain(found), np.mean(xs, axis=0), rtol=tolerance, atol=tolerance)


def test_device() -> None:
    device = jax.devices()[1]
    averaged = AveragedModel(model_at(0), device=device)
    model = model_at(1)
    for _ in range(2):
        averaged.update_parameters(model)
        for x in jax.tree.leaves(optim.values(averaged.module)):
            assert x.devices() == {device}
    assert model["weight"].data.devices() == {jax.devices()[0]}
    averaged.load_state_dict(AveragedModel(model_at(0)).state_dict())
    assert averaged.module["count"].devices() == averaged.module["bias"].data.devices() == {device}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_can_be_duplicated(name: str, duplicate: Any) -> None:
    averaged = AveragedModel(model_at(0), use_buffers=True, **WAYS[name][0]())
    for i in range(2):
        averaged.update_parameters(model_at(i))
    twin = duplicate(averaged)
    assert exactly(twin.state_dict()) == exactly(averaged.state_dict())
    before = exactly(averaged.state_dict())
    twin.update_parameters(model_at(2))
    assert exactly(averaged.state_dict()) == before
    averaged.update_parameters(model_at(2))
    assert exactly(twin.state_dict()) == exactly(averaged.state_dict())


def test_state_dict_and_back() -> None:
    averaged = AveragedModel(model_at(0))
    for i in range(3):
        averaged.update_parameters(model_at(i))
    saved = averaged.state_dict()
    names = ["n_averaged", "module.bias", "module.weight", "module.count", "module.running_mean"]
    assert list(saved) == names
    assert int(saved["n_averaged"]) == 3
    other = AveragedModel(model_at(9))
    other.load_state_dict({key: np.asarray(x) for key, x in saved.items()})
    assert exactly(other.state_dict()) == exactly(saved)
    other.update_parameters(model_at(3))
    averaged.update_parameters(model_at(3))
    assert exactly(other.state_dict()) == exactly(averaged.state_dict())


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    averaged = AveragedModel(model_at(0))
    good = AveragedModel(model_at(1)).state_dict()
    bad = {
        "missing key 'module.bias'": {k: x for k, x in good.items() if k != "module.bias"},
        "unexpected key 'extra'": {**good, "extra": jnp.zeros(1)},
        "module.weight has shape": {**good, "module.weight": jnp.zeros(5)},
        "module.bias has dtype complex64": {**good, "module.bias": jnp.zeros(3, jnp.complex64)},
        "module.count has dtype float32": {**good, "module.count": np.float32(1.5)},
        "n_averaged has shape": {**good, "n_averaged": np.zeros(3, np.int32)},
        "n_averaged has dtype float32": {**good, "n_averaged": np.float32(2.0)},
    }
    before = exactly(averaged.state_dict())
    for message, state in bad.items():
        with pytest.raises(RuntimeError, match=message):
            averaged.load_state_dict(state)
        assert exactly(averaged.state_dict()) == before


class Layer:
    """A model that can be called, as those of some libraries."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def __call__(self, x: jax.Array, factor: float = 1.0) -> jax.Array:
        assert isinstance(self.weight, jax.Array)
        return x @ self.weight * factor


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda layer: (((jax.tree_util.GetAttrKey("weight"), layer.weight),), None),
    lambda aux, children: Layer(*children),
)


def test_calls_the_model_with_values() -> None:
    averaged = AveragedModel(optim.parameters(Layer(jnp.zeros((2, 2)))))
    for i in (1.0, 3.0):
        averaged.update_parameters(optim.parameters(Layer(i * jnp.eye(2))))
    np.testing.assert_allclose(averaged(jnp.asarray([1.0, 2.0]), factor=10.0), [20.0, 40.0])
    assert list(averaged.state_dict()) == ["n_averaged", "module.weight"]
    with pytest.raises(TypeError, match=r"a dict cannot be called; hand optim\.values"):
        AveragedModel(model_at(0))(1.0)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(
        AssertionError, match="Only one of avg_fn and multi_avg_fn should be provided"
    ):
        AveragedModel(model_at(0), avg_fn=halfway, multi_avg_fn=get_swa_multi_avg_fn())
    with pytest.raises(TypeError, match="avg_fn should be a function"):
        AveragedModel(model_at(0), avg_fn=0.9)  # type: ignore[arg-type]
    for function in (get_ema_avg_fn, get_ema_multi_avg_fn):
        for decay in (-0.5, 1.01):
            message = rf"Invalid decay value {decay} provided. Please provide a value in \[0,1\]"
            with pytest.raises(ValueError, match=message):
                function(decay)


def test_another_model_changes_nothing() -> None:
    averaged = AveragedModel(model_at(0))
    before = exactly(averaged.state_dict())
    fewer = {k: x for k, x in model_at(1).items() if k != "bias"}
    with pytest.raises(TypeError, match="the averaged model has a leaf at \\['bias'\\]"):
        averaged.update_parameters(fewer)
    with pytest.raises(ValueError, match=r"differ in shape at \['bias'\]"):
        averaged.update_parameters({**model_at(1), "bias": optim.Parameter(jnp.zeros(9))})
    averaged_in_place = AveragedModel(model_at(0), multi_avg_fn=lambda a, p, n: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="arrays are not changed in place here"):
        averaged_in_place.update_parameters(model_at(1))
    assert exactly(averaged_in_place.state_dict()) == before == exactly(averaged.state_dict())


# Batch norm.


def with_batch_norm(seed: int = 0) -> dict[str, Any]:
    return {
        "linear": optim.Parameter(jnp.asarray(numbers(seed, (3, 3)))),
        "running_mean": jnp.full(3, 5.0),
        "running_var": jnp.full(3, 6.0),
        "on": True,
        "nothing": None,
    }


def forward(tree: dict[str, Any], x: jax.Array) -> dict[str, Any]:
    """torch's BatchNorm1d behind a linear layer: the weight of the new is 0.1."""
    y = jnp.asarray(x) @ tree["linear"]
    mean, var = 0.1 * jnp.mean(y, axis=0), 0.1 * jnp.var(y, axis=0, ddof=1)
    new = {
        "running_mean": 0.9 * tree["running_mean"] + mean,
        "running_var": 0.9 * tree["running_var"] + var,
    }
    return {**tree, **new}


def data() -> list[np.ndarray]:
    return [numbers(i, (size, 3)) for i, size in enumerate((6, 6, 4))]


def check_batch_norm(tree: dict[str, Any], linear: np.ndarray) -> None:
    ys = [x.astype(np.float64) @ linear.astype(np.float64) for x in data()]
    mean = sum(y.mean(axis=0) for y in ys) / 3
    var = sum(y.var(axis=0, ddof=1) for y in ys) / 3
    np.testing.assert_allclose(tree["running_mean"], mean, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(tree["running_var"], var, rtol=3e-6)


@pytest.mark.parametrize("kind", ["input", "list", "tuple"])
def test_update_bn_of_an_averaged_model(kind: str) -> None:
    averaged = AveragedModel(with_batch_norm())
    averaged.update_parameters(with_batch_norm())
    averaged.update_parameters(with_batch_norm(3))
    wrap = {"input": lambda x: x, "list": lambda x: [x, "label"], "tuple": lambda x: (x, "label")}
    linear = averaged.module["linear"]
    tree = update_bn((wrap[kind](x) for x in data()), averaged, forward)
    assert tree is averaged.module
    assert tree["linear"] is linear
    assert (tree["on"], tree["nothing"]) == (True, None)
    check_batch_norm(tree, (numbers(0, (3, 3)) + numbers(3, (3, 3))) / 2)


def test_update_bn_of_a_tree_returns_a_new_one() -> None:
    model = with_batch_norm()
    before = exactly(model)
    tree = update_bn(data(), model, forward, device=jax.devices()[0])
    check_batch_norm(tree, numbers(0, (3, 3)))
    assert exactly(model) == before
    assert tree["linear"] is model["linear"]


def test_update_bn_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    linear = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(numbers(0, (3, 3)).T))
    reference = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(3))
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in data()], reference)
    tree = update_bn(data(), with_batch_norm(), forward)
    for key in ("running_mean", "running_var"):
        wanted = plain(getattr(reference[1], key))
        np.testing.assert_allclose(tree[key], wanted, rtol=3e-6, atol=1e-6)


def test_update_bn_without_buffers_does_not_touch_the_loader() -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the loader was asked")
        yield

    model = {"linear": optim.Parameter(jnp.ones(2))}
    assert update_bn(never(), model, forward) is model
    averaged = AveragedModel(model)
    assert update_bn(never(), averaged, forward) is averaged.module


def test_update_bn_refuses_another_structure() -> None:
    with pytest.raises(TypeError, match="the result of apply_fn and model differ in structure"):
        update_bn(data(), with_batch_norm(), lambda tree, x: {"running_mean": tree["running_mean"]})
