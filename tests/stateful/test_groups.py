"""Groups and trees: adding groups, names, subtrees, `opt.params`, trees of gradients."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import all_parameters, cells, exactly, numbers, run, snapshot


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def arrays() -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(numbers(0, (2, 2))), jnp.asarray(numbers(1, (2,)))


TREES = {
    "a dict": lambda: dict(zip("ab", arrays(), strict=True)),
    "an ordered dict": lambda: OrderedDict(zip("ba", arrays(), strict=True)),
    "a list": lambda: list(arrays()),
    "a tuple": lambda: arrays(),
    "a named tuple": lambda: Layer(*arrays()),
    "a list of dicts": lambda: [{"w": arrays()[0]}, {"b": arrays()[1]}],
    "nested": lambda: {"x": [Layer(arrays()[0], None), (arrays()[1],)]},
    "numpy": lambda: {"a": np.asarray(arrays()[0]), "b": np.asarray(arrays()[1])},
}


@pytest.mark.parametrize("build", TREES.values(), ids=TREES)
def test_a_tree_of_arrays_is_optimized_and_given_back(build: Any) -> None:
    tree = build()
    opt = optim.SGD(tree, lr=0.5)
    assert jax.tree.structure(opt.params) == jax.tree.structure(tree)
    for own, given in zip(jax.tree.leaves(opt.params), jax.tree.leaves(tree), strict=True):
        assert isinstance(own, jax.Array)
        np.testing.assert_array_equal(own, given)
    assert len(opt.param_groups) == 1
    assert "param_names" not in opt.param_groups[0]
    grads = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), tree)
    opt.step(grads)
    wanted = jax.tree.map(lambda x: x - 1.0, tree)
    chex.assert_trees_all_close(opt.params, wanted, rtol=1e-6)


def test_a_tree_of_parameters_is_optimized_in_place() -> None:
    model = optim.parameters({"a": numbers(0), "deep": Layer(numbers(1), numbers(2))})
    opt = optim.SGD(model, lr=0.5)
    assert all_parameters(opt) == jax.tree.leaves(model)
    opt.step(jax.tree.map(lambda p: jnp.ones(p.shape), model))
    np.testing.assert_allclose(model["deep"].bias.data, numbers(2) - 0.5, rtol=1e-6)
    assert exactly(opt.params) == exactly(optim.values(model))


def test_the_parameters_of_a_tree_are_in_the_trees_order() -> None:
    opt = optim.SGD({"b": numbers(0, (1,)), "a": numbers(1, (2,)), "c": [numbers(2, (3,))]})
    assert [p.shape for p in all_parameters(opt)] == [(2,), (1,), (3,)]
    assert [p.name for p in all_parameters(opt)] == ["a", "b", "c.0"]


def test_a_group_may_be_a_subtree() -> None:
    model = optim.parameters({"base": Layer(numbers(0), numbers(1)), "head": {"w": numbers(2)}})
    opt = optim.SGD([{"params": model["base"]}, {"params": model["head"], "lr": 0.25}], lr=0.5)
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1]
    opt.step([jax.tree.map(lambda p: jnp.ones(p.shape), model[name]) for name in ("base", "head")])
    np.testing.assert_allclose(model["base"].bias.data, numbers(1) - 0.5, rtol=1e-6)
    np.testing.assert_allclose(model["head"]["w"].data, numbers(2) - 0.25, rtol=1e-6)
    base, head = opt.params
    assert isinstance(base, Layer)
    np.testing.assert_array_equal(head["w"], model["head"]["w"].data)


def test_a_group_of_arrays_is_boxed() -> None:
    opt = optim.SGD([{"params": {"w": numbers(0)}}, {"params": [numbers(1)]}], lr=0.5)
    run(opt, 1)
    (tree, listed) = opt.params
    assert list(tree) == ["w"]
    assert not np.array_equal(listed[0], numbers(1))


def test_the_given_arrays_do_not_change_with_the_boxed_ones() -> None:
    tree = {"w": arrays()[0]}
    opt = optim.SGD(tree, lr=0.5)
    run(opt, 1)
    np.testing.assert_array_equal(tree["w"], arrays()[0])


def test_named_parameters_of_a_model_name_the_groups() -> None:
    model = optim.parameters({"layer": {"bias": numbers(0), "kernel": numbers(1)}})
    opt = optim.SGD(optim.named_parameters(model), lr=0.5)
    group = opt.param_groups[0]
    assert group["params"] == [model["layer"]["bias"], model["layer"]["kernel"]]
    assert group["param_names"] == ["layer.bias", "layer.kernel"]
    saved = opt.state_dict()["param_groups"][0]
    assert saved["param_names"] == ["layer.bias", "layer.kernel"]
    assert list(saved)[-1] == "params"


def test_names_stand_where_torch_puts_them() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's groups")
    (p,) = cells((2,))
    for own, other in (
        ([("w", p)], [("w", torch.ones(2))]),
        ([{"lr": 1, "params": [("w", p)]}], [{"lr": 1, "params": [("w", torch.ones(2))]}]),
    ):
        opt, reference = optim.SGD(own), torch.optim.SGD(other)
        assert list(opt.param_groups[0]) == list(reference.param_groups[0])
        saved, wanted = opt.state_dict(), reference.state_dict()
        assert list(saved["param_groups"][0].items()) == list(wanted["param_groups"][0].items())


def test_gradients_can_be_a_tree_with_holes() -> None:
    model = optim.parameters({"a": numbers(0), "b": numbers(1)})
    opt = optim.Adam(model, lr=0.5)
    opt.step({"a": jnp.ones(3), "b": None})
    np.testing.assert_array_equal(model["b"].data, numbers(1))
    assert not np.array_equal(model["a"].data, numbers(0))
    assert list(opt.state) == [model["a"]]


def test_a_tree_of_gradients_replaces_grad() -> None:
    model = optim.parameters({"a": numbers(0), "b": numbers(1)})
    model["a"].grad = model["b"].grad = np.full(3, 100.0, np.float32)
    optim.SGD(model, lr=0.5).step({"a": jnp.ones(3), "b": None})
    np.testing.assert_allclose(model["a"].data, numbers(0) - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(model["b"].data, numbers(1))
    np.testing.assert_array_equal(model["a"].grad, np.full(3, 100.0))


def test_a_tree_of_gradients_may_hold_numpy_arrays_and_numbers() -> None:
    opt = optim.SGD({"a": numbers(0), "b": np.float32(1.0)}, lr=0.5)
    opt.step({"a": np.ones(3, np.float32), "b": 2.0})
    np.testing.assert_allclose(opt.params["a"], numbers(0) - 0.5, rtol=1e-6)
    np.testing.assert_allclose(opt.params["b"], 0.0, atol=1e-6)


@jax.tree_util.register_pytree_node_class
class Module:
    """A model that is a tree and can be called, as those of several libraries."""

    def __init__(self, w: Any):
        self.w = w

    def __call__(self) -> None:
        raise AssertionError("a tree of gradients is not a closure")

    def tree_flatten(self) -> Any:
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> Module:
        return cls(*children)


def test_a_tree_of_gradients_that_can_be_called_is_no_closure() -> None:
    opt = optim.SGD(Module(numbers(0)), lr=0.5)
    assert isinstance(opt.params, Module)
    opt.step(Module(jnp.ones(3)))
    np.testing.assert_allclose(opt.params.w, numbers(0) - 0.5, rtol=1e-6)


def test_jaxs_gradient_of_an_integer_is_skipped() -> None:
    opt = optim.SGD({"w": numbers(0), "n": np.arange(2)}, lr=0.5)
    grads = jax.grad(lambda params: jnp.sum(params["w"]), allow_int=True)(opt.params)
    assert grads["n"].dtype == jax.dtypes.float0
    opt.step(grads)
    np.testing.assert_allclose(opt.params["w"], numbers(0) - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(opt.params["n"], np.arange(2))


@pytest.mark.parametrize(
    ("grads", "error", "words"),
    [
        ({"a": jnp.ones(3)}, TypeError, "params has a leaf at ['b'], grads has none there"),
        ({"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(3)}, TypeError, "differ in structure"),
        ([jnp.ones(3), jnp.ones(3)], TypeError, "differ in structure"),
        ({"a": [jnp.ones(3)], "b": jnp.ones(3)}, TypeError, "differ in structure"),
        ({"a": jnp.ones(3), "b": jnp.ones(4)}, ValueError, "a gradient of shape (4,)"),
        ({"a": jnp.ones(3), "b": jnp.ones((1, 3))}, ValueError, "parameter 'b'"),
    ],
)
def test_a_tree_of_gradients_that_does_not_match_is_refused(
    grads: Any, error: Any, words: str
) -> None:
    opt = optim.Adam({"a": numbers(0), "b": numbers(1)})
    run(opt, 1)
    before = snapshot(opt)
    with pytest.raises(error, match=re.escape(words)):
        opt.step(grads)
    assert snapshot(opt) == before


def test_a_group_can_be_added() -> None:
    p, q = cells((2,), (3,))
    opt = optim.SGD([p], lr=0.5, momentum=0.9)
    group = {"params": q, "lr": 0.25, "note": "kept"}
    opt.add_param_group(group)
    assert opt.param_groups[1] is group
    assert group["params"] == [q]
    assert (group["lr"], group["momentum"], group["note"]) == (0.25, 0.9, "kept")
    run(opt, 1)
    assert list(opt.state_dict()["state"]) == [0, 1]
    assert opt.state_dict()["param_groups"][1]["params"] == [1]


def test_added_groups_take_the_constructors_defaults_not_the_current_values() -> None:
    p, q = cells((2,), (3,))
    opt = optim.SGD([p], lr=0.5)
    opt.param_groups[0]["lr"] = 0.1
    opt.add_param_group({"params": [q]})
    assert opt.param_groups[1]["lr"] == 0.5


@pytest.mark.parametrize(
    ("group", "error", "words"),
    [
        (lambda p, q: [q], TypeError, "param_group must be a dict, but got <class 'list'>"),
        (lambda p, q: {"lr": 0.1}, KeyError, "'params'"),
        (lambda p, q: {"params": {q}}, TypeError, "organized in ordered collections"),
        (lambda p, q: {"params": ["w"]}, TypeError, "but one of the params is str"),
        (
            lambda p, q: {"params": [q, p]},
            ValueError,
            "some parameters appear in more than one parameter group",
        ),
        (lambda p, q: {"params": [("w", q)]}, ValueError, "cannot add param group with names"),
        (lambda p, q: {"params": [q, ("w", q)]}, ValueError, "Some param names are missing"),
    ],
)
def test_a_group_that_is_refused_adds_nothing(group: Any, error: Any, words: str) -> None:
    p, q = cells((2,), (3,))
    opt = optim.SGD([p], lr=0.5)
    before = snapshot(opt)
    with pytest.raises(error, match=re.escape(words)):
        opt.add_param_group(group(p, q))
    assert snapshot(opt) == before
    assert opt.param_groups[0]["params"] == [p]
    assert len(opt.param_groups) == 1


def test_a_group_can_be_removed_and_a_parameter_appended() -> None:
    p, q, r = cells((2,), (3,), (4,))
    opt = optim.SGD([{"params": p}, {"params": q}], lr=0.5)
    run(opt, 1)
    del opt.param_groups[0]
    opt.param_groups[0]["params"].append(r)
    before = exactly(p), exactly(q), exactly(r)
    run(opt, 1)
    assert exactly(p) == before[0]
    assert exactly(q) != before[1]
    assert exactly(r) != before[2]


ONE_ARRAY = {
    "jax": lambda: jnp.ones((3, 3)),
    "numpy": lambda: np.ones((3, 3), np.float32),
    "a number of numpy": lambda: np.float32(1.0),
    "no dimensions": lambda: jnp.ones(()),
}


@pytest.mark.parametrize("build", ONE_ARRAY.values(), ids=ONE_ARRAY)
def test_an_array_is_one_parameter_and_not_its_rows(build: Any) -> None:
    """As torch takes a tensor; a list of arrays is a list of parameters."""
    shape = np.shape(build())
    opt = optim.SGD([{"params": build()}], lr=0.5)
    opt.add_param_group({"params": build(), "lr": 0.25})
    opt.add_param_group({"params": [build(), build()]})
    opt.add_param_group({"params": iter([build()])})
    opt.add_param_group({"params": {"w": build()}})
    assert [[p.shape for p in g["params"]] for g in opt.param_groups] == [
        [shape],
        [shape],
        [shape, shape],
        [shape],
        [shape],
    ]
    grads = jax.tree.map(lambda x: jnp.ones(x.shape), opt.params)
    opt.step(grads)
    np.testing.assert_allclose(opt.params[0][0], np.full(shape, 0.5))
    np.testing.assert_allclose(opt.params[1][0], np.full(shape, 0.75))
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        optim.SGD(build(), lr=0.5)


def test_names_stand_beside_arrays_that_are_one_parameter() -> None:
    opt = optim.Adam([{"params": [("w", jnp.ones((3, 3))), ("b", np.ones(3, np.float32))]}])
    assert opt.param_groups[0]["param_names"] == ["w", "b"]
    assert [p.shape for p in all_parameters(opt)] == [(3, 3), (3,)]


def test_params_follow_the_groups() -> None:
    """Where a group's list was changed, the tree that was given is no longer there."""
    model = {"a": optim.Parameter(numbers(0)), "b": optim.Parameter(numbers(1))}
    opt = optim.SGD([{"params": model}, {"params": model["a"].data}], lr=0.5)
    (other,) = cells((2,))
    opt.param_groups[0]["params"].append(other)
    assert [len(x) for x in opt.params] == [3, 1]
    assert isinstance(opt.params[0], list)
    opt.param_groups[0]["params"].remove(other)
    assert set(opt.params[0]) == {"a", "b"}
    del opt.param_groups[1]
    assert [set(x) for x in opt.params] == [{"a", "b"}]
    opt.step([{"a": jnp.ones(3), "b": jnp.ones(3)}])
    np.testing.assert_allclose(model["a"].data, numbers(0) - 0.5, rtol=1e-6)
