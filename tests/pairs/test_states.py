"""A state is the pair's own, of these parameters, or is refused before anything is computed."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import functorch_optim as fo
from tests.tables.algorithms import TABLE, Algorithm, over_table

PARAMS = {"w": jnp.ones((2, 3)), "v": jnp.ones((4, 2))}


def fields(state: Any) -> list[str]:
    """The fields of a state that are trees of buffers."""
    return [name for name in state._fields if isinstance(getattr(state, name), dict)]


@over_table
def test_the_state_of_another_pair_is_refused(row: Algorithm) -> None:
    tx = row.pair()
    own = type(tx.init(PARAMS))
    for other in TABLE:
        state = other.pair().init(PARAMS)
        if type(state) is not own:
            with pytest.raises(TypeError, match=rf"state should be the {own.__name__} that init"):
                tx.update(PARAMS, state, PARAMS)
    for wrong in (None, (), PARAMS, tuple(tx.init(PARAMS)), tx.init(PARAMS)._asdict()):
        with pytest.raises(TypeError, match=f"state should be the {own.__name__} that init"):
            tx.update(PARAMS, wrong, PARAMS)


@over_table
def test_an_equal_class_is_the_states_class(row: Algorithm) -> None:
    """As it comes out of another process."""
    tx = row.pair()
    state = tx.init(PARAMS)
    other = collections.namedtuple(type(state).__name__, state._fields)(*state)
    found = tx.update(PARAMS, other, PARAMS)
    for x, y in zip(
        jax.tree.leaves(found), jax.tree.leaves(tx.update(PARAMS, state, PARAMS)), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@over_table
def test_a_buffer_of_another_shape_is_named_with_its_path(row: Algorithm) -> None:
    tx = row.pair()
    state = tx.init(PARAMS)
    for name in fields(state):
        buffers = getattr(state, name)
        for shape in ((1, 1), (), (5, 3, 2)):
            if buffers["w"] is None or buffers["w"].shape == shape:
                continue
            wrong = state._replace(**{name: {**buffers, "w": jnp.ones(shape)}})
            with pytest.raises(
                ValueError, match=rf"state and params differ in shape at \['w'\]: {name} has shape"
            ):
                tx.update(PARAMS, wrong, PARAMS)


@over_table
def test_a_buffer_of_an_impossible_dtype_is_named_with_its_path(row: Algorithm) -> None:
    tx = row.pair()
    state = tx.init(PARAMS)
    for name in fields(state):
        buffers = getattr(state, name)
        if buffers["w"] is None:
            continue
        for dtype in (jnp.complex64, jnp.int32, bool):
            wrong = state._replace(**{name: {**buffers, "w": buffers["w"].astype(dtype)}})
            with pytest.raises(
                TypeError, match=rf"state and params differ in dtype at \['w'\]: {name} has"
            ):
                tx.update(PARAMS, wrong, PARAMS)


@over_table
def test_a_buffer_that_is_missing_is_named(row: Algorithm) -> None:
    tx = row.pair()
    state = tx.init(PARAMS)
    for name in fields(state):
        if all(buffer is None for buffer in getattr(state, name).values()):
            continue
        with pytest.raises(TypeError, match=rf"differ in structure at \['[vw]'\]: {name} is miss"):
            tx.update(PARAMS, state._replace(**{name: None}), PARAMS)


@over_table
def test_a_carried_number_is_one_real_number(row: Algorithm) -> None:
    tx = row.pair()
    state = tx.init(PARAMS)
    for name in ("step", *row.factory.rule.carried.names):
        with pytest.raises(ValueError, match=rf"{name} of the state should be one number"):
            tx.update(PARAMS, state._replace(**{name: jnp.ones(2)}), PARAMS)
        for wrong in (jnp.complex64(1), "1"):
            with pytest.raises(TypeError, match=rf"{name} of the state should be a number"):
                tx.update(PARAMS, state._replace(**{name: wrong}), PARAMS)


def test_a_step_from_an_old_file_counts_on() -> None:
    tx = fo.adam()
    state = tx.init(PARAMS)._replace(step=jnp.float32(41))
    assert int(tx.update(PARAMS, state)[1].step) == 42


def test_the_state_of_other_flags_is_refused() -> None:
    plain, amsgrad = fo.adam(), fo.adam(amsgrad=True)
    with pytest.raises(TypeError, match="max_exp_avg_sq is missing"):
        amsgrad.update(PARAMS, plain.init(PARAMS))
    with pytest.raises(TypeError, match="max_exp_avg_sq should not be there"):
        plain.update(PARAMS, amsgrad.init(PARAMS))
    with pytest.raises(TypeError, match="momentum_buffer is missing"):
        fo.sgd(momentum=0.9).update(PARAMS, fo.sgd().init(PARAMS))


def test_a_buffer_of_a_momentum_that_is_now_0_may_stay() -> None:
    state = fo.sgd(momentum=0.9).init(PARAMS)
    updates, _ = fo.sgd(0.5).update(PARAMS, state)
    np.testing.assert_array_equal(updates["w"], -0.5 * PARAMS["w"])


def test_lbfgs_refuses_a_state_of_another_shape_or_dtype() -> None:
    tx = fo.lbfgs(history_size=3)
    p = jnp.ones(2)
    state = tx.init(p)
    function = jax.value_and_grad(lambda p: jnp.sum(p * p))
    for name, wrong, error in (
        ("old_dirs", jnp.ones((3, 1)), ValueError),
        ("ro", jnp.ones(4), ValueError),
        ("H_diag", jnp.ones(1), ValueError),
        ("d", jnp.ones(2, jnp.float16), TypeError),
        ("pairs", jnp.ones(()), TypeError),
    ):
        with pytest.raises(error, match=rf"lbfgs: {name} of the state has"):
            tx.update(None, state._replace(**{name: wrong}), p, value_and_grad_fn=function)
    with pytest.raises(TypeError, match="state should be the LBFGSState that init returned"):
        tx.update(None, fo.adam().init(p), p, value_and_grad_fn=function)


# Init of what stands for parameters.


@pytest.mark.parametrize(
    "tx", [*(row.pair() for row in TABLE), fo.lbfgs(history_size=2), fo.prodigy(), fo.sparse_adam()]
)
def test_init_of_structs_gives_a_state_of_structs(tx: Any) -> None:
    mesh = Mesh(np.asarray(jax.devices()[:2]), "x")
    sharding = NamedSharding(mesh, P("x"))
    structs = {
        "w": jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=sharding),
        "v": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16),
    }
    plain = tx.init({name: jnp.ones(x.shape, x.dtype) for name, x in structs.items()})
    state = tx.init(structs)
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
        assert isinstance(found, jax.ShapeDtypeStruct)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    for name in fields(state):
        buffer = getattr(state, name)["w"]
        if buffer is not None and buffer.shape == (2, 3):
            assert buffer.sharding == sharding


@over_table
def test_optax_maps_over_the_buffers(row: Algorithm) -> None:
    """Of vectors, too: where Adafactor keeps other buffers than of matrices."""
    tx = row.pair()
    shape = (2, 2) if row.refused and row.refused[0][0] == (3,) else (2,)
    state = tx.init({"w": jnp.ones((2, 3)), "v": jnp.ones(shape)})
    mapped = optax.tree_utils.tree_map_params(
        tx, lambda x: "buffer", state, transform_non_params=lambda x: "number"
    )
    for name in state._fields:
        expected = "buffer" if name in fields(state) else "number"
        wanted = jax.tree.map(lambda x, word=expected: word, getattr(state, name))
        assert getattr(mapped, name) == wanted
