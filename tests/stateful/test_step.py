"""`step`, `zero_grad`, `state`, `repr`; and misuse, which changes nothing."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim.stateful as optim
from tests.support.stateful import cells, exactly, give_gradients, numbers, run, snapshot


def test_step_returns_none_without_a_closure() -> None:
    opt = optim.SGD(cells((3,)))
    assert opt.step() is None


def test_step_without_any_gradient_does_nothing() -> None:
    opt = optim.Adam(cells((3,), (2, 2)), weight_decay=0.1)
    before = snapshot(opt)
    opt.step()
    assert snapshot(opt) == before
    assert opt.compile_count == 0


def test_a_closure_is_called_once_and_its_result_returned() -> None:
    (p,) = cells((3,))
    opt = optim.SGD([p], lr=0.5)
    result = object()
    calls = []

    def closure() -> object:
        calls.append(np.array(p.data))
        opt.zero_grad()
        p.grad = np.ones(3, np.float32)
        return result

    assert opt.step(closure) is result
    (value_inside,) = calls
    np.testing.assert_array_equal(value_inside, numbers(0))
    np.testing.assert_allclose(p.data, numbers(0) - 0.5, rtol=1e-6)


def test_a_closure_can_change_hyperparameters_and_gradients() -> None:
    p, q = cells((3,), (3,))
    opt = optim.SGD([p, q], lr=0.5)
    p.grad = q.grad = np.ones(3, np.float32)

    def closure() -> None:
        opt.param_groups[0]["lr"] = 1.0
        q.grad = None

    opt.step(closure=closure)
    np.testing.assert_allclose(p.data, numbers(0) - 1.0, rtol=1e-6)
    np.testing.assert_array_equal(q.data, numbers(1))


def test_a_failing_closure_changes_nothing() -> None:
    opt = optim.Adam(cells((3,)))
    run(opt, 1)
    before = snapshot(opt)

    def closure() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert snapshot(opt) == before


def test_zero_grad_takes_gradients_away() -> None:
    p, q = cells((3,), (2,))
    opt = optim.SGD([{"params": p}, {"params": q}])
    p.grad = np.ones(3, np.float32)
    opt.zero_grad()
    assert p.grad is None
    assert q.grad is None


def test_zero_grad_can_set_zeros() -> None:
    p, q, r = cells((3,), (2,), (4,))
    opt = optim.SGD([{"params": [p, r]}, {"params": q}], lr=0.5, weight_decay=1.0)
    held = p.grad = jnp.asarray(numbers(1))
    q.grad = jnp.ones(2, jnp.bfloat16)
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(p.grad, np.zeros(3))
    np.testing.assert_array_equal(held, numbers(1))
    assert q.grad.dtype == jnp.bfloat16
    assert r.grad is None
    opt.step()  # a zero gradient is a gradient: there is decay
    np.testing.assert_allclose(p.data, 0.5 * numbers(0), rtol=1e-6)
    np.testing.assert_array_equal(r.data, numbers(2, (4,)))


def test_state_is_torchs_dict_of_each_parameter() -> None:
    p, q = cells((3,), (2, 2))
    opt = optim.Adam([p, q], lr=0.1)
    assert len(opt.state) == 0
    assert list(opt.state) == []
    give_gradients([p])
    opt.step()
    assert list(opt.state) == [p]
    assert len(opt.state) == 1
    assert list(opt.state[p]) == ["step", "exp_avg", "exp_avg_sq"]
    assert opt.state[p]["step"].dtype == jnp.float32
    assert opt.state[p]["step"].shape == ()
    assert float(opt.state[p]["step"]) == 1.0
    assert opt.state[p]["exp_avg"].shape == (3,)


def test_reading_the_state_of_an_unseen_parameter_creates_nothing() -> None:
    p, q = cells((3,), (2,))
    opt = optim.Adam([p, q])
    give_gradients([p])
    opt.step()
    assert dict(opt.state[q]) == {}
    assert list(opt.state) == [p]
    assert list(opt.state_dict()["state"]) == [0]


def test_membership_in_the_state_is_torchs() -> None:
    """`p in opt.state` asks whether p has been stepped."""
    p, q = cells((3,), (2,))
    opt = optim.Adam([p, q])
    give_gradients([p])
    opt.step()
    assert p in opt.state
    assert q not in opt.state


def test_asking_for_the_state_of_an_unseen_parameter_gives_none() -> None:
    """As `get` of torch's dict does."""
    p, q = cells((3,), (2,))
    opt = optim.Adam([p, q])
    give_gradients([p])
    opt.step()
    assert opt.state.get(q) is None
    assert opt.state.get(q, 5) == 5
    assert float(opt.state.get(p)["step"]) == 1


