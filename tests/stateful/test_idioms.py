"""What people of torch do around an optimizer, under the names they know."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim.stateful as optim
from tests.support.stateful import cells, compilations, exactly, give_gradients, new_shape, numbers


def torch_cells(*shapes: Any) -> tuple[Any, list[Any]]:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    values = [numbers(i, shape) for i, shape in enumerate(shapes)]
    return torch, [torch.nn.Parameter(torch.tensor(x)) for x in values]


SHAPES = (2, 3), (), (4,)


# The norm that is known before the gradients are clipped.


@pytest.mark.parametrize("norm_type", [2.0, 1, math.inf, "inf", 3, 0, -math.inf])
def test_a_total_norm_is_torchs(norm_type: Any) -> None:
    torch, theirs = torch_cells(*SHAPES)
    ours = [jnp.asarray(x.detach().numpy()) for x in theirs]
    wanted = torch.nn.utils.get_total_norm([x.detach() for x in theirs], norm_type)
    for given in ours, tuple(ours), iter(ours), {"a": ours, "b": None}:
        norm = optim.get_total_norm(given, norm_type)
        assert norm.shape == ()
        np.testing.assert_allclose(norm, wanted.numpy(), rtol=1e-6)


def test_a_total_norm_of_one_array_and_of_nothing() -> None:
    assert float(optim.get_total_norm(jnp.asarray([3.0, 4.0]))) == 5.0
    assert float(optim.get_total_norm(optim.Parameter([3.0, 4.0]))) == 5.0
    assert float(optim.get_total_norm([])) == 0.0
    bcoo = sparse.BCOO((jnp.asarray([3.0, 1.0, 3.0]), jnp.array([[0], [0], [2]])), shape=(4,))
    assert float(optim.get_total_norm([bcoo])) == 5.0


def test_a_total_norm_refuses_what_torch_refuses() -> None:
    with pytest.raises(RuntimeError, match="Expected a floating point or complex tensor as input"):
        optim.get_total_norm([jnp.ones(2), jnp.ones(2, jnp.int32)])
    with pytest.raises(RuntimeError, match=r"The total norm of order 2\.0 for gradients from"):
        optim.get_total_norm([jnp.asarray([math.nan])], error_if_nonfinite=True)
    with pytest.raises(TypeError, match="norm_type"):
        optim.get_total_norm([jnp.ones(2)], None)
    assert math.isnan(optim.get_total_norm([jnp.asarray([math.nan])]))


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_with_a_known_norm_is_torchs(max_norm: float) -> None:
    torch, theirs = torch_cells(*SHAPES)
    ours = cells(*SHAPES)
    give_gradients(ours)
    for p, q in zip(ours, theirs, strict=True):
        q.grad = torch.tensor(np.asarray(p.grad))
    norm = optim.get_total_norm([p.grad for p in ours])
    assert optim.clip_grads_with_norm_(ours, max_norm, norm) is None
    torch.nn.utils.clip_grads_with_norm_(
        theirs, max_norm, torch.nn.utils.get_total_norm([q.grad for q in theirs])
    )
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-6)


def test_both_parts_of_clipping_are_the_whole() -> None:
    one, other = cells(*SHAPES), cells(*SHAPES)
    give_gradients(one)
    give_gradients(other)
    norm = optim.clip_grad_norm_(one, 0.5)
    known = optim.get_total_norm([p.grad for p in other])
    assert float(known) == float(norm)
    optim.clip_grads_with_norm_(iter(other), 0.5, known)
    for p, q in zip(one, other, strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-6)


def test_a_known_norm_may_be_a_number() -> None:
    (p,) = cells((2,))
    p.grad = np.float32([3, 4])
    optim.clip_grads_with_norm_(p, 1.0, 5.0)
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)
    before = exactly(p)
    for bad in [1.0, 2.0], "5", jnp.ones(2), None:
        with pytest.raises((TypeError, ValueError), match="total_norm"):
            optim.clip_grads_with_norm_(p, 1.0, bad)
    with pytest.raises(ValueError, match="max_norm"):
        optim.clip_grads_with_norm_(p, -1.0, 5.0)
    assert exactly(p) == before


def test_a_changed_norm_compiles_nothing() -> None:
    (p,) = cells(new_shape())
    give_gradients([p])
    optim.clip_grads_with_norm_(p, 1.0, optim.get_total_norm([p.grad]))
    with compilations() as compiled:
        optim.clip_grads_with_norm_(p, 2, optim.get_total_norm([p.grad]))
    assert compiled == []


# Parameters as one vector.


def test_a_vector_is_torchs_and_goes_back() -> None:
    torch, theirs = torch_cells(*SHAPES)
    ours = cells(*SHAPES)
    vector = optim.parameters_to_vector(ours)
    wanted = torch.nn.utils.parameters_to_vector(theirs)
    np.testing.assert_array_equal(vector, wanted.detach().numpy())
    optim.vector_to_parameters(2 * vector, iter(ours))
    torch.nn.utils.vector_to_parameters(2 * wanted, theirs)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(p.data, q.detach().numpy())


def test_a_vector_of_several_dtypes() -> None:
    torch, _ = torch_cells()
    values = [(np.arange(3), dtype) for dtype in ("float16", "bfloat16", "float32")]
    model = {str(i): optim.Parameter(jnp.asarray(x, d)) for i, (x, d) in enumerate(values)}
    wanted = torch.cat([torch.tensor(x, dtype=getattr(torch, d)) for x, d in values[:2]])
    assert str(wanted.dtype) == "torch.float32"
    assert optim.parameters_to_vector([model["0"], model["1"]]).dtype == jnp.float32
    vector = optim.parameters_to_vector(model)
    optim.vector_to_parameters(np.asarray(vector) + 1, model)
    for p, (x, dtype) in zip(model.values(), values, strict=True):
        assert p.dtype == dtype
        np.testing.assert_array_equal(p.data.astype(jnp.float32), x + 1.0)


def test_a_vector_holds_no_integers() -> None:
    model = optim.parameters({"steps": np.int32(2**30 + 1), "w": numbers(0)})
    vector = optim.parameters_to_vector(model)
    assert (vector.shape, vector.dtype) == ((3,), jnp.float32)
    optim.vector_to_parameters(-vector, model)
    np.testing.assert_array_equal(model["w"].data, -numbers(0))
    assert int(model["steps"]) == 2**30 + 1


@pytest.mark.parametrize("shapes", [[(4,)], [(2, 2)], [(4,), (3, 1)]])
def test_a_vector_and_its_parts_stay(shapes: Any) -> None:
    ours = cells(*shapes)
    opt = optim.SGD(ours, lr=0.5)
    for _ in range(2):
        give_gradients(ours)
        opt.step()
    vector = optim.parameters_to_vector(ours)
    before = np.array(vector)
    optim.vector_to_parameters(vector, ours)
    give_gradients(ours)
    opt.step()
    opt.step()
    np.testing.assert_array_equal(vector, before)
    assert not np.array_equal(optim.parameters_to_vector(ours), before)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([1.0] * 5, TypeError, "expected an array"),
        (np.ones(4, np.float32), ValueError, "invalid for a vector"),
        (np.ones(6, np.float32), ValueError, "invalid for a vector"),
        (np.ones((5, 1), np.float32), ValueError, "invalid for a vector"),
        (np.ones(5, np.complex64), TypeError, "complex64"),
    ],
)
def test_a_vector_that_does_not_fit_changes_nothing(bad: Any, error: Any, message: str) -> None:
    ours = cells((2,), (3,))
    before = exactly(ours)
    with pytest.raises(error, match=message):
        optim.vector_to_parameters(bad, ours)
    assert exactly(ours) == before
    with pytest.raises(ValueError, match="expected a non-empty list"):
        optim.parameters_to_vector([])


def test_a_vector_goes_to_where_the_parameters_are() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    p = optim.Parameter(jax.device_put(jnp.zeros(8), spread))
    optim.vector_to_parameters(np.arange(8, dtype=np.float32), p)
    assert p.sharding == spread
    np.testing.assert_array_equal(p.data, np.arange(8))


# Freezing.


def test_freezing_is_torchs() -> None:
    torch, theirs = torch_cells((3,), (3,))
    ours = cells((3,), (3,))
    opts = optim.Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)

    def look() -> None:
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-5)
            assert (p.grad is None, p.requires_grad) == (q.grad is None, q.requires_grad)

    def train(zero: bool) -> None:
        optim.backward(lambda ps: jnp.sum(ps[0] ** 2 * ps[1]), ours)
        (theirs[0] ** 2 * theirs[1]).sum().backward()
        for opt in opts:
            opt.step()
            if zero:
                opt.zero_grad()
        look()

    train(zero=False)
    assert ours[0].requires_grad_(False) is ours[0]
    theirs[0].requires_grad_(False)
    train(zero=False)  # the gradient that is there is used once more
    train(zero=True)
    train(zero=True)  # now it stands still
    ours[0].requires_grad_()
    theirs[0].requires_grad_()
    train(zero=True)


def test_a_model_is_frozen_as_a_module_is() -> None:
    tree = {"w": numbers(0), "steps": np.int32(3), "f": jnp.tanh, "x": None}
    model = optim.parameters({**tree, "inner": [tree]})
    assert optim.requires_grad_(model, False) is model
    assert [p.requires_grad for _, p in optim.named_parameters(model)] == [False] * 4
    with pytest.raises(ValueError, match="no Parameter of the model requires a gradient"):
        optim.backward(lambda p: jnp.sum(p["w"]), model)
    optim.requires_grad_(model["inner"])
    assert [n for n, p in optim.named_parameters(model) if p.requires_grad] == ["inner.0.w"]


def test_integers_can_require_no_gradient() -> None:
    p = optim.Parameter(np.arange(3), name="count")
    for change in (lambda: p.requires_grad_(), lambda: setattr(p, "requires_grad", True)):
        with pytest.raises(RuntimeError, match="only Tensors of floating point and complex dtype"):
            change()
    assert p.requires_grad_(False) is p
    with pytest.raises(TypeError, match="requires_grad"):
        optim.Parameter(1.0).requires_grad_("no")
    with pytest.raises(TypeError, match="requires_grad"):
        optim.requires_grad_([optim.Parameter(1.0)], None)


# Values of a whole model.


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def build(seed: int = 0) -> Any:
    return optim.parameters(
        {
            "base": [Layer(numbers(seed, (2, 3)), numbers(seed + 1))],
            "steps": np.int32(seed),
            "f": jnp.tanh,
            "rate": 0.5,
            "none": None,
        }
    )


WAYS = {
    "tree": optim.values,
    "model": lambda model: model,
    "names": lambda model: {name: p.data for name, p in optim.named_parameters(model)},
    "numpy by name": lambda m: {n: np.asarray(p) for n, p in optim.named_parameters(m)},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_values_are_loaded(way: Any) -> None:
    model, other = build(), build(5)
    given = way(other)
    assert optim.load_values(model, given) is model
    assert exactly(optim.values(model)) == exactly(optim.values(other))
    opt = optim.SGD([model["base"][0].kernel], lr=0.5)
    before = exactly(jax.tree.map(np.asarray, optim.values(other)))
    for _ in range(2):
        give_gradients([model["base"][0].kernel])
        opt.step()
    assert exactly(jax.tree.map(np.asarray, optim.values(other))) == before


def test_values_are_cast_and_placed() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    p = optim.Parameter(jax.device_put(jnp.zeros(8), spread))
    q = optim.Parameter(jnp.zeros(2, jnp.bfloat16))
    optim.load_values({"p": p, "q": q}, {"p": np.arange(8.0), "q": jnp.ones(2)})
    assert p.sharding == spread
    assert q.dtype == jnp.bfloat16
    np.testing.assert_array_equal(p.data, np.arange(8))


def test_a_flat_model_with_other_leaves_takes_its_own_tree() -> None:
    model = optim.parameters({"w": numbers(0), "rate": 0.5})
    optim.load_values(model, {"w": numbers(1), "rate": 0.1})
    np.testing.assert_array_equal(model["w"].data, numbers(1))
    optim.load_values(model, {"w": numbers(2)})
    np.testing.assert_array_equal(model["w"].data, numbers(2))
    p = optim.Parameter(1.0)
    optim.load_values(p, 3.0)
    assert float(p) == 3.0


def bad_values() -> dict[str, tuple[Any, Any, str]]:
    names: dict[str, Any] = {name: p.data for name, p in optim.named_parameters(build(5))}
    kernel, bias = "base.0.kernel", "base.0.bias"
    rest = {name: x for name, x in names.items() if name != bias}
    return {
        "missing": (rest, ValueError, r'Missing key\(s\) in state_dict: "base\.0\.bias"'),
        "unexpected": (
            {**names, "x": 1.0, "y": 2.0},
            ValueError,
            r'Unexpected key\(s\) in state_dict: "x", "y"',
        ),
        "shape": (
            {**names, bias: np.ones((3, 2), np.float32)},
            ValueError,
            r"size mismatch for 'base\.0\.bias': copying a param with shape \(3, 2\)",
        ),
        "complex": ({**names, bias: np.ones(3, np.complex64)}, TypeError, "dtype complex64"),
        "integer": ({**names, kernel: np.ones((2, 3), int)}, TypeError, "dtype int64"),
        "real for integer": ({**names, "steps": np.float32(1)}, TypeError, "dtype float32"),
        "no array": ({**names, bias: "x"}, TypeError, "should be an array, but got 'x'"),
        "nothing": ({**names, bias: None}, TypeError, "should be an array, but got None"),
        "another tree": ([1, 2], TypeError, "differ in structure"),
        "no tree": (None, TypeError, "differ in structure"),
    }


@pytest.mark.parametrize("bad", bad_values().values(), ids=bad_values())
def test_values_that_do_not_fit_change_nothing(bad: Any) -> None:
    given, error, message = bad
    model = build()
    before = exactly(optim.values(model))
    with pytest.raises(error, match=message):
        optim.load_values(model, given)
    assert exactly(optim.values(model)) == before


# A loss of one element.


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_of_one_element_is_a_loss(shape: tuple[int, ...]) -> None:
    def loss_fn(params: Any, factor: Any) -> Any:
        return (jnp.sum(params["p"] ** 2) * factor).reshape(shape), {"factor": factor}

    models = [{"p": cells((3,))[0]} for _ in range(4)]
    opts = [optim.SGD(model, lr=0.1) for model in models]
    wanted = float(np.sum(numbers(0) ** 2))
    factor = jnp.float32(1.0)
    loss, aux = optim.backward(loss_fn, models[0], factor, has_aux=True)
    opts[0].step()
    steps = [
        opts[1].make_step(loss_fn, models[1], has_aux=True)(factor),
        opts[2].make_step(loss_fn, models[2], has_aux=True, scaler=optim.GradScaler())(factor),
        opts[3].make_step(loss_fn, models[3], has_aux=True, accumulate=2)(jnp.ones(2)),
    ]
    assert float(aux["factor"]) == 1.0
    for result in loss, *[loss for loss, _ in steps]:
        assert result.shape == shape
        np.testing.assert_allclose(result.item(), wanted, rtol=1e-6)
    for model in models:
        np.testing.assert_allclose(model["p"].data, 0.8 * numbers(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_lbfgs_takes_a_loss_of_one_element(shape: tuple[int, ...]) -> None:
    def loss_fn(params: Any) -> Any:
        return jnp.sum((params["p"] - 1.0) ** 2).reshape(shape)

    model, other = ({"p": cells((3,))[0]} for _ in range(2))
    loss = optim.LBFGS(model, line_search_fn="strong_wolfe").make_step(loss_fn, model)()
    opt = optim.LBFGS(other, line_search_fn="strong_wolfe")

    def closure() -> Any:
        opt.zero_grad()
        return optim.backward(loss_fn, other)

    driven = opt.step(closure)
    assert loss.shape == driven.shape == shape
    for p in model["p"], other["p"]:
        np.testing.assert_allclose(p.data, np.ones(3), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_a_loss_of_several_elements_is_refused_in_torchs_words(shape: tuple[int, ...]) -> None:
    model = {"p": cells((3,))[0]}
    opt = optim.SGD(model, lr=0.1)
    before = exactly(model["p"])
    words = "grad can be implicitly created only for scalar outputs"

    def loss_fn(params: Any) -> Any:
        return jnp.sum(params["p"]) * jnp.ones(shape)

    for call in (
        lambda: optim.backward(loss_fn, model),
        opt.make_step(loss_fn, model),
        opt.make_step(loss_fn, model, scaler=optim.GradScaler()),
        optim.LBFGS(model).make_step(loss_fn, model),
    ):
        with pytest.raises(TypeError, match=words) as caught:
            call()
        assert str(shape) in str(caught.value)
    assert exactly(model["p"]) == before


@pytest.mark.parametrize("returned", [None, "x", (1.0, 2.0)])
def test_what_is_no_loss_is_refused(returned: Any) -> None:
    model = {"p": cells((3,))[0]}
    opt = optim.SGD(model, lr=0.1)
    for call in (
        lambda: optim.backward(lambda params: returned, model),
        opt.make_step(lambda params: returned, model, scaler=optim.GradScaler()),
    ):
        with pytest.raises(TypeError, match=r"only for scalar outputs, but it is") as caught:
            call()
        assert repr(returned) in str(caught.value)
    assert model["p"].grad is None
