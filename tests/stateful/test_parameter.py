"""`Parameter`, and the functions between trees of arrays and trees of Parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import exactly, numbers


def test_holds_a_value_and_no_gradient() -> None:
    x = jnp.asarray(numbers(0, (2, 3)))
    p = optim.Parameter(x)
    assert p.data is x
    assert p.grad is None
    assert p.requires_grad is True
    assert p.name is None
    assert (p.shape, p.dtype, p.size, p.ndim) == ((2, 3), np.float32, 6, 2)


@pytest.mark.parametrize(
    "value", [np.ones(2, np.float32), [1.0, 1.0], (1.0, 1.0)], ids=["numpy", "list", "tuple"]
)
def test_takes_what_is_no_jax_array(value: Any) -> None:
    p = optim.Parameter(value)
    assert isinstance(p.data, jax.Array)
    np.testing.assert_array_equal(p.data, [1.0, 1.0])


def test_takes_a_number() -> None:
    assert optim.Parameter(2.5).shape == ()
    assert float(optim.Parameter(2.5).data) == 2.5


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_integers_require_no_gradient(dtype: Any) -> None:
    p = optim.Parameter(np.ones(2, dtype))
    assert p.requires_grad is False
    assert p.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_floating_point_and_complex_require_a_gradient(dtype: Any) -> None:
    p = optim.Parameter(jnp.ones(2, dtype))
    assert p.requires_grad is True
    assert p.dtype == dtype


def test_repr() -> None:
    x = np.ones((2, 3), np.float32)
    assert repr(optim.Parameter(x)) == "Parameter(float32[2, 3])"
    assert repr(optim.Parameter(x, name="a.b")) == "Parameter('a.b', float32[2, 3])"
    assert repr(optim.Parameter(2.0, requires_grad=False)) == (
        "Parameter(float32[], requires_grad=False)"
    )


def test_data_can_be_assigned() -> None:
    p = optim.Parameter(numbers(0))
    p.data = jnp.asarray(numbers(1))
    np.testing.assert_array_equal(p.data, numbers(1))
    p.data = numbers(2)
    assert isinstance(p.data, jax.Array)
    np.testing.assert_array_equal(p.data, numbers(2))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(4, np.float32), ValueError, r"shape \(4,\) and dtype float32"),
        (np.ones((3, 1), np.float32), ValueError, r"shape \(3, 1\)"),
        (np.float32(1), ValueError, r"shape \(\)"),
        (np.ones(3, np.int32), TypeError, r"shape \(3,\) and dtype int32"),
        (jnp.ones(3, jnp.bfloat16), TypeError, "dtype bfloat16"),
        (np.ones(3, np.complex64), TypeError, "dtype complex64"),
    ],
)
def test_data_of_another_shape_or_dtype_is_refused(value: Any, error: Any, message: str) -> None:
    p = optim.Parameter(numbers(0), name="layer.bias")
    before = exactly(p)
    with pytest.raises(error, match=message) as caught:
        p.data = value
    assert "'layer.bias'" in str(caught.value)
    assert "which holds shape (3,) and dtype float32" in str(caught.value)
    assert exactly(p) == before


def test_grad_can_be_assigned_and_taken_away() -> None:
    p = optim.Parameter(numbers(0))
    g = jnp.asarray(numbers(1))
    p.grad = g
    assert p.grad is g
    p.grad = numbers(2)
    assert isinstance(p.grad, jax.Array)
    p.grad = None
    assert p.grad is None


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], (1.0, 2.0, 3.0)], ids=["list", "tuple"])
def test_grad_can_be_a_list(value: Any) -> None:
    p = optim.Parameter(numbers(0))
    p.grad = value
    np.testing.assert_array_equal(p.grad, [1.0, 2.0, 3.0])


def test_grad_of_a_scalar_can_be_a_number() -> None:
    p = optim.Parameter(1.0)
    p.grad = 2.0
    np.testing.assert_array_equal(p.grad, 2.0)


@pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 3), ()])
def test_grad_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    p = optim.Parameter(numbers(0), name="layer.bias")
    p.grad = numbers(1)
    before = exactly(p)
    with pytest.raises(ValueError, match=r"'layer\.bias', which has shape") as caught:
        p.grad = np.ones(shape, np.float32)
    assert str(shape) in str(caught.value)
    assert exactly(p) == before


def test_complex_grad_of_a_real_parameter_is_refused() -> None:
    p = optim.Parameter(numbers(0))
    with pytest.raises(TypeError, match="a gradient of dtype complex64 was given to a parameter"):
        p.grad = np.ones(3, np.complex64)
    assert p.grad is None


def test_converts_to_numpy() -> None:
    p = optim.Parameter(numbers(0))
    np.testing.assert_array_equal(np.asarray(p), numbers(0))
    assert np.asarray(p, dtype=np.float64).dtype == np.float64
    copied = np.array(p)
    copied[:] = 0  # a copy of one's own can be written
    np.testing.assert_array_equal(p.data, numbers(0))
    assert float(np.asarray(optim.Parameter(2.5))) == 2.5


def test_converts_to_jax() -> None:
    p = optim.Parameter(numbers(0))
    x = jnp.asarray(p)
    assert isinstance(x, jax.Array)
    np.testing.assert_array_equal(x, numbers(0))
    np.testing.assert_array_equal(jnp.array(p) + 1, numbers(0) + 1)


def test_is_equal_only_to_itself() -> None:
    x = jnp.asarray(numbers(0))
    p, q = optim.Parameter(x), optim.Parameter(x)
    same = p
    assert p == same
    assert p != q
    assert len({p, q, p}) == 2
    assert [p, q].index(q) == 1
    before = hash(p)
    p.data = numbers(1)
    assert hash(p) == before


def test_is_one_leaf_of_a_tree() -> None:
    p = optim.Parameter(numbers(0))
    assert jax.tree.leaves({"a": [p, 1.0]}) == [p, 1.0]


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["deepcopy", "pickle"],
)
def test_can_be_duplicated(duplicate: Any) -> None:
    p = optim.Parameter(numbers(0), requires_grad=False, name="a.b")
    p.grad = numbers(1)
    q = duplicate(p)
    assert q is not p
    assert exactly(q) == exactly(p)
    q.data = numbers(2)
    np.testing.assert_array_equal(p.data, numbers(0))


def test_a_deepcopy_of_a_tree_keeps_shared_parameters_shared() -> None:
    p = optim.Parameter(numbers(0))
    model = copy.deepcopy({"a": p, "b": p})
    assert model["a"] is model["b"]
    assert model["a"] is not p


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def test_parameters_boxes_every_array_and_names_it() -> None:
    given = optim.Parameter(numbers(3), name="kept")
    tree = {
        "base": [Layer(jnp.asarray(numbers(0)), numbers(1))],
        "given": given,
        "rate": 0.5,
        "f": jnp.tanh,
        "none": None,
        "scalar": np.float32(2.0),
    }
    model = optim.parameters(tree)
    assert isinstance(model["base"][0], Layer)
    assert model["given"] is given
    assert (model["rate"], model["f"], model["none"]) == (0.5, jnp.tanh, None)
    assert [(name, p.name) for name, p in optim.named_parameters(model)] == [
        ("base.0.kernel", "base.0.kernel"),
        ("base.0.bias", "base.0.bias"),
        ("given", "kept"),
        ("scalar", "scalar"),
    ]


def test_values_gives_the_plain_tree_back() -> None:
    tree = {"base": [Layer(jnp.asarray(numbers(0)), jnp.asarray(numbers(1)))], "rate": 0.5}
    assert exactly(optim.values(optim.parameters(tree))) == exactly(tree)


def test_values_goes_through_jit() -> None:
    model = optim.parameters({"w": numbers(0)})
    total = jax.jit(lambda params: jnp.sum(params["w"]))(optim.values(model))
    np.testing.assert_allclose(total, numbers(0).sum(), rtol=1e-6)