def test_reading_the_state_inside_a_traced_function_leaks_no_tracer() -> None:
    """Equal counts share one array in the whole process: it must not be made by a trace."""
    (p,) = cells((3,))
    opt = optim.Adam([p])
    run(opt, 1)
    saved = opt.state_dict()
    saved["state"][0]["step"] = 123457  # a count that no other test has
    opt.load_state_dict(saved)
    jax.eval_shape(lambda: opt.state[p]["step"] + 1)
    assert float(opt.state[p]["step"]) == 123457.0


REPRS = (
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("Adam", {"betas": (0.5, 0.6), "eps": 1e-12}),
    ("AdamW", {"foreach": False}),
)


@pytest.mark.parametrize(("name", "kwargs"), REPRS)
def test_repr_is_torchs(name: str, kwargs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's text")
    texts = []
    for library, p in ((optim, cells((2,))[0]), (torch.optim, torch.ones(2))):
        one = getattr(library, name)([p], **kwargs)
        two = getattr(library, name)([{"params": [("w", p)], "lr": 1, "x": "y"}], **kwargs)
        texts.append((repr(one), repr(two)))
    assert texts[0] == texts[1]


def test_repr_of_two_groups() -> None:
    p, q = cells((2,), (3,))
    opt = optim.SGD([{"params": p}, {"params": q, "lr": 1e-5, "zeta": "z"}], momentum=0.9)
    common = (
        "    dampening: 0\n    differentiable: False\n    foreach: None\n    fused: None\n"
        "    lr: {}\n    maximize: False\n    momentum: 0.9\n    nesterov: False\n"
        "    weight_decay: 0\n"
    )
    assert repr(opt) == (
        "SGD (\nParameter Group 0\n"
        + common.format(0.001)
        + "\nParameter Group 1\n"
        + common.format("1e-05")
        + "    zeta: z\n)"
    )


def stepped(name: str) -> tuple[optim.Optimizer, list[optim.Parameter]]:
    p, q = cells((3,), (2, 2))
    opt = getattr(optim, name)([{"params": p}, {"params": q}], lr=0.1)
    run(opt, 2)
    return opt, [p, q]


BAD_NUMBERS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a string": ({"lr": "0.1"}, TypeError, "param_groups[1]['lr']"),
    "NaN": ({"lr": float("nan")}, ValueError, "param_groups[1]['lr'] is nan"),
    "numpy's NaN": ({"lr": np.float32("nan")}, ValueError, "param_groups[1]['lr']"),
    "None": ({"lr": None}, TypeError, "param_groups[1]['lr']"),
    "a complex number": ({"lr": 1j}, TypeError, "param_groups[1]['lr']"),
    "a dict": ({"lr": {}}, TypeError, "param_groups[1]['lr']"),
    "NaN for weight decay": (
        {"weight_decay": float("nan")},
        ValueError,
        "param_groups[1]['weight_decay'] is nan",
    ),
}
BAD_BETAS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a string in betas": ({"betas": (0.9, "x")}, TypeError, "param_groups[1]['betas']"),
    "NaN in betas": ({"betas": (float("nan"), 0.9)}, ValueError, "param_groups[1]['betas']"),
    "three betas": ({"betas": (0.9, 0.9, 0.9)}, ValueError, "expected 2"),
    "one beta": ({"betas": 0.9}, TypeError, "float"),
}
OVER_BAD = [("SGD", key) for key in BAD_NUMBERS] + [
    ("Adam", key) for key in BAD_NUMBERS | BAD_BETAS
]


