"""lbfgs as a pair of JAX: transformations, trees, dtypes, errors, values that are not finite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.algorithms.lbfgs import LBFGSState, lbfgs
from tests.support.problems import assert_trees_close, types

WOLFE = "strong_wolfe"
START = {"a": jnp.asarray([-1.2, 1.0], jnp.float32), "b": jnp.asarray(0.5, jnp.float32)}
NUMBERS = {
    "lr": 1.0,
    "max_iter": 5,
    "max_eval": 6,
    "tolerance_grad": 1e-7,
    "tolerance_change": 1e-9,
}

Tree = Any


def value(p: Tree) -> jax.Array:
    x, y = p["a"]
    return 10 * (y - x**2) ** 2 + (1 - x) ** 2 + (p["b"] - x) ** 2


function = jax.value_and_grad(value)


def one_update(
    tx: fo.GradientTransformation, params: Tree, state: Tree, function: Any = function
) -> tuple[Tree, Tree]:
    updates, state = tx.update(None, state, params, value_and_grad_fn=function)
    return fo.apply_updates(params, updates), state


class Traced:
    """Counts the calls of a function."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.times = function, 0

    def __call__(self, *args: Any) -> Any:
        self.times += 1
        return self.function(*args)


def with_numbers(numbers: Tree, params: Tree, state: Tree) -> tuple[Tree, Tree]:
    return one_update(lbfgs(**numbers, history_size=4, line_search_fn=WOLFE), params, state)


traced = Traced(with_numbers)
stepped = jax.jit(traced)


def arrays(**numbers: Any) -> Tree:
    return jax.tree.map(jnp.asarray, {**NUMBERS, **numbers})


def fresh(params: Tree = START) -> LBFGSState:
    return lbfgs(history_size=4).init(params)


def run(updates: int, params: Tree = START, **numbers: Any) -> tuple[Tree, Tree]:
    state = fresh(params)
    for _ in range(updates):
        params, state = stepped(arrays(**numbers), params, state)
    return params, state


def test_numbers_that_change_do_not_compile_again() -> None:
    """Each of them has its effect."""
    before = run(2)
    times = traced.times
    changed = [
        {"lr": 0.1},
        {"max_iter": 2},
        {"max_eval": 2},
        {"tolerance_grad": 100.0},
        {"tolerance_change": 10.0},
    ]
    for number in changed:
        params, _ = run(2, **number)
        assert not np.allclose(params["a"], before[0]["a"], rtol=1e-3), number
    assert traced.times == times
    assert int(before[1].n_iter) > 5  # so that pairs are in use


def test_numbers_of_python_and_the_default_of_max_eval() -> None:
    tx = lbfgs(max_iter=5, history_size=4, line_search_fn=WOLFE)
    step = jax.jit(functools.partial(one_update, tx))
    params, state = START, tx.init(START)
    for _ in range(2):
        params, state = step(params, state)
    assert_trees_close((params, state), run(2), 1e-4)


def test_a_schedule_of_lr() -> None:
    tx = lbfgs(
        lambda count: jnp.where(count < 1, 0.5, 0.01),
        max_iter=5,
        history_size=4,
        line_search_fn=WOLFE,
    )
    step = jax.jit(functools.partial(one_update, tx))
    params, state = START, tx.init(START)
    wanted, wanted_state = START, fresh()
    for lr in (0.5, 0.01):
        params, state = step(params, state)
        wanted, wanted_state = stepped(arrays(lr=lr), wanted, wanted_state)
        assert_trees_close(params, wanted, 1e-4)
    assert int(state.step) == 2


