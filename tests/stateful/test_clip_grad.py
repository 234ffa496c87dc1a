"""`clip_grad_norm_` and `clip_grad_value_`: torch's numbers, on every kind of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import compilations, exactly, new_shape, numbers
from tests.support.twin import plain

# norm type: (total norm, factor at max_norm=1) of the gradients [3, 4, 0], zeros and -12, where
# the latter comes from torch. Of type 0 torch counts gradients, not elements.
LITERALS = {
    2: (13.0, 1 / 13),
    1: (19.0, 1 / 19),
    math.inf: (12.0, 1 / 12),
    3: (1819 ** (1 / 3), 1819 ** (-1 / 3)),
    0: (2.0, 1 / 2),
    -math.inf: (0.0, 1.0),
    0.5: (51.784609, 1 / 51.784609),
    -1: (0.0, 1.0),
}
DTYPES = ("float32", "complex64", "bfloat16")


def with_gradients(*grads: Any) -> list[optim.Parameter]:
    parameters = []
    for g in grads:
        p = optim.Parameter(jnp.zeros(jnp.shape(g), jnp.asarray(g).dtype))
        p.grad = g
        parameters.append(p)
    return parameters


def small() -> list[optim.Parameter]:
    grads = [3, 4, 0], [[0, 0], [0, 0]], -12
    return with_gradients(*(np.asarray(g, np.float32) for g in grads))


@pytest.mark.parametrize("norm_type", LITERALS)
def test_the_norm_and_the_clipped_gradients(norm_type: float) -> None:
    parameters = small()
    before = [np.array(p.grad) for p in parameters]
    norm = optim.clip_grad_norm_(parameters, 1.0, norm_type)
    wanted, factor = LITERALS[norm_type]
    assert norm.shape == ()
    np.testing.assert_allclose(norm, wanted, rtol=2e-6)
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.grad, factor * g, rtol=3e-6)


@pytest.mark.parametrize("norm_type", [2, 1, math.inf, 3])
def test_gradients_within_the_bound_stay(norm_type: float) -> None:
    parameters = small()
    before = exactly([p.grad for p in parameters])
    optim.clip_grad_norm_(parameters, 20.0, norm_type)
    assert exactly([p.grad for p in parameters]) == before


@pytest.mark.parametrize("norm_type", [math.inf, "inf"])
def test_the_norm_type_may_be_text(norm_type: Any) -> None:
    assert float(optim.clip_grad_norm_(small(), 1.0, norm_type)) == 12.0


def pair(dtype: str) -> tuple[Any, list[optim.Parameter], list[Any]]:
    """torch, and equal parameters of ours and of torch's; the third has no gradient."""
    torch = pytest.importorskip("torch", reason="compares with torch live")
    kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
    ours, theirs = [], []
    for i, shape in enumerate([(5,), (2, 3), (4,), ()]):
        g = numbers(i, shape, kind)
        p = optim.Parameter(jnp.zeros(shape, dtype))
        q = torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype)))
        if i != 2:
            p.grad = jnp.asarray(g).astype(dtype)
            q.grad = torch.tensor(g).to(q.dtype)
        ours.append(p)
        theirs.append(q)
    return torch, ours, theirs


