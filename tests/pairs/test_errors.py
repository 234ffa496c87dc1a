"""Errors: torch's type and words for bad arguments, and the path for trees that do not fit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim as fo
from tests.tables.algorithm import TWO, Algorithm, Kwargs, case_id
from tests.tables.algorithms import OF_TORCH, TABLE, over_table


def over_errors(table: tuple[Algorithm, ...]) -> Any:
    return pytest.mark.parametrize(
        ("row", "kwargs", "message"),
        [
            pytest.param(row, kwargs, message, id=f"{row.name}-{case_id(kwargs)}")
            for row in table
            for kwargs, message in row.errors
        ],
    )


def over_accepted(table: tuple[Algorithm, ...]) -> Any:
    return pytest.mark.parametrize(
        ("row", "kwargs"),
        [
            pytest.param(row, kwargs, id=f"{row.name}-{case_id(kwargs)}")
            for row in table
            for kwargs in row.accepted
        ],
    )


PARAMS = {"layers": [{"kernel": jnp.ones((2, 3))}, {"kernel": jnp.ones((2, 3))}]}


def torch_step(row: Algorithm, kwargs: Kwargs) -> None:
    """Builds torch's optimizer and steps once; arrays among the arguments become tensors."""
    torch = pytest.importorskip("torch", reason="compares with torch's own errors")

    def tensor(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return torch.tensor(x)
        return tuple(map(tensor, x)) if isinstance(x, tuple) else x

    converted = {name: tensor(value) for name, value in kwargs.items()}
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.ones(2, 3)
    getattr(torch.optim, row.torch_class)([parameter], **converted).step()


@over_errors(TABLE)
def test_bad_arguments_are_refused_in_torchs_words(
    row: Algorithm, kwargs: Kwargs, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        row.factory(**kwargs)
    assert str(error.value) == message


@over_errors(OF_TORCH)
def test_torch_has_these_words(row: Algorithm, kwargs: Kwargs, message: str) -> None:
    pytest.importorskip("torch", reason="compares with torch's own errors")
    with pytest.raises(ValueError) as error:
        torch_step(row, kwargs)
    assert str(error.value) == message


@over_accepted(TABLE)
def test_what_torch_accepts_is_accepted(row: Algorithm, kwargs: Kwargs) -> None:
    tx = row.factory(**kwargs)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert updates["layers"][0]["kernel"].shape == (2, 3)


@over_accepted(OF_TORCH)
def test_torch_accepts_it_too(row: Algorithm, kwargs: Kwargs) -> None:
    torch_step(row, kwargs)


@over_table
def test_jax_and_numpy_arrays_are_checked_alike(row: Algorithm) -> None:
    for two in (jnp.ones(2), np.ones(2)):
        with pytest.raises(ValueError, match=r"^Tensor lr must be 1-element$"):
            row.factory(lr=two)


def test_betas_of_several_elements_are_refused() -> None:
    """In the words that torch has for it, though its check of the range stumbles before them."""
    for betas, index in (((TWO, TWO), 0), ((TWO[:1] / 2, TWO), 1)):
        with pytest.raises(ValueError, match=rf"^Tensor betas\[{index}\] must be 1-element$"):
            fo.adam(betas=betas)


@over_table
def test_a_string_is_not_a_number(row: Algorithm) -> None:
    for name, number in row.typical.items():
        value = tuple(map(str, number)) if isinstance(number, tuple) else str(number)
        with pytest.raises(TypeError, match=rf"{name}.* should be a number, an array or a sched"):
            row.factory(**{name: value})


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.params_needed_for is not None], ids=lambda r: r.name
)
def test_update_without_params_says_what_they_are_needed_for(row: Algorithm) -> None:
    tx = row.pair()
    with pytest.raises(ValueError) as error:
        tx.update(PARAMS, tx.init(PARAMS))
    assert str(error.value) == (
        f"{row.name}: the argument `params` of update is missing, and it is needed because "
        f"{row.params_needed_for}. Call update(grads, state, params)."
    )


@over_table
def test_a_gradient_in_the_wrong_place_is_named(row: Algorithm) -> None:
    tx = row.pair()
    state = tx.init(PARAMS)
    missing = {"layers": [PARAMS["layers"][0], {}]}
    with pytest.raises(
        TypeError, match=r"params has a leaf at \['layers'\]\[1\]\['kernel'\], grads"
    ):
        tx.update(missing, state, PARAMS)
    extra = {"layers": [PARAMS["layers"][0], {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}]}
    with pytest.raises(TypeError, match=r"grads has a leaf at \['layers'\]\[1\]\['bias'\], params"):
        tx.update(extra, state, PARAMS)
    deeper = {"layers": [PARAMS["layers"][0], {"kernel": {"mean": jnp.ones((2, 3))}}]}
    with pytest.raises(TypeError, match=r"\['layers'\]\[1\]\['kernel'\]"):
        tx.update(deeper, state, PARAMS)
    with pytest.raises(TypeError, match="the containers are of different types"):
        tx.update({"layers": tuple(PARAMS["layers"])}, state, PARAMS)