def test_vmap_over_starts_and_over_lr_equals_a_loop(x64: None) -> None:
    """The runs take different numbers of iterations; two updates, so that pairs are in use.

    In float64: a comparison of the line search that falls otherwise by a rounding of float32 leads
    the two ways to compile it to different points.
    """
    start = jax.tree.map(lambda x: x.astype(jnp.float64), START)
    starts = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, jnp.ones_like(x), x]), start)
    lr = jnp.asarray([1.0, 0.3, 1.0, 0.01], jnp.float64)
    axes = {name: 0 if name == "lr" else None for name in NUMBERS}
    numbers = {**arrays(), "lr": lr}
    many = jax.jit(jax.vmap(with_numbers, in_axes=(axes, 0, 0)))
    params, state = starts, jax.vmap(fresh)(starts)
    for _ in range(2):
        params, state = many(numbers, params, state)
    for i in range(4):
        at = functools.partial(jax.tree.map, lambda x, i=i: jnp.asarray(np.asarray(x)[i]))
        wanted, wanted_state = run(2, at(starts), lr=float(lr[i]))
        assert_trees_close(at(params), wanted, 1e-9)
        assert int(state.n_iter[i]) == int(wanted_state.n_iter)
        assert int(state.func_evals[i]) == int(wanted_state.func_evals)
    assert len({*map(int, state.func_evals)}) > 1


def test_scan_carries_the_state_unchanged_in_type() -> None:
    numbers = arrays()

    def body(carry: Any, _: None) -> Any:
        return with_numbers(numbers, *carry), None

    last, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, None, 2))((START, fresh()))
    assert types(last) == types((START, fresh()))
    assert_trees_close(last, run(2), 1e-4)


def test_x64_does_not_widen_the_state(x64: None) -> None:
    for params in (START, jax.tree.map(lambda p: p.astype(jnp.float64), START)):
        state = fresh(params)
        assert types(jax.eval_shape(with_numbers, NUMBERS, params, state)) == types((params, state))
        assert state.old_dirs.dtype == params["a"].dtype


def test_a_fresh_state_can_be_donated() -> None:
    wanted = run(1)
    params, state = jax.tree.map(jnp.copy, START), fresh()
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state)) if x.size]
    assert len({*pointers}) == len(pointers)
    donating = jax.jit(with_numbers, donate_argnums=(1, 2))
    after = donating(arrays(), params, state)
    assert state.old_dirs.is_deleted()
    assert_trees_close(after, wanted, 1e-6)


def test_eval_shape_and_init_of_shapes() -> None:
    shapes = jax.eval_shape(lambda: START)
    state = jax.eval_shape(fresh, shapes)
    assert types(state) == types(fresh())
    assert types(jax.eval_shape(with_numbers, NUMBERS, shapes, state)) == types((START, fresh()))


def test_exported_for_every_platform() -> None:
    """In float64, where what another compilation rounds otherwise does not steer the search."""
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), START)
        step = jax.jit(with_numbers)
        platforms = ["cpu", "cuda", "tpu"]
        exported = jax.export.export(step, platforms=platforms)(arrays(), start, fresh(start))
        assert exported.platforms == tuple(platforms)
        params, _ = exported.call(arrays(), start, fresh(start))
        assert_trees_close(params, run(1, start)[0], 1e-10)


@pytest.mark.parametrize("search", [None, WOLFE])
def test_value_and_grads_given_are_those_that_would_be_computed(search: str | None) -> None:
    """Without value, grads are not looked at; with it they are the first evaluation."""
    tx = lbfgs(0.1, 4, line_search_fn=search, history_size=4)

    @jax.jit
    def given(params: Tree, state: Tree) -> Tree:
        value, grads = function(params)
        return tx.update(grads, state, params, value=value, value_and_grad_fn=function)

    @jax.jit
    def left_out(params: Tree, state: Tree) -> Tree:
        nonsense = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
        return tx.update(nonsense, state, params, value_and_grad_fn=function)

    state = tx.init(START)
    for _ in range(2):
        updates, after = given(START, state)
        assert_trees_close((updates, after), left_out(START, state), 1e-5)
        state = after


