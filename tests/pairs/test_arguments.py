"""Every argument of every algorithm is of its kind, or is refused by an error that names it."""

from __future__ import annotations

import inspect
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.core.arguments import Kinds
from functorch_optim.core.pair import Hyperparameter
from functorch_optim.rules import Rule, StepNumbers, per_leaf, zeros
from tests.tables.algorithms import TABLE

FACTORIES = (*(row.factory for row in TABLE), fo.sparse_adam, fo.prodigy, fo.lbfgs)
NO_KIND = ("1", object(), {}, 1j, np.array(None), np.array(True), np.str_("1"), jnp.complex64(1))
SEVERAL = (np.ones(2), jnp.ones(2), np.ones(0))


def arguments(of_kind: Any, within: Any = None) -> list[Any]:
    """`(factory, argument, place in it or None)` for every argument of a kind."""
    found = []
    for factory in FACTORIES:
        hints = typing.get_type_hints(inspect.unwrap(factory))
        for name in inspect.signature(factory).parameters:
            hint = hints[name]
            is_tuple = typing.get_origin(hint) is tuple
            for place, part in enumerate(typing.get_args(hint)) if is_tuple else [(None, hint)]:
                if of_kind in (part, *typing.get_args(part)):
                    case_id = f"{factory.__name__}-{name}" + ("" if place is None else f"[{place}]")
                    found.append(pytest.param(factory, name, place, id=case_id))
    return found


def build(factory: Any, name: str, place: int | None, value: Any) -> Any:
    if place is not None:
        parts = list(inspect.signature(factory).parameters[name].default)
        parts[place] = value
        value = tuple(parts)
    return factory(**{name: value})


over_numbers = pytest.mark.parametrize(("factory", "name", "place"), arguments(jax.Array))
over_flags = pytest.mark.parametrize(("factory", "name", "place"), arguments(bool))
over_counts = pytest.mark.parametrize(("factory", "name", "place"), arguments(int))


@over_numbers
def test_what_is_no_number_is_refused(factory: Any, name: str, place: int | None) -> None:
    where = name if place is None else rf"{name}\[{place}\]"
    for value in (*NO_KIND, [0.1]):
        # A tree in the first place is taken for parameters: the error says what a pair takes.
        tree = f"takes no parameters, but its first argument, {where}, is of type"
        words = f"^{where} should be a number, an array or a schedule|{tree}"
        with pytest.raises(TypeError, match=words):
            build(factory, name, place, value)


@over_numbers
def test_an_array_of_several_numbers_is_refused(factory: Any, name: str, place: int | None) -> None:
    where = name if place is None else rf"{name}\[{place}\]"
    for value in SEVERAL:
        with pytest.raises(ValueError, match=f"^Tensor {where} must be 1-element$"):
            build(factory, name, place, value)


@over_numbers
def test_nan_is_refused(factory: Any, name: str, place: int | None) -> None:
    if (factory, name) == (fo.sgd, "lr"):  # torch takes it
        assert build(factory, name, place, math.nan) is not None
        return
    with pytest.raises(ValueError, match="nan"):
        build(factory, name, place, math.nan)


@over_numbers
def test_a_number_beyond_all_floats_is_refused(factory: Any, name: str, place: int | None) -> None:
    with pytest.raises(ValueError):
        build(factory, name, place, 10**400)
    with pytest.raises(ValueError):
        build(factory, name, place, -(10**400))


@over_numbers
@pytest.mark.parametrize("value", [None, "0.1", 1j, [0.1], np.ones(2), jnp.ones((1, 2))])
def test_a_schedule_that_returns_no_number_is_named(
    factory: Any, name: str, place: int | None, value: Any
) -> None:
    """By init or by the first update."""
    row = next((r for r in TABLE if r.factory is factory), None)
    flags = {} if row is None else {**row.flags, **row.typical}
    params = jnp.ones((2, 2))
    where = name if place is None else rf"{name}\[{place}\]"

    def schedule(count: Any) -> Any:
        return value

    given: Any = schedule
    if place is not None:
        parts = list({**flags, name: inspect.signature(factory).parameters[name].default}[name])
        parts[place] = schedule
        given = tuple(parts)
    tx = factory(**{**flags, name: given})
    with pytest.raises((TypeError, ValueError), match=f"^{where} is a schedule, which should"):
        tx.update(params, tx.init(params), params, value_and_grad_fn=lambda p: (p, p))


@over_flags
def test_a_flag_is_a_bool(factory: Any, name: str, place: int | None) -> None:
    for value in ("False", "True", 1, 0, None, 0.0, [], np.ones(2), jnp.asarray(True)):
        with pytest.raises(TypeError, match=f"^{name} should be True or False"):
            build(factory, name, place, value)


@over_counts
def test_a_count_is_a_whole_number(factory: Any, name: str, place: int | None) -> None:
    for value in (2.5, "2", True, -1, np.float32(2), np.ones(2, int), {}):
        with pytest.raises((TypeError, ValueError), match=f"{name}"):
            build(factory, name, place, value)
    assert build(factory, name, place, np.int64(3)) is not None