def check(ours: Any, theirs: Any, rtol: float) -> None:
    for p, q in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.dtype == p.dtype
            np.testing.assert_allclose(plain(p.grad), plain(q.grad), rtol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_type", [2, 1, math.inf, 3, 0, -math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
@pytest.mark.filterwarnings("ignore:Casting complex values to real")  # torch's, for type 0
def test_clipping_by_norm_is_torchs(dtype: str, norm_type: float, max_norm: float) -> None:
    torch, ours, theirs = pair(dtype)
    rtol = 2e-2 if dtype == "bfloat16" else 2e-6  # torch's norm of bfloat16 is bfloat16
    norm = optim.clip_grad_norm_(ours, max_norm, norm_type)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(norm, plain(wanted), rtol=rtol)
    check(ours, theirs, rtol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clipping_by_value_is_torchs(dtype: str) -> None:
    torch, ours, theirs = pair(dtype)
    assert optim.clip_grad_value_(ours, 0.3) is None
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    check(ours, theirs, 0.0)


def test_clipping_by_value() -> None:
    p, q = with_gradients(np.float32([math.inf, math.nan, -4, 0.25]), np.float32(-0.5))
    optim.clip_grad_value_([p, q], 0.3)
    np.testing.assert_array_equal(p.grad, np.float32([0.3, math.nan, -0.3, 0.25]))
    np.testing.assert_array_equal(q.grad, np.float32(-0.3))


def test_clipping_by_value_refuses_complex_gradients() -> None:
    """They have no order; torch has no clamp for them either."""
    (p,) = with_gradients(np.complex64([3 + 4j, 1]))
    before = exactly(p.grad)
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        optim.clip_grad_value_([p], 1.0)
    assert exactly(p.grad) == before


def test_a_complex_gradient_counts_by_its_size() -> None:
    (p,) = with_gradients(np.complex64([3 + 4j, 12]))
    norm = optim.clip_grad_norm_([p], 6.5)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, 13.0, rtol=1e-6)
    np.testing.assert_allclose(p.grad, np.complex64([1.5 + 2j, 6]), rtol=1e-6)


def test_the_norm_of_half_types_is_taken_in_float32() -> None:
    """300 squared is more than float16 holds, and 4096 ones added one by one are 256 in bfloat16"""
    p, q = with_gradients(jnp.full(4, 300, jnp.float16), jnp.ones(4096, jnp.bfloat16))
    assert float(optim.clip_grad_norm_([p], 1000.0)) == 600.0
    assert float(optim.clip_grad_norm_([q], 1000.0)) == 64.0
    assert p.grad.dtype == jnp.float16


def test_gradients_of_several_dtypes_are_clipped_together(x64: None) -> None:
    grads = np.float32([3]), np.float64([4]), np.complex64([12j]), jnp.asarray([84], jnp.bfloat16)
    parameters = with_gradients(*grads)
    norm = optim.clip_grad_norm_(parameters, 8.5)
    np.testing.assert_allclose(norm, 85.0, rtol=1e-12)
    for p, g in zip(parameters, grads, strict=True):
        assert p.grad.dtype == g.dtype
        np.testing.assert_allclose(plain(p.grad), plain(g) / 10, rtol=4e-3)


WORDS = (
    "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it cannot be "
    "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
    "`error_if_nonfinite=False`"
)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_refused_if_asked(bad: float) -> None:
    parameters = with_gradients(np.float32([bad, 4, 0]), np.float32([2]))
    before = exactly(parameters)
    with pytest.raises(RuntimeError) as caught:
        optim.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert str(caught.value) == WORDS
    assert exactly(parameters) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_scales_as_in_torch(bad: float) -> None:
    """Everything becomes NaN, or zero beside an infinity that becomes NaN."""
    p, q = with_gradients(np.float32([bad, 4, 0]), np.float32([2]))
    norm = optim.clip_grad_norm_([p, q], 1.0)
    np.testing.assert_array_equal(norm, bad)
    rest = math.nan if math.isnan(bad) else 0.0
    np.testing.assert_array_equal(p.grad, np.float32([math.nan, rest, rest]))
    np.testing.assert_array_equal(q.grad, np.float32([rest]))


def test_a_finite_norm_is_no_error() -> None:
    parameters = small()
    assert float(optim.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)) == 13.0
    np.testing.assert_allclose(parameters[2].grad, -12 / 13, rtol=1e-6)