@pytest.mark.parametrize("search", [None, WOLFE])
def test_one_place_evaluates_the_function(search: str | None) -> None:
    """It is in the program once, and counts are those of the calls that it gets."""
    calls: list[float] = []

    def hyperbolic(params: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda x: calls.append(float(x[0])), params)
        return jnp.sum(jnp.cosh(params)), jnp.sinh(params)

    once = Traced(hyperbolic)
    tx = lbfgs(max_iter=3, line_search_fn=search)
    x = jnp.asarray([3.0, -2.0])
    state = tx.init(x)
    update = functools.partial(tx.update, None, value_and_grad_fn=once)
    jaxpr = jax.make_jaxpr(update)(state, x)
    assert once.times == 1
    assert str(jaxpr).count(" sinh ") == 1
    _, state = jax.jit(update)(state, x)
    jax.effects_barrier()
    assert len(calls) == int(state.func_evals) > 2
    assert calls[0] == 3.0


def test_equal_arguments_give_the_same_pair() -> None:
    assert lbfgs(0.5, line_search_fn=WOLFE) is lbfgs(lr=0.5, line_search_fn=WOLFE)
    assert lbfgs(0.5) is not lbfgs(0.25)
    assert lbfgs(stop_on_nan=False) is not lbfgs()


def test_inside_chain_of_this_library_and_of_optax() -> None:
    tx = lbfgs(0.1, max_iter=2)
    updates, _ = tx.update(None, tx.init(START), START, value_and_grad_fn=function)
    half = jax.tree.map(lambda u: 0.5 * u, updates)
    # optax hands extra arguments only to what is of this type.
    member = optax.GradientTransformationExtraArgs(*tx)
    for chain in (fo.chain(tx, optax.scale(0.5)), optax.chain(member, optax.scale(0.5))):
        found, _ = chain.update(START, chain.init(START), START, value_and_grad_fn=function)
        assert_trees_close(found, half, 1e-6)


def test_none_integers_and_complex_numbers() -> None:
    """Leaves that are not floating point have no update; a gradient that is None is zero."""
    params = {
        "complex": jnp.asarray([1 + 2j], jnp.complex64),
        "count": jnp.asarray([3, 4]),
        "free": jnp.asarray([7.0, 8.0]),
        "none": None,
        "real": jnp.asarray(2.0),
    }

    def function(p: Tree) -> tuple[jax.Array, Tree]:
        assert p["none"] is None
        assert p["count"].dtype == params["count"].dtype
        z = p["complex"]
        value = jnp.sum(jnp.real(z - 1j * p["real"].astype(z.dtype)) ** 2) + jnp.sum(
            (jnp.imag(z) - p["real"]) ** 2 + (p["real"] + 1) ** 2
        )
        grads = {
            "complex": 2 * jax.lax.complex(jnp.real(z), jnp.imag(z) - p["real"]),
            "count": np.zeros(2, jax.dtypes.float0),
            "free": None,
            "none": None,
            "real": -2 * jnp.sum(jnp.imag(z) - p["real"]) + 2 * (p["real"] + 1),
        }
        return value, grads

    tx = lbfgs(line_search_fn=WOLFE)
    state = tx.init(params)
    assert state.d.shape == (2 + 2 + 1,)
    updates, state = tx.update(None, state, params, value_and_grad_fn=function)
    assert updates["none"] is None
    assert updates["count"] is None
    assert not np.any(updates["free"])
    assert updates["complex"].dtype == np.complex64
    after = fo.apply_updates(params, updates)
    np.testing.assert_allclose(after["complex"], [-1j], atol=1e-4)
    np.testing.assert_allclose(after["real"], -1, atol=1e-4)


@pytest.mark.parametrize("params", [{}, {"n": None, "i": jnp.arange(2)}, jnp.zeros((0, 3))])
def test_nothing_to_train(params: Tree) -> None:
    def function(params: Tree) -> tuple[float, Tree]:
        grads = jax.tree.map(lambda p: p if p.dtype == jnp.float32 else None, params)
        return 1.0, grads

    tx = lbfgs(line_search_fn=WOLFE)
    state = tx.init(params)
    updates, state = tx.update(None, state, params, value_and_grad_fn=function)
    assert not jax.tree.leaves(updates) or jax.tree.leaves(updates)[0].shape == (0, 3)
    assert (int(state.n_iter), int(state.func_evals)) == (0, 1)