@pytest.mark.parametrize(("name", "what"), OVER_BAD)
def test_a_bad_hyperparameter_is_refused_and_changes_nothing(name: str, what: str) -> None:
    change, error, words = (BAD_NUMBERS | BAD_BETAS)[what]
    opt, parameters = stepped(name)
    good = dict(opt.param_groups[1])
    give_gradients(parameters, 5)
    opt.param_groups[1].update(change)
    before = snapshot(opt)
    with pytest.raises(error, match=re.escape(words)):
        opt.step()
    assert snapshot(opt) == before
    opt.param_groups[1].update(good)
    opt.step()
    assert snapshot(opt) != before


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.ones((2, 3), np.float32), ValueError, "a gradient of shape (2, 3)"),
        (np.ones((2, 2), np.complex64), TypeError, "a gradient of dtype complex64"),
        (np.ones((2, 2), np.int32), TypeError, "a gradient of dtype int32"),
        (np.ones((2, 2), bool), TypeError, "a gradient of dtype bool"),
    ],
)
def test_a_wrong_gradient_is_refused_and_changes_nothing(
    value: Any, error: Any, words: str
) -> None:
    opt, parameters = stepped("Adam")
    give_gradients(parameters, 5)
    before = snapshot(opt)
    with pytest.raises(error, match=re.escape(words)):
        parameters[1].grad = value
    with pytest.raises(error, match=re.escape(words)):
        opt.step([[np.ones(3, np.float32)], [value]])
    assert snapshot(opt) == before


def test_an_integer_parameter_takes_no_gradient() -> None:
    (p,) = cells((3,))
    n = optim.Parameter(np.arange(3), name="counts")
    opt = optim.SGD([p, n], lr=0.1)
    give_gradients([p])
    opt.step()  # without a gradient it is skipped
    before = snapshot(opt)
    with pytest.raises(TypeError, match=r"'counts'.* dtype int32"):
        n.grad = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"'counts'.* dtype int32"):
        opt.step([np.ones(3, np.float32), np.ones(3, np.float32)])
    assert snapshot(opt) == before
    np.testing.assert_array_equal(n.data, np.arange(3))


def test_a_parameter_that_is_twice_in_a_group_is_stepped_once() -> None:
    """torch steps it twice, and says that it will be an error."""
    (p,) = cells((3,))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = optim.SGD([p, p], lr=0.5)
    p.grad = np.ones(3, np.float32)
    opt.step()
    np.testing.assert_allclose(p.data, numbers(0) - 0.5, rtol=1e-6)


def sparse_gradient() -> sparse.BCOO:
    return sparse.BCOO.fromdense(jnp.asarray([0.0, 2.0, 0.0]))


def test_sgd_takes_a_sparse_gradient() -> None:
    (p,) = cells((3,))
    opt = optim.SGD([p], lr=0.5)
    p.grad = sparse_gradient()
    opt.step()
    np.testing.assert_allclose(p.data, numbers(0) - [0.0, 1.0, 0.0], rtol=1e-6)
    opt.zero_grad(set_to_none=False)
    before = exactly(p.data)
    opt.step()
    assert exactly(p.data) == before


def test_adam_refuses_a_sparse_gradient_in_torchs_words() -> None:
    opt, (p, q) = stepped("Adam")
    give_gradients([q])
    p.grad = sparse_gradient()
    before = exactly([p.data, q.data, opt.state_dict()])
    words = "Adam does not support sparse gradients, please consider SparseAdam instead"
    with pytest.raises(RuntimeError, match=words):
        opt.step()
    assert exactly([p.data, q.data, opt.state_dict()]) == before


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "Adagrad"])
def test_an_infinite_value_stays_one_where_there_is_no_weight_decay(name: str) -> None:
    """0 times infinity would be no number."""
    p = optim.Parameter(jnp.array([jnp.inf, 1.0]))
    opt = getattr(optim, name)([p], lr=0.1)
    for _ in range(2):
        p.grad = jnp.array([0.5, 0.5])
        opt.step()
    assert float(p.data[0]) == np.inf
    assert float(p.data[1]) < 1