KINDS: dict[str, Callable[[Any], Any]] = {
    "list": lambda parameters: parameters,
    "tuple": tuple,
    "generator": lambda parameters: (p for p in parameters),
    "iterator": iter,
    "values of a dict": lambda parameters: dict(enumerate(parameters)).values(),
    "model": lambda parameters: {
        "layers": [{"kernel": p} for p in parameters],
        "activation": jax.nn.relu,
        "buffer": jnp.full(3, 100.0),
        "nothing": None,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_may_be(kind: str) -> None:
    parameters = small()
    assert float(optim.clip_grad_norm_(KINDS[kind](parameters), 1.0)) == 13.0
    np.testing.assert_allclose(parameters[2].grad, -12 / 13, rtol=1e-6)
    optim.clip_grad_value_(KINDS[kind](parameters), 0.25)
    assert [float(p.grad.max()) for p in parameters] == [0.25, 0.0, -0.25]


def test_one_parameter_may_be_given() -> None:
    (p,) = with_gradients(np.float32([3, 4]))
    assert float(optim.clip_grad_norm_(p, 1.0)) == 5.0
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)
    optim.clip_grad_value_(p, 0.7)
    np.testing.assert_allclose(p.grad, [0.6, 0.7], rtol=1e-6)


@pytest.mark.parametrize("parameters", [[], [optim.Parameter(np.ones(3))], iter(())])
def test_no_gradient_at_all(parameters: Any) -> None:
    norm = optim.clip_grad_norm_(parameters, 1.0)
    assert (norm.shape, float(norm)) == ((), 0.0)
    optim.clip_grad_value_(parameters, 1.0)
    assert all(p.grad is None for p in parameters)


def test_an_empty_gradient() -> None:
    p, q = with_gradients(np.zeros((0, 3), np.float32), np.float32([3, 4]))
    for norm_type in 2, 1, 0:
        wanted = {2: 5.0, 1: 7.0, 0: 1.0}[norm_type]
        assert float(optim.clip_grad_norm_([p, q], 100.0, norm_type)) == wanted
    assert p.grad.shape == (0, 3)


def test_a_changed_bound_compiles_nothing() -> None:
    shape = new_shape()
    (p,) = with_gradients(np.ones(shape, np.float32))
    with compilations() as compiled:
        optim.clip_grad_norm_([p], 8.0)
        optim.clip_grad_value_([p], 1.0)
    assert len(compiled) >= 2  # the counter sees them
    norms = []
    with compilations() as compiled:
        for bound in 4.0, 2.0, np.float64(1.0):
            norms.append(optim.clip_grad_norm_([p], bound))
            optim.clip_grad_value_([p], bound / 100)
    assert compiled == []
    assert float(norms[0]) > float(norms[1]) > float(norms[2])


def test_a_whole_bound_compiles_nothing() -> None:
    (p,) = with_gradients(np.ones(new_shape(), np.float32))
    optim.clip_grad_norm_([p], 8.0)
    optim.clip_grad_value_([p], 0.5)
    with compilations() as compiled:
        optim.clip_grad_norm_([p], 4)
        optim.clip_grad_value_([p], 1)
    assert compiled == []


def test_an_array_as_the_bound() -> None:
    parameters = small()
    optim.clip_grad_norm_(parameters, jnp.float32(6.5))
    np.testing.assert_allclose(parameters[2].grad, -6.0, rtol=1e-6)


def test_what_was_read_stays() -> None:
    parameters = small()
    before = parameters[0].grad
    optim.clip_grad_norm_(parameters, 1.0)
    optim.clip_grad_value_(parameters, 0.01)
    np.testing.assert_array_equal(before, [3, 4, 0])


@pytest.mark.parametrize("foreach", [True, False, None])
def test_foreach_selects_nothing(foreach: bool | None) -> None:
    parameters = small()
    assert float(optim.clip_grad_norm_(parameters, 1.0, foreach=foreach)) == 13.0
    optim.clip_grad_value_(parameters, 0.01, foreach=foreach)
    np.testing.assert_allclose(parameters[2].grad, -0.01)


def test_in_a_training_loop() -> None:
    model = optim.parameters({"w": numbers(0, (3,))})
    opt = optim.SGD(model, lr=1.0)
    before = np.array(model["w"].data)
    optim.backward(lambda params: 100.0 * jnp.sum(params["w"]), model)
    optim.clip_grad_norm_(model, 0.5)
    opt.step()
    np.testing.assert_allclose(np.linalg.norm(model["w"].data - before), 0.5, rtol=1e-5)