def test_half_precision_has_vectors_in_float32() -> None:
    params = {"h": jnp.asarray([2.0, -3.0], jnp.bfloat16), "k": jnp.asarray(1.0, jnp.float16)}

    def value(p: Tree) -> jax.Array:
        h, k = p["h"].astype(jnp.float32), p["k"].astype(jnp.float32)
        return jnp.sum((h - 0.5) ** 2) + (k + 2) ** 2 + 0.1 * jnp.sum(h) * k

    tx = lbfgs(max_iter=10, line_search_fn=WOLFE)
    state = tx.init(params)
    assert {x.dtype for x in (state.d, state.old_dirs, state.prev_loss)} == {np.dtype(np.float32)}
    after, new = one_update(tx, params, state, jax.value_and_grad(value))
    assert types((after, new)) == types((params, state))
    # Where the gradient is zero: 2 (h - 0.5) + 0.1 k = 0 and 2 (k + 2) + 0.1 sum(h) = 0.
    h, _, k = np.linalg.solve([[2, 0, 0.1], [0, 2, 0.1], [0.1, 0.1, 2]], [1, 1, -4])
    np.testing.assert_allclose(after["h"].astype(jnp.float32), [h, h], rtol=2e-2)
    np.testing.assert_allclose(after["k"].astype(jnp.float32), k, rtol=2e-2)


# Values that are not finite.


def cliff(params: jax.Array, value: Any, slope: Any) -> tuple[jax.Array, jax.Array]:
    """It falls with the slope -1 up to x = 1; what is beyond is given."""
    inside = params[0] < 1
    return jnp.where(inside, -params[0], value), jnp.where(inside, -jnp.ones(1), slope)


@functools.partial(jax.jit, static_argnames=("search", "stop"))
def at_cliff(
    x: Any, state: Any, lr: Any, value: Any, slope: Any, search: str | None, stop: bool = True
) -> Any:
    tx = lbfgs(lr, 3, 12, history_size=2, line_search_fn=search, stop_on_nan=stop)
    return one_update(tx, x, state, functools.partial(cliff, value=value, slope=slope))


BEYOND = [(np.nan, np.nan), (np.nan, 1.0), (0.0, np.nan), (np.inf, np.inf), (-np.inf, -1.0)]


def assert_finite(tree: Tree) -> None:
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("value", "slope"), [b for b in BEYOND if b[0] != np.inf])
def test_search_ends_at_the_best_point_before_a_cliff(value: float, slope: float) -> None:
    """And the next update goes on from there. (All numbers are exact.)"""
    start = jnp.zeros(1)
    x, state = at_cliff(start, lbfgs(history_size=2).init(start), 1 / 64, value, slope, WOLFE)
    assert x == 10 / 64  # trials at 1 / 64 and 10 / 64; 100 / 64 is beyond
    assert (int(state.n_iter), int(state.func_evals)) == (1, 4)
    assert state.t == 10 / 64
    assert_finite(state)
    x, state = at_cliff(x, state, 1 / 64, value, slope, WOLFE)
    assert x == 20 / 64
    assert_finite(state)


@pytest.mark.parametrize("slope", [np.nan, np.inf, 1.0])
def test_search_comes_back_from_what_is_infinitely_high(slope: float) -> None:
    """It brackets the cliff at 1, and ends just before it."""
    start = jnp.zeros(1)
    x, state = at_cliff(start, lbfgs(history_size=2).init(start), 1 / 64, np.inf, slope, WOLFE)
    assert 0.9 < float(x[0]) < 1
    assert_finite(state)


@pytest.mark.parametrize(("value", "slope"), BEYOND)
def test_without_search_the_last_good_point_stays(value: float, slope: float) -> None:
    start = jnp.zeros(1)
    x, state = at_cliff(start, lbfgs(history_size=2).init(start), 0.6, value, slope, None)
    np.testing.assert_allclose(x, [0.6], rtol=1e-6)  # the step after it led to 1.2
    assert (int(state.n_iter), int(state.func_evals)) == (2, 3)
    assert_finite(state)
    x, state = at_cliff(x, state, 0.1, value, slope, None)
    np.testing.assert_allclose(x, [0.9], rtol=1e-6)
    assert_finite(state)