@pytest.mark.parametrize(
    ("factory", "name", "length"),
    [
        pytest.param(f, n, len(p.default), id=f"{f.__name__}-{n}")
        for f in FACTORIES
        for n, p in inspect.signature(f).parameters.items()
        if isinstance(p.default, tuple)
    ],
)
def test_a_tuple_is_as_long_as_it_should_be(factory: Any, name: str, length: int) -> None:
    default = inspect.signature(factory).parameters[name].default
    torchs = "Coefficients must be a tuple of exactly 3 values"
    for value in (default[:-1], (), (*default, default[-1]), list(default[:1])):
        with pytest.raises(ValueError) as error:
            factory(**{name: value})
        wanted = f"{name} must be exactly {length} values, but got {len(value)}"
        assert str(error.value) in (wanted, torchs)
    for value in (0.9, None, lambda count: default, np.float32(0.5)):
        with pytest.raises((TypeError, ValueError), match=f"{name} should be a tuple|{torchs}"):
            factory(**{name: value})
    assert factory(**{name: list(default)}) is factory()


def test_a_row_of_numbers_is_a_tuple() -> None:
    """As in torch, whose optimizers unpack it."""
    p = jnp.ones(2)
    plain = fo.adam(betas=(0.5, 0.75))
    for betas in (np.array([0.5, 0.75]), jnp.array([0.5, 0.75])):
        tx = fo.adam(betas=betas)
        np.testing.assert_allclose(
            tx.update(p, tx.init(p))[0], plain.update(p, plain.init(p))[0], rtol=1e-6
        )


def test_infinity_is_refused_where_it_leads_nowhere() -> None:
    for factory in FACTORIES:
        for name in {"weight_decay", "momentum", "dampening", "lambd", "d0", "lr_decay"} & set(
            inspect.signature(factory).parameters
        ):
            with pytest.raises(ValueError, match=f"^{name} should be finite, but is inf$"):
                factory(**{name: math.inf})
        if factory not in (fo.rprop, fo.adafactor):  # which bound it
            with pytest.raises(ValueError, match=r"^lr should be finite, but is inf$"):
                factory(lr=math.inf)


def test_infinity_is_taken_where_it_means_something() -> None:
    p = jnp.full((2, 2), 0.5)
    for tx in (
        fo.rprop(math.inf),
        fo.rprop(step_sizes=(1e-6, math.inf)),
        fo.adafactor(math.inf, d=math.inf),
        fo.asgd(t0=math.inf),
        fo.nadam(momentum_decay=math.inf),
        fo.adopt(clip_exponent=math.inf),
        fo.prodigy(growth_rate=math.inf),
    ):
        assert np.all(np.isfinite(tx.update(p, tx.init(p), p)[0]))


def test_the_words_about_values_come_before_those_about_kinds() -> None:
    """torch has the former, and no check of the latter."""
    with pytest.raises(ValueError, match=r"^Invalid learning rate: -1$"):
        fo.adam(-1, amsgrad="no", maximize=0)
    with pytest.raises(ValueError, match=r"^Invalid learning rate: -1$"):
        fo.adam(-1, betas=(0.9,))
    with pytest.raises(ValueError, match=r"^Invalid beta parameter at index 0: 2.0$"):
        fo.adam(betas=(2.0,), amsgrad=1)
    with pytest.raises(ValueError, match=r"^Invalid eta values: 0.5, 0.5$"):
        fo.rprop(etas=(0.5, 0.5, 2.0))


def test_an_unknown_argument_is_named_with_the_factory() -> None:
    with pytest.raises(TypeError, match=r"^adam\(\) got an unexpected keyword argument 'rho'$"):
        fo.adam(rho=0.9)


def test_arguments_of_a_rule_of_your_own_are_checked_by_their_types() -> None:
    rule = Rule(
        "Mine",
        fo.SGDState,
        zeros(1),
        lambda t, h: StepNumbers(lr=h.lr),
        lambda g, p, buffers, s: (-s.lr * g, buffers),
    )

    @per_leaf(rule)
    def mine(
        lr: Hyperparameter = 0.1,
        pair: tuple[Hyperparameter, Hyperparameter | None] = (1.0, None),
        turns: int | None = None,
        loud: bool = False,
        word: str | None = None,
        anything: Any = None,
        *,
        maximize: bool = False,
    ) -> None:
        """A step along the gradient.

        Args:
          pair: two numbers.
          turns: a count.
          loud: a flag.
          word: a word.
          anything: not checked.
        """
        if pair[0] == 0:
            raise ValueError("pair[0] is 0")

    for wrong, error, words in (
        ({"lr": "1"}, TypeError, "lr should be a number"),
        ({"pair": 1.0}, TypeError, "pair should be a tuple of 2 values"),
        ({"pair": ()}, ValueError, "pair must be exactly 2 values, but got 0"),
        ({"pair": (None, 1.0)}, TypeError, r"pair\[0\] should be a number"),
        ({"turns": 1.5}, TypeError, "turns should be a whole number"),
        ({"loud": "no"}, TypeError, "loud should be True or False"),
        ({"word": 1}, TypeError, "word should be a word"),
        ({"maximize": None}, TypeError, "maximize should be True or False"),
        ({"pair": (0, 1.0), "loud": 1}, ValueError, r"pair\[0\] is 0"),
    ):
        with pytest.raises(error, match=f"^{words}"):
            mine(**wrong)
    assert mine(anything=(), turns=2, word="yes", pair=[1, None]) is not None


def test_types_that_are_unknown_at_run_time_check_nothing() -> None:
    def function(x: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        raise AssertionError

    Kinds(function).check({"x": object()})
