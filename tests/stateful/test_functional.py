"""`to_functional` and `from_functional`: the same training inside one `lax.scan`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim import apply_updates
from tests.support.stateful import all_parameters, cells, exactly, numbers, snapshot

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "dampening": 0.2},
    "Adam": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
    "NAdam": {"lr": 0.01},
    "ASGD": {"lr": 0.05, "lambd": 0.01, "t0": 20},
    "Adafactor": {"lr": 0.01, "weight_decay": 0.1},
}
SHAPES = (3,), (4, 5), (2, 2)
STEPS = 100


def build(name: str, dtype: Any = np.float32, **kwargs: Any) -> optim.Optimizer:
    """Two groups; the first parameter is a step behind the others."""
    p, q, r = cells(*SHAPES, dtype=dtype)
    groups = [{"params": {"p": p, "q": q}}, {"params": [r], "lr": 0.02, "weight_decay": 0.05}]
    opt = getattr(optim, name)(groups, **{**OPTIMIZERS[name], **kwargs})
    for i in range(3):
        give(opt, [None if i == 0 and j == 0 else g[i] for j, g in enumerate(gradients(dtype))])
        opt.step()
    opt.zero_grad()
    return opt


def gradients(dtype: Any = np.float32, seed: int = 500) -> list[np.ndarray]:
    return [numbers(seed + i, (STEPS, *shape), dtype) for i, shape in enumerate(SHAPES)]


def give(opt: optim.Optimizer, grads: Any) -> None:
    for p, g in zip(all_parameters(opt), grads, strict=True):
        p.grad = g


def scanned(pair: Any, params: Any, state: Any, grads: Any) -> Any:
    def body(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = pair.update(grads, state, params)
        return (apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(body, (params, state), grads)
    return params, state


def check_scan(name: str, dtype: Any, rtol: float) -> None:
    opt, stepped = build(name, dtype), build(name, dtype)
    p, q, r = gradients(dtype)
    for rows in zip(p, q, r, strict=True):
        give(stepped, rows)
        stepped.step()
    pair, params, state = opt.to_functional()
    grads = [{"p": jnp.asarray(p), "q": jnp.asarray(q)}, [jnp.asarray(r)]]
    opt.from_functional(*jax.jit(scanned, static_argnums=0)(pair, params, state, grads))
    check_equal(opt, stepped, rtol)
    give(opt, (p[7], q[7], r[7]))  # and it goes on
    give(stepped, (p[7], q[7], r[7]))
    opt.step()
    stepped.step()
    check_equal(opt, stepped, rtol)


def check_equal(opt: optim.Optimizer, wanted: optim.Optimizer, rtol: float) -> None:
    for p, q in zip(all_parameters(opt), all_parameters(wanted), strict=True):
        check_close(p.data, q.data, rtol)
        ours, theirs = opt.state[p], wanted.state[q]
        assert list(ours) == list(theirs)
        for key in ours:
            if key in ("mu_product", "mu", "eta"):  # kept in float32
                np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)
            else:
                check_close(ours[key], theirs[key], rtol)


def check_close(actual: Any, wanted: Any, rtol: float) -> None:
    assert actual.dtype == wanted.dtype
    atol = rtol * float(np.max(np.abs(wanted)))
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


@over_optimizers
def test_a_scan_is_many_steps_in_float32(name: str) -> None:
    check_scan(name, np.float32, 1e-5)


@over_optimizers
def test_a_scan_is_many_steps_in_float64(name: str, x64: None) -> None:
    check_scan(name, np.float64, 1e-12)


def test_the_steps_of_parameters_stay_apart() -> None:
    opt = build("Adam")
    pair, params, state = opt.to_functional()
    p, q, r = gradients()
    grads = [{"p": jnp.asarray(p), "q": jnp.asarray(q)}, [jnp.asarray(r)]]
    opt.from_functional(*jax.jit(scanned, static_argnums=0)(pair, params, state, grads))
    steps = [float(opt.state[p]["step"]) for p in all_parameters(opt)]
    assert steps == [STEPS + 2, STEPS + 3, STEPS + 3]


def test_params_has_the_optimizers_tree() -> None:
    opt = build("SGD")
    _, params, _ = opt.to_functional()
    assert exactly(params) == exactly(opt.params)


@pytest.mark.parametrize("name", ["SGD", "NAdam", "ASGD"])
def test_an_optimizer_before_its_first_step(name: str) -> None:
    twins = [getattr(optim, name)(cells((3,)), **OPTIMIZERS[name]) for _ in range(2)]
    grads = [jnp.asarray(numbers(0, (3,)))]
    pair, params, state = twins[0].to_functional()
    updates, state = jax.jit(pair.update)(grads, state, params)
    twins[0].from_functional(apply_updates(params, updates), state)
    twins[1].step(grads)
    check_equal(*twins, 1e-6)


def test_giving_back_at_once_changes_nothing() -> None:
    opt = build("NAdam")
    before = snapshot(opt), exactly(opt.params)
    _, params, state = opt.to_functional()
    opt.from_functional(params, state)
    assert (snapshot(opt), exactly(opt.params)) == before


def test_init_gives_a_fresh_state() -> None:
    opt = build("Adam")
    pair, params, state = opt.to_functional()
    fresh = pair.init(params)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    opt.from_functional(params, fresh)
    assert {float(opt.state[p]["step"]) for p in all_parameters(opt)} == {0.0}


def test_hyperparameters_are_those_of_now() -> None:
    opt = build("SGD", momentum=0.0, dampening=0.0)
    opt.param_groups[0]["lr"] = 3.0
    pair, params, state = opt.to_functional()
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = pair.update(ones, state, params)
    np.testing.assert_allclose(updates[0]["p"], -3.0 * np.ones(3), rtol=1e-6)
    expected = -0.02 * (1 + 0.05 * params[1][0])
    np.testing.assert_allclose(updates[1][0], expected, rtol=1e-6)


def test_what_was_given_away_may_be_donated() -> None:
    """As a loop that is worth its name does; an array that the user holds stays."""
    opt = build("Adam")
    pair, params, state = opt.to_functional()
    grads = jax.tree.map(jnp.ones_like, params)

    def update(params: Any, state: Any) -> Any:
        updates, state = pair.update(grads, state, params)
        return apply_updates(params, updates), state

    opt.from_functional(*jax.jit(update)(params, state))
    steps = [float(opt.state[p]["step"]) for p in all_parameters(opt)]
    assert steps == [3.0, 4.0, 4.0]
    held = exactly(params)
    give(opt, [g[0] for g in gradients()])
    opt.step()
    assert exactly(params) == held


LENT = r"given away by to_functional; give it back with from_functional"


def test_steps_are_refused_meanwhile() -> None:
    opt = build("Adam")
    model = all_parameters(opt)
    train_step = opt.make_step(lambda params: params[0].sum(), model)
    _, params, state = opt.to_functional()
    give(opt, [g[0] for g in gradients()])
    before = snapshot(opt)
    for refused in opt.step, train_step, opt.to_functional:
        with pytest.raises(RuntimeError, match=LENT):
            refused()
    assert snapshot(opt) == before
    opt.from_functional(params, state)
    opt.step()
    train_step()


def test_nothing_was_given_away() -> None:
    opt = build("Adam")
    _, params, state = opt.to_functional()
    opt.from_functional(params, state)
    with pytest.raises(RuntimeError, match="nothing to take back"):
        opt.from_functional(params, state)


def wrong(what: str, params: Any, state: Any) -> tuple[Any, Any]:
    first, *rest = state
    if what == "structure of params":
        return [params[0]], state
    if what == "shape of a value":
        return [params[0], [jnp.zeros(4)]], state
    if what == "dtype of a value":
        return [params[0], [params[1][0].astype(jnp.bfloat16)]], state
    if what == "number of states":
        return params, state[:-1]
    if what == "state is None":
        return params, None
    if what == "states in another order":
        return params, (rest[0], first, *rest[1:])
    *others, last = state
    if what == "shape of a buffer":
        bad = jax.tree.map(lambda x: jnp.zeros(7), last.exp_avg)
        return params, (*others, last._replace(exp_avg=bad))
    if what == "dtype of a buffer":
        bad = jax.tree.map(lambda x: x.astype(jnp.complex64), last.exp_avg)
        return params, (*others, last._replace(exp_avg=bad))
    if what == "no buffer":
        return params, (*others, last._replace(exp_avg=None))
    if what == "a step that is no count":
        return params, (*others, last._replace(step=jnp.float32(np.nan)))
    assert what == "a state of something else"
    return params, (*others, {"exp_avg": 1})


@pytest.mark.parametrize(
    "what",
    [
        "structure of params",
        "shape of a value",
        "dtype of a value",
        "number of states",
        "state is None",
        "states in another order",
        "shape of a buffer",
        "dtype of a buffer",
        "no buffer",
        "a step that is no count",
        "a state of something else",
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(what: str) -> None:
    opt = build("Adam")
    _, params, state = opt.to_functional()
    before = snapshot(opt), exactly(opt.params)
    with pytest.raises((TypeError, ValueError)):
        opt.from_functional(*wrong(what, params, state))
    assert (snapshot(opt), exactly(opt.params)) == before
    opt.from_functional(params, state)  # it is still lent, and what fits is taken
    give(opt, [g[0] for g in gradients()])
    opt.step()


def test_a_traced_state_is_refused() -> None:
    """It would leave tracers in the optimizer."""
    opt = build("Adam")
    _, params, state = opt.to_functional()

    def inside(params: Any, state: Any) -> Any:
        opt.from_functional(params, state)
        return params

    with pytest.raises(TypeError):
        jax.jit(inside)(params, state)
    opt.from_functional(params, state)
    assert all(isinstance(np.asarray(p.data), np.ndarray) for p in all_parameters(opt))