@pytest.mark.parametrize("search", [None, WOLFE])
def test_nothing_moves_where_the_first_value_is_not_finite(search: str | None) -> None:
    """Once it is finite again, the update is what it would have been."""
    zero = jnp.zeros(1)
    _, state = at_cliff(zero, lbfgs(history_size=2).init(zero), 0.02, np.nan, 1.0, search)
    for value, slope in BEYOND:
        x, after = at_cliff(jnp.full(1, 5.0), state, 0.02, value, slope, search)
        assert x == 5.0
        counted = state._replace(step=state.step + 1, func_evals=state.func_evals + 1)
        assert_trees_close(after, counted, 0.0)
    again = at_cliff(zero + 0.3, after, 0.02, np.nan, 1.0, search)[0]
    np.testing.assert_array_equal(again, at_cliff(zero + 0.3, state, 0.02, np.nan, 1.0, search)[0])


def test_it_can_run_on_as_torch_does() -> None:
    start = jnp.full(1, 5.0)
    state = lbfgs(history_size=2).init(start)
    x, state = at_cliff(start, state, 0.02, np.nan, np.nan, None, stop=False)
    assert np.isnan(x)
    assert int(state.n_iter) > 0


# Errors.


def test_what_the_factory_refuses() -> None:
    with pytest.raises(ValueError, match=r"^Invalid learning rate: -1.0$"):
        lbfgs(-1.0)
    with pytest.raises(ValueError, match=r"^Invalid learning rate: nan$"):
        lbfgs(float("nan"))
    with pytest.raises(ValueError, match=r"^Tensor lr must be 1-element$"):
        lbfgs(jnp.ones(2))
    for size in (0, -1, 2.5):
        with pytest.raises(
            ValueError, match=r"^history_size should be a positive integer, but got"
        ):
            lbfgs(history_size=size)
    for name in NUMBERS:
        with pytest.raises(TypeError, match=f"^{name} should be a number"):
            lbfgs(**{name: "1"})


def test_what_update_refuses() -> None:
    tx = lbfgs()
    state = tx.init(START)
    with pytest.raises(ValueError, match="argument `params` of update is missing"):
        tx.update(START, state, value_and_grad_fn=function)
    with pytest.raises(ValueError, match="argument `value_and_grad_fn` of update is missing"):
        tx.update(START, state, START)
    with pytest.raises(ValueError, match=r"state is that of 1 numbers, params have 3$"):
        tx.update(None, tx.init(jnp.zeros(1)), START, value_and_grad_fn=function)
    other = lbfgs(line_search_fn="armijo")
    with pytest.raises(RuntimeError, match=r"^only 'strong_wolfe' is supported$"):
        other.update(None, state, START, value_and_grad_fn=function)


def test_gradients_that_do_not_fit() -> None:
    def refused(change: Callable[[Tree], Tree], error: type[Exception], message: str) -> None:
        def wrong(params: Tree) -> Tree:
            value, grads = function(params)
            return value, change(grads)

        tx = lbfgs()
        with pytest.raises(error, match=message):
            tx.update(None, tx.init(START), START, value_and_grad_fn=wrong)
        value, grads = wrong(START)
        with pytest.raises(error, match=message):
            tx.update(grads, tx.init(START), START, value=value, value_and_grad_fn=function)

    refused(lambda g: {"a": g["a"]}, TypeError, "grads and params differ in structure")
    refused(lambda g: {**g, "b": g["a"]}, ValueError, r"differ in shape at \['b'\]")
    refused(
        lambda g: {**g, "b": g["b"].astype(jnp.complex64)},
        TypeError,
        "a gradient of dtype complex64 cannot update one of float32",
    )
