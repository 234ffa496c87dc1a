"""Half precision, complex numbers, and several dtypes in one optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import all_parameters, numbers, run
from tests.support.twin import Twin, plain

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"lr": 0.1, "eps": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1, "eps": 0.1},
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
HALVES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # the relative error of rounding


@pytest.mark.parametrize(("name", "dtype"), [("SGD", "float16"), ("Adam", "bfloat16")])
def test_half_precision_is_kept(name: str, dtype: str) -> None:
    p = optim.Parameter(jnp.asarray(numbers(0)).astype(dtype))
    opt = getattr(optim, name)([p], **OPTIMIZERS[name])
    run(opt, 3)
    assert p.dtype == dtype
    for entry, x in opt.state[p].items():
        assert x.dtype == (jnp.float32 if entry == "step" else dtype)


@over_optimizers
@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_in_half_precision_is_torchs_up_to_rounding(name: str, dtype: str) -> None:
    """torch rounds after every operation, we once: a few roundings of the largest term apart."""
    twin = Twin(name, dtype=dtype, **OPTIMIZERS[name])
    for _ in range(3):
        for p, q in zip(twin.ours, twin.theirs, strict=True):  # both start at the same point
            p.data = jnp.asarray(plain(q)).astype(dtype)
        twin.opt.load_state_dict(plain(twin.reference.state_dict()))
        twin.step()
        wanted = plain(twin.reference.state_dict())["state"]
        got = plain(twin.opt.state_dict())["state"]
        for key, entries in wanted.items():
            assert list(got[key]) == list(entries)
            for entry, value in entries.items():
                near(got[key][entry], value, 4 * HALVES[dtype])
        for p, q in zip(twin.ours, twin.theirs, strict=True):
            near(plain(p.data), plain(q), 4 * HALVES[dtype])


def near(actual: Any, wanted: Any, tolerance: float) -> None:
    largest = max(np.abs(wanted).max(), 0.1)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * largest)


def test_a_half_precision_step_is_computed_in_float32() -> None:
    """In bfloat16 itself the squares, the bias correction and eps would be lost."""
    start, g = jnp.asarray([1.0, 1.0], jnp.bfloat16), jnp.asarray([1e-3, -3e-2], jnp.bfloat16)
    p = optim.Parameter(start)
    opt = optim.Adam([p], lr=0.5)
    p.grad = g
    opt.step()
    np.testing.assert_array_equal(p.data.astype(jnp.float32), [0.5, 1.5])


@pytest.mark.parametrize(
    ("name", "dtype"), [("SGD", "complex128"), ("Adam", "complex128"), ("AdamW", "complex64")]
)
def test_complex_parameters_are_torchs(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "complex128"):
        twin = Twin(name, dtype=dtype, **OPTIMIZERS[name])
        twin.step(3)
        twin.step(2, without=(0,))
        twin.step(5)
        twin.check(1e-12 if dtype == "complex128" else 5e-6)


def test_a_complex_state_dict_goes_round() -> None:
    p, q = (optim.Parameter(numbers(0, (3,), np.complex64)) for _ in range(2))
    opt, other = optim.Adam([p], lr=0.1), optim.Adam([q])
    run(opt, 2)
    q.data = jnp.copy(p.data)
    other.load_state_dict(opt.state_dict())
    for x in opt, other:
        run(x, 2)
    np.testing.assert_array_equal(p.data, q.data)
    assert opt.state[p]["exp_avg"].dtype == np.complex64


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_dtypes_in_one_optimizer_are_each_as_alone(name: str, x64: None) -> None:
    dtypes = ("float32", "bfloat16", "complex64", "float64")
    values = [jnp.asarray(numbers(i)).astype(dtype) for i, dtype in enumerate(dtypes)]
    together = getattr(optim, name)([optim.Parameter(x) for x in values], **OPTIMIZERS[name])
    alone = [getattr(optim, name)([optim.Parameter(x)], **OPTIMIZERS[name]) for x in values]
    for step in range(2):
        for i, p in enumerate(all_parameters(together)):
            (q,) = all_parameters(alone[i])
            p.grad = q.grad = jnp.asarray(numbers(10 * step + i)).astype(p.dtype)
        for opt in (together, *alone):
            opt.step()
    for p, opt, dtype in zip(all_parameters(together), alone, dtypes, strict=True):
        (q,) = all_parameters(opt)
        assert p.dtype == dtype
        rtol = HALVES.get(dtype, 1e-14 if dtype == "float64" else 1e-6)
        np.testing.assert_allclose(plain(p.data), plain(q.data), rtol=rtol)
        state = together.state[p].items(), opt.state[q].items()
        for (entry, x), (other, y) in zip(*state, strict=True):
            assert (entry, x.dtype) == (other, y.dtype)
            np.testing.assert_allclose(plain(x), plain(y), rtol=rtol)


def test_float64_parameters_move_by_what_float32_cannot_hold(x64: None) -> None:
    p = optim.Parameter(jnp.asarray([1.0], jnp.float64))
    p.grad = jnp.asarray([1e-12], jnp.float64)
    optim.SGD([p], lr=1.0).step()
    assert float(p.data[0]) == 1.0 - 1e-12


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_gradient_of_another_dtype_is_used(dtype: str) -> None:
    """As mixed precision gives them."""
    with jax.enable_x64(dtype == "float64"):
        p = optim.Parameter(jnp.ones(3, jnp.float32))
        opt = optim.SGD([p], lr=0.5, momentum=0.9)
        p.grad = jnp.ones(3, dtype)
        opt.step()
        assert p.dtype == np.float32
        assert opt.state[p]["momentum_buffer"].dtype == np.float32
        np.testing.assert_array_equal(p.data, [0.5, 0.5, 0.5])


def test_a_float32_gradient_moves_a_half_precision_parameter() -> None:
    p = optim.Parameter(jnp.ones(3, jnp.bfloat16))
    p.grad = jnp.ones(3, jnp.float32)
    optim.SGD([p], lr=0.5).step()
    assert p.dtype == jnp.bfloat16
    np.testing.assert_array_equal(p.data.astype(jnp.float32), [0.5, 0.5, 0.5])


def test_a_real_gradient_moves_a_complex_parameter() -> None:
    p = optim.Parameter(np.full(2, 1 + 1j, np.complex64))
    p.grad = jnp.ones(2)
    optim.SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(p.data, [0.5 + 1j, 0.5 + 1j])