@over_table
def test_a_gradient_of_another_shape_is_named(row: Algorithm) -> None:
    """A shape that would broadcast, too."""
    tx = row.pair()
    state = tx.init(PARAMS)
    for shape in ((3, 2), (1, 3), ()):
        wrong = {"layers": [PARAMS["layers"][0], {"kernel": jnp.ones(shape)}]}
        with pytest.raises(ValueError) as error:
            tx.update(wrong, state, PARAMS)
        assert str(error.value) == (
            "grads and params differ in shape at ['layers'][1]['kernel']: "
            f"params has (2, 3), grads has {shape}"
        )


@over_table
def test_the_state_of_other_parameters_is_refused(row: Algorithm) -> None:
    tx = row.pair()
    other = tx.init({"other": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match="state and params differ in structure"):
        tx.update(PARAMS, other, PARAMS)


@over_table
def test_the_state_of_parameters_of_another_shape_is_refused(row: Algorithm) -> None:
    tx = row.pair()
    small = tx.init({"layers": [{"kernel": jnp.ones((1, 3))}, {"kernel": jnp.ones((2, 3))}]})
    with pytest.raises(ValueError, match=r"differ in shape at \['layers'\]\[0\]\['kernel'\]"):
        tx.update(PARAMS, small, PARAMS)


over_refused = pytest.mark.parametrize(
    ("row", "shape", "dtype", "error", "message"),
    [
        pytest.param(row, *refused, id=f"{row.name}-{refused[:2]}")
        for row in TABLE
        for refused in row.refused
    ],
)


@over_refused
def test_parameters_that_torch_refuses_are_refused_by_init(
    row: Algorithm, shape: tuple[int, ...], dtype: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        row.pair().init({"w": jnp.ones(shape, dtype)})
    assert str(raised.value) == message


@over_refused
def test_torch_refuses_these_parameters(
    row: Algorithm, shape: tuple[int, ...], dtype: str, error: type[Exception], message: str
) -> None:
    """At construction or at the first step."""
    torch = pytest.importorskip("torch", reason="compares with torch's own errors")
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype)))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(error) as raised:
        getattr(torch.optim, row.torch_class)([parameter]).step()
    assert message in (str(raised.value), str(raised.value).replace("torch.Size(", "").strip(")"))


@over_table
def test_a_complex_gradient_of_a_real_parameter_is_refused(row: Algorithm) -> None:
    tx = row.pair()
    p = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="complex64 cannot update a parameter of float32"):
        tx.update(jnp.ones((2, 3), jnp.complex64), tx.init(p), p)


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.sparse_error is not None], ids=lambda r: r.name
)
def test_a_sparse_gradient_is_refused_in_torchs_words(row: Algorithm) -> None:
    tx = row.pair()
    p = jnp.ones((2, 3))
    with pytest.raises(RuntimeError) as error:
        tx.update({"w": sparse.BCOO.fromdense(p)}, tx.init({"w": p}), {"w": p})
    assert str(error.value) == row.sparse_error


@pytest.mark.parametrize(
    "row", [r for r in OF_TORCH if r.sparse_error is not None], ids=lambda r: r.name
)
def test_torch_refuses_a_sparse_gradient_in_these_words(row: Algorithm) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's own errors")
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(RuntimeError) as error:
        getattr(torch.optim, row.torch_class)([parameter]).step()
    assert str(error.value) == row.sparse_error


def test_apply_updates_names_the_leaf_that_does_not_fit() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(TypeError, match=r"params has a leaf at \['b'\], updates has none there"):
        fo.apply_updates(params, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"differ in shape at \['b'\].*\(3,\).*\(1,\)"):
        fo.apply_updates(params, {"a": jnp.ones(2), "b": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"differ in shape at the root"):
        fo.apply_updates(jnp.ones(2), jnp.ones(3))


def test_chain_refuses_what_is_not_a_pair() -> None:
    with pytest.raises(
        TypeError, match=r"argument 1 of chain .* <function adam .*Call the factory"
    ):
        fo.chain(fo.sgd(0.1), fo.adam)
    with pytest.raises(TypeError, match=r"argument 0 of chain should be .* pair, but is 0\.1$"):
        fo.chain(0.1)
    with pytest.raises(TypeError, match=r"argument 0 of chain is a list of pairs"):
        fo.chain([fo.sgd(0.1)])


def test_chain_refuses_the_state_of_another_chain() -> None:
    short, long = fo.chain(fo.sgd(0.1)), fo.chain(fo.scale(2.0), fo.sgd(0.1))
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="this chain has 1 members, but the state given has 2"):
        short.update(params, long.init(params), params)
