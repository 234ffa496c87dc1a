"""What every pair promises under JAX's transformations, run over the table of algorithms."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functorch_optim as fo
from functorch_optim.rules.leaf import step_leaf
from tests.support.problems import (
    STEPS,
    Tree,
    assert_trees_close,
    at,
    loop,
    one_step,
    problem,
    types,
)
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import over_table


def bare_problem(row: Algorithm) -> tuple[jax.Array, jax.Array]:
    """One parameter without a tree around it, in float64, and its gradients."""
    params, grads = problem("float64", shape=(2, 2), steps=row.steps)
    return params["kernel"], grads["kernel"]


def scan(
    tx: fo.GradientTransformation, params: Tree, grads: Tree, wrap: Any = lambda step: step
) -> tuple[Tree, Tree]:
    """Parameters and state after all steps, by `lax.scan`: what `loop` gives, compiled faster."""

    def body(carry: Tree, grads: Tree) -> tuple[Tree, None]:
        return wrap(functools.partial(one_step, tx))(*carry, grads), None

    return jax.lax.scan(body, (params, tx.init(params)), grads)[0]


class Traced:
    """A function that counts how often it is traced (that is, called by jit)."""

    def __init__(self, function: Any):
        self.function = function
        self.times = 0

    def __call__(self, *args: Any) -> Any:
        self.times += 1
        return self.function(*args)


@over_table
def test_state_has_torchs_fields_in_torchs_order(row: Algorithm) -> None:
    state = row.pair().init({"w": jnp.ones((2, 3))})
    assert state._fields == row.state
    assert (state.step.dtype, state.step.shape) == (jnp.int32, ())
    assert float(state.step) == 0


@over_table
def test_equal_arguments_give_the_same_pair(row: Algorithm) -> None:
    assert row.factory() is row.factory()
    assert row.pair() is row.pair()
    assert row.factory(0.125) is row.factory(lr=0.125)
    assert row.factory(lr=0.125) is not row.factory(lr=0.25)
    schedule = fo.cosine_annealing_lr(0.1, T_max=10)
    assert row.factory(schedule) is row.factory(fo.cosine_annealing_lr(0.1, 10))


@over_table
def test_unknown_extra_arguments_are_ignored(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.pair()
    state = tx.init(params)
    actual = tx.update(at(grads, 0), state, params, value=jnp.ones(()), key="other")
    assert_trees_close(actual, tx.update(at(grads, 0), state, params), 0.0)


@over_table
def test_arrays_are_not_mixed_up_by_the_cache_of_equal_pairs(row: Algorithm) -> None:
    params, grads = problem()
    small, large = (loop(row.factory(lr=jnp.asarray(lr)), params, grads)[0] for lr in (0.001, 0.1))
    assert not np.allclose(small["kernel"], large["kernel"])


@over_table
def test_jit_compiles_once_over_several_steps_and_equals_eager(row: Algorithm) -> None:
    params, grads = problem()
    wanted = loop(row.pair(), params, grads)
    traced = Traced(functools.partial(one_step, row.pair()))
    step = jax.jit(traced)
    state = row.pair().init(params)
    for i in range(STEPS):
        params, state = step(params, state, at(grads, i))
    assert traced.times == 1
    assert_trees_close((params, state), wanted, row.rtol_jit)


@over_table
def test_changed_hyperparameters_do_not_compile_again(row: Algorithm) -> None:
    """Every number is an argument of the compiled step, and has its effect."""
    params, grads = problem()

    def step(numbers: Tree, params: Tree, state: Tree, grads: Tree) -> Tree:
        return one_step(row.pair(**numbers), params, state, grads)

    traced = Traced(step)
    jitted = jax.jit(traced)
    state = row.pair().init(params)
    for factor in (1.0, 0.95):
        numbers = jax.tree.map(lambda x, factor=factor: x * factor, row.typical)
        arrays = jax.tree.map(jnp.float32, numbers)
        actual = jitted(arrays, params, state, at(grads, 0))
        wanted = one_step(row.pair(**numbers), params, state, at(grads, 0))
        assert_trees_close(actual, wanted, 2 * row.rtol_jit)
    assert traced.times == 1


@over_table
def test_equal_pairs_as_static_arguments_compile_once(row: Algorithm) -> None:
    params, grads = problem()
    traced = Traced(one_step)
    step = jax.jit(traced, static_argnums=0)
    for _ in range(3):
        tx = row.pair()
        step(tx, params, tx.init(params), at(grads, 0))
    assert traced.times == 1


@over_table
def test_the_leaf_is_traced_once_for_all_equal_leaves_and_all_numbers(row: Algorithm) -> None:
    params = {f"layer {i}": jnp.ones((2, 3)) for i in range(20)}

    def leaf_programs(tx: fo.GradientTransformation) -> list[Any]:
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr
        calls = [e for e in jaxpr.eqns if e.params.get("name") == step_leaf.__name__]
        return [e.params["jaxpr"] for e in calls]

    first = leaf_programs(row.pair())
    assert len(first) == 20
    assert all(program is first[0] for program in first)
    changed = leaf_programs(row.pair(**jax.tree.map(lambda x: x * 0.95, row.typical)))
    assert all(program is first[0] for program in changed)


@pytest.mark.slow
@over_table
def test_vmap_over_each_hyperparameter_equals_a_loop(row: Algorithm, x64: None) -> None:
    """Each lane changes one of the numbers."""
    params, grads = bare_problem(row)
    numbers, treedef = jax.tree.flatten(row.typical)
    lanes = [numbers]
    for i, number in enumerate(numbers):
        lanes += [[*numbers[:i], number * factor, *numbers[i + 1 :]] for factor in (0.95, 0.97)]

    def run(numbers: list[Any], loop: Any) -> Tree:
        return loop(row.pair(**treedef.unflatten(numbers)), params, grads)

    columns = [jnp.asarray(column) for column in zip(*lanes, strict=True)]
    batched = jax.jit(jax.vmap(functools.partial(run, loop=scan)))
    results = batched(columns)
    wanted = jax.tree.map(lambda *xs: np.stack(xs), *(run(lane, loop) for lane in lanes))
    assert_trees_close(results, wanted, row.rtol_vmap)

    for i, column in enumerate(columns):  # the others being plain numbers: it traces, too

        def alone(value: jax.Array, i: int = i) -> Tree:
            return run([*numbers[:i], value, *numbers[i + 1 :]], scan)

        assert types(jax.eval_shape(jax.vmap(alone), column)) == types(results)


@over_table
def test_vmap_over_gradients_equals_a_loop(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.pair()
    _, state = loop(tx, params, grads)

    def updates(grads: Tree) -> Tree:
        return tx.update(grads, state, params)

    actual = jax.jit(jax.vmap(updates))(grads)
    wanted = jax.tree.map(lambda *xs: np.stack(xs), *(updates(at(grads, i)) for i in range(STEPS)))
    assert_trees_close(actual, wanted, row.rtol_jit)


@pytest.mark.slow
@over_table
def test_derivatives_through_several_steps(row: Algorithm, x64: None) -> None:
    """They equal finite differences, and are finite where gradients are 0.

    With respect to parameters, gradients and every hyperparameter; with `jax.checkpoint` around
    each step, which must not change them.
    """
    directions, weights = np.random.RandomState(5), np.random.RandomState(6).uniform(0.5, 1.5, 100)

    def value(inputs: Tree, wrap: Any = jax.checkpoint) -> jax.Array:
        """All results in one number, each with a weight of its own."""
        params, grads, numbers = inputs
        results = jax.tree.leaves(scan(row.pair(**numbers), params, grads, wrap))
        flat = jnp.concatenate([jnp.ravel(x).astype(jnp.float64) for x in results])
        return flat @ weights[: flat.size]

    compiled = jax.jit(jax.value_and_grad(value))
    params, grads = map(np.asarray, bare_problem(row))
    inputs = params, grads, jax.tree.map(np.float64, row.typical)
    jax.eval_shape(jax.grad(functools.partial(value, wrap=lambda step: step)), inputs)
    jax.eval_shape(lambda: jax.jvp(value, (inputs,), (inputs,)))

    if row.difference is not None:
        size, tolerance = row.difference
        flat, treedef = jax.tree.flatten(inputs)
        slopes = jax.tree.leaves(compiled(inputs)[1])
        for i, (path, x) in enumerate(jax.tree_util.tree_leaves_with_path(inputs)):
            direction = directions.uniform(0.5, 1.5, np.shape(x))
            ahead, behind = (
                compiled(treedef.unflatten([*flat[:i], x + sign * direction, *flat[i + 1 :]]))[0]
                for sign in (size, -size)
            )
            wanted = float(ahead - behind) / (2 * size)
            assert np.sum(slopes[i] * direction) == pytest.approx(
                wanted, rel=tolerance, abs=0.1 * tolerance
            ), jax.tree_util.keystr(path)

    grads = np.copy(grads)
    grads[0] = grads[:, 0] = 0  # in one step, and in some elements always
    for numbers in (row.typical, row.extreme):
        _, slopes = compiled((params, grads, jax.tree.map(np.float64, numbers)))
        for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
            assert np.all(np.isfinite(slope)), (numbers, jax.tree_util.keystr(path))


@over_table
def test_scan_carries_the_state_unchanged_and_equals_the_loop(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.pair()
    carry = scan(tx, params, grads)
    assert types(carry) == types((params, tx.init(params)))
    assert_trees_close(carry, loop(tx, params, grads), row.rtol_jit)


@over_table
def test_parameters_and_state_can_be_donated(row: Algorithm) -> None:
    """Fresh from `init`, too: no two buffers are one. (Warnings are errors here.)"""
    params, grads = problem()
    tx = row.pair()
    wanted, _ = loop(tx, *jax.tree.map(jnp.copy, (params, grads)))
    step = jax.jit(functools.partial(one_step, tx), donate_argnums=(0, 1))
    state = tx.init(params)
    for i in range(STEPS):
        new_params, new_state = step(params, state, at(grads, i))
        assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))
        params, state = new_params, new_state
    assert_trees_close(params, wanted, row.rtol_jit)


@over_table
def test_eval_shape_foretells_state_and_updates(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.pair()
    shapes = jax.eval_shape(lambda: params)
    state = jax.eval_shape(tx.init, shapes)
    assert types(state) == types(tx.init(params))
    updates, next_state = jax.eval_shape(tx.update, shapes, state, shapes)
    assert types((updates, next_state)) == types(tx.update(at(grads, 0), tx.init(params), params))


@pytest.mark.slow
@over_table
def test_a_step_is_lowered_for_every_platform(row: Algorithm) -> None:
    params, grads = problem()
    state = row.pair().init(params)
    step = jax.jit(functools.partial(one_step, row.pair()))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(
        params, state, at(grads, 0)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert_trees_close(
        exported.call(params, state, at(grads, 0)),
        one_step(row.pair(), params, state, at(grads, 0)),
        row.rtol_jit,
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@over_table
def test_state_and_updates_are_sharded_like_their_parameters(
    row: Algorithm, axis_type: AxisType
) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type, axis_type))
    sharding = NamedSharding(mesh, P("x", "y"))
    plain_params, plain_grads = problem(shape=(8, 4))
    plain = {"w": plain_params["kernel"]}, {"w": plain_grads["kernel"][0]}
    params, grads = jax.device_put(plain, sharding)
    tx = row.pair()
    state = tx.init(params)
    updates, new_state = jax.jit(tx.update)(grads, state, params)
    wanted, _ = tx.update(plain[1], tx.init(plain[0]), plain[0])
    assert_trees_close(updates, wanted, row.rtol_jit)
    results = [state, updates, new_state]
    if axis_type is AxisType.Explicit:  # there even a compiled init knows the sharding
        with jax.set_mesh(mesh):
            results.append(jax.jit(tx.init)(params))
    shared = [x.sharding for x in jax.tree.leaves(results) if x.shape == (8, 4)]
    assert updates["w"].sharding.is_equivalent_to(sharding, 2)
    assert all(other.is_equivalent_to(sharding, 2) for other in shared)


@over_table
def test_the_signature_says_that_it_returns_a_pair(row: Algorithm) -> None:
    assert inspect.signature(row.factory).return_annotation == "GradientTransformation"
