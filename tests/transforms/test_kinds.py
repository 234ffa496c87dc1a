"""What holds for the state of every transform and wrapper: counts, classes, shapes, weak types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from tests.support.problems import Tree, at, problem, types
from tests.tables.transforms import TABLE, Transform, over_transforms

LAST = 2**31 - 1
with_state = pytest.mark.parametrize(
    "row",
    [row for row in TABLE if jax.tree.leaves(row.pair(fo.scale(1.0)).init({"a": jnp.ones(2)}))],
    ids=lambda row: row.name,
)


def is_count(x: Any) -> bool:
    return x.shape == () and x.dtype == jnp.int32


def counted(state: Tree, value: int) -> Tree:
    """A state whose counts all have this value."""
    return jax.tree.map(lambda x: jnp.int32(value) if is_count(x) else x, state)


def counts(state: Tree) -> list[int]:
    return [int(x) for x in jax.tree.leaves(state) if is_count(x)]


@with_state
@pytest.mark.parametrize("start", [2**24 - 1, 2**24, LAST - 1, LAST])
def test_counts_are_exact_beyond_float32_and_stay_at_the_last_one(
    row: Transform, start: int
) -> None:
    """A count goes on by one, stays, or starts anew (of a cooldown: falls); none is negative."""
    params, grads = problem()
    tx = row.pair(fo.sgd(0.1, momentum=0.9))
    _, state = tx.update(at(grads, 0), tx.init(params), params, **row.extra)
    update = jax.jit(tx.update)
    updates, after = update(at(grads, 1), counted(state, start), params, **row.extra)
    allowed = {min(start + 1, LAST), start, 0, 1, start - 1}
    found = counts(after)
    assert set(found) <= allowed, found
    steps = [
        int(x)
        for path, x in jax.tree_util.tree_leaves_with_path(after)
        if is_count(x) and jax.tree_util.keystr(path).endswith((".step", ".last_epoch", ".total"))
    ]
    moved = min(start + 1, LAST)
    # The total of skipped steps, and the plateau's metrics, go on where there is one to count.
    assert all(x in (moved, start) for x in steps)
    finite = [np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, after)) if _is_float(x)]
    assert all(finite)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def test_every_count_goes_on_at_2_to_the_24() -> None:
    """An update counts: of the rows that have a step, it is one more afterwards."""
    names = []
    params, grads = problem()
    for row in TABLE:
        tx = row.pair(fo.scale(1.0))
        state = tx.init(params)
        if hasattr(state, "step") and row.name != "accumulate":
            _, after = tx.update(at(grads, 0), counted(state, 2**24), params, **row.extra)
            assert int(after.step) == 2**24 + 1, row.name
            names.append(row.name)
    assert {"add_noise", "lookahead", "schedule_free", "inject_hyperparams", "ema"} <= {*names}


def test_a_schedule_sees_the_exact_count() -> None:
    def parity(step: Any) -> Any:
        return jnp.asarray(step % 2, jnp.float32)

    p = jnp.ones(2)
    tx = fo.scale_by_schedule(parity)
    for start in (2**24, 2**24 + 1, LAST):
        updates, _ = tx.update(p, tx.init(p)._replace(step=jnp.int32(start)))
        np.testing.assert_array_equal(updates, np.full(2, start % 2))
    injected = fo.inject_hyperparams(fo.sgd)(lr=parity)
    state = injected.init(p)._replace(step=jnp.int32(2**24))
    assert float(injected.update(p, state, p)[1].hyperparams["lr"]) == 1.0


def test_a_period_is_right_beyond_2_to_the_24() -> None:
    p = jnp.ones(2)
    period = 2**24 + 2
    for start, full in ((2**24, False), (2**24 + 1, True)):
        tx = fo.accumulate(fo.sgd(1.0), period, average=False)
        state = tx.init(p)._replace(mini_step=jnp.int32(start))
        updates, after = tx.update(p, state, p)
        assert bool(np.all(np.asarray(updates) != 0)) == full
        assert int(after.mini_step) == (0 if full else start + 1)
    for start, called in ((2**24, False), (2**24 + 1, True)):
        tx = fo.lookahead(period)
        state = tx.init(p)._replace(step=jnp.int32(start))
        _, after = tx.update(p, state, p)
        assert bool(np.all(np.asarray(after.slow) == 1.5)) == called


@over_transforms
def test_a_state_of_another_pair_is_refused_by_name(row: Transform) -> None:
    params, grads = problem()
    tx = row.pair(fo.adagrad(0.1))
    if row.name == "float32_state":
        pytest.skip("its state is that of the pair inside, which refuses it")
    foreign = fo.lion().init(params)
    with pytest.raises((TypeError, ValueError), match=r"state|chain"):
        tx.update(at(grads, 0), foreign, params, **row.extra)


def test_fields_of_the_same_names_do_not_make_a_state() -> None:
    """`step` is all that scale_by_schedule asks for, and many states have one."""
    p = jnp.ones(2)
    with pytest.raises(TypeError, match="scale_by_schedule: state should be the ScaleBySchedule"):
        fo.scale_by_schedule(lambda step: 1.0).update(p, fo.adam().init(p))
    with pytest.raises(TypeError, match=r"scale remembers nothing: state .* is a AdamState"):
        fo.scale(2.0).update(p, fo.adam().init(p))
    with pytest.raises(TypeError, match="chain: state should be a tuple of the states of 1 member"):
        fo.chain(fo.scale(2.0)).update(p, None)
    ema = fo.ema_average()
    with pytest.raises(TypeError, match="an average: state should be the AverageState"):
        ema.update(p, fo.ema().init(p))


@pytest.mark.parametrize(
    ("tx", "field"),
    [
        (fo.trace(), "trace"),
        (fo.ema(), "ema"),
        (fo.lookahead(1), "slow"),
        (fo.accumulate(fo.sgd(), 2), "grad_sum"),
        (fo.schedule_free(fo.sgd(), 0.1), "z"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_state_of_other_shapes_is_refused_with_its_path(tx: Any, field: str) -> None:
    """A row would be broadcast to a matrix."""
    params = {"w": jnp.ones((2, 3))}
    state = tx.init({"w": jnp.ones((1, 3))})
    with pytest.raises(ValueError, match=rf"{field}|state.* differ in shape at \['w'\]"):
        tx.update(params, state, params)
    other = tx.init({"v": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match=r"differ in structure.*\['[wv]'\]"):
        tx.update(params, other, params)


@with_state
def test_several_numbers_are_no_count(row: Transform) -> None:
    params, grads = problem()
    tx = row.pair(fo.scale(1.0))
    state = tx.init(params)
    fields = zip(getattr(state, "_fields", ()), state, strict=False)
    own = [name for name, x in fields if isinstance(x, jax.Array) and is_count(x)]
    if row.name in ("prodigy", "cautious", "float32_state", "masked"):
        pytest.skip("its state is that of an algorithm")
    for field in own:
        wrong = state._replace(**{field: jnp.zeros(3, jnp.int32)})
        with pytest.raises(ValueError, match=rf"state\.{field} should be one number.*\(3,\)"):
            tx.update(at(grads, 0), wrong, params, **row.extra)


def weak(tree: Tree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, x in leaves if getattr(x, "weak_type", False)]


@over_transforms
def test_no_state_has_weak_types(row: Transform) -> None:
    """Not of weakly typed parameters, not after a step, not with numbers put in by hand."""
    params = {"a": jnp.asarray(1.5), "b": jnp.asarray(2.5)}
    assert weak(params)
    if row.name in ("prodigy", "adaptive_grad_clip", "centralize"):
        params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    tx = row.pair(fo.trace(0.9))
    state = tx.init(params)
    assert not weak(state)
    _, after = jax.jit(tx.update)(params, state, params, **row.extra)
    assert not weak(after)

    def by_hand(x: Any) -> Any:
        is_number = x.shape == () and jnp.issubdtype(x.dtype, jnp.number)
        return x.item() if is_number else x

    own = {
        name: by_hand(value)
        for name, value in zip(getattr(state, "_fields", ()), state, strict=False)
        if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
    }
    if not own or row.name == "prodigy":
        return
    _, after = tx.update(params, state._replace(**own), params, **row.extra)
    assert not weak(after)
    assert types(after) == types(state)


def line(step: Any) -> Any:
    return 0.1 + 0.1 * jnp.asarray(step, jnp.float32)


def test_a_number_put_into_hyperparams_does_not_compile_again() -> None:
    params, grads = problem()
    tx = fo.inject_hyperparams(fo.adamw)(lr=line, weight_decay=0.5)
    traces = []

    @jax.jit
    def step(grads: Tree, state: Tree, params: Tree) -> Any:
        traces.append(1)
        return tx.update(grads, state, params)

    g = at(grads, 0)
    _, state = step(g, tx.init(params), params)
    state.hyperparams["lr"] = 0.25
    updates, after = step(g, state, params)
    wanted, _ = tx.update(g, fo.set_hyperparams(state, lr=0.25), params)
    np.testing.assert_allclose(updates["kernel"], wanted["kernel"], rtol=1e-6)
    step(g, state._replace(hyperparams={**state.hyperparams, "weight_decay": 1}), params)
    _, after = step(g, after, params)
    assert len(traces) == 1
    assert not weak(after)


def test_each_name_in_an_injected_state_is_there_once() -> None:
    params, _ = problem()
    state = fo.inject_hyperparams(fo.adam)(lr=line).init(params)
    assert float(optax.tree_utils.tree_get(state, "lr")) == pytest.approx(0.1)
    changed = optax.tree_utils.tree_set(state, lr=0.5)
    assert changed.hyperparams["lr"] == 0.5
    assert bool(changed.scheduled["lr"])
    assert jax.tree.structure(changed) == jax.tree.structure(state)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert ".flags['lr_is_scheduled']" in paths


def test_an_unknown_hyperparameter_in_the_state_is_refused() -> None:
    p = jnp.ones(2)
    tx = fo.inject_hyperparams(fo.adam)(lr=0.1)
    state = tx.init(p)
    state.hyperparams["lrr"] = 0.5
    with pytest.raises(ValueError, match=r"state\.hyperparams should have the names .*'lrr'"):
        tx.update(p, state, p)
    state = tx.init(p)
    state = state._replace(hyperparams={**state.hyperparams, "betas": 0.9})
    with pytest.raises(ValueError, match=r"hyperparams\['betas'\] should be a tuple of 2"):
        tx.update(p, state, p)


def structs(params: Tree, sharding: Any = None) -> Tree:
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding), params)


def a_sharding() -> Any:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))


def assert_abstract(init: Callable[[Tree], Tree], params: Tree) -> None:
    """Structs for structs, and the shardings of the parameters on what belongs to them."""
    wanted = init(params)
    found = init(structs(params, a_sharding()))
    assert types(found) == types(wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    shape = jax.tree.leaves(params)[0].shape
    for x in jax.tree.leaves(found):
        assert x.sharding == (a_sharding() if x.shape == shape else None)


@over_transforms
def test_init_takes_abstract_values(row: Transform) -> None:
    params, _ = problem(shape=(2, 4))
    inner = fo.chain(fo.trace(0.9))
    assert_abstract(fo.chain(row.pair(inner)).init, params)


@pytest.mark.parametrize(
    "average",
    [fo.swa_average(), fo.ema_average(0.9), fo.ema_average(0.9, debias=True)],
    ids=["swa", "ema", "debiased"],
)
def test_init_of_an_average_takes_abstract_values(average: Any) -> None:
    params, _ = problem(shape=(2, 4))
    assert_abstract(average.init, params)
    assert_abstract(fo.float32_state(average).init, params)


@over_transforms
def test_optax_maps_over_the_parameters_in_a_state(row: Transform) -> None:
    params, _ = problem()
    tx = row.pair(fo.adam(0.1))
    state = tx.init(params)
    labels = jax.tree.map(lambda p: "buffer", params)
    mapped = optax.tree_utils.tree_map_params(
        tx,
        lambda x, label: label,
        state,
        labels,
        transform_non_params=lambda x: "other",
        is_leaf=lambda x: x is None,
    )
    shape = params["kernel"].shape
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        found = dict(
            (jax.tree_util.keystr(p), y) for p, y in jax.tree_util.tree_leaves_with_path(mapped)
        )
        assert found[name] == ("buffer" if x.shape == shape else "other"), name


@pytest.mark.parametrize(
    "mask",
    [
        {"kernel": True, "rest": [False]},
        fo.by_path([("kernel", True)], default=False),
        lambda params: {"kernel": params["kernel"].ndim > 1, "rest": [False]},
    ],
    ids=["tree", "path", "function"],
)
def test_optax_maps_over_parts_of_the_parameters(mask: Any) -> None:
    params, _ = problem()
    pairs = {
        "masked": fo.masked(fo.adam(), mask),
        "partition": fo.partition({True: fo.adam(), False: fo.accumulate(fo.sgd(), 2)}, mask),
    }
    for tx in pairs.values():
        doubled = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, tx.init(params))
        state = doubled if hasattr(doubled, "exp_avg") else doubled["True"]
        np.testing.assert_array_equal(state.exp_avg["kernel"], np.ones((2, 3)))
        assert int(state.step) == 0
