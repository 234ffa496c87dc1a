"""`load_state_dict(..., strict=False)` takes over what matches, and says what did not."""

from __future__ import annotations

import re
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.stateful import all_parameters, cells, exactly, run, snapshot


def named(*groups: str, cls: Any = optim.Adam, **options: Any) -> optim.Optimizer:
    """Groups of named parameters, `"a b"`; one of the name "big" has another shape."""
    made = [
        {"params": [(n, optim.Parameter(jnp.full(4 if n == "big" else 3, 0.5))) for n in g.split()]}
        for g in groups
    ]
    return cls(made, **{"lr": 0.1, **options})


def stepped(*groups: str, **options: Any) -> optim.Optimizer:
    opt = named(*groups, **options)
    run(opt, 2)
    for i, group in enumerate(opt.param_groups):
        group["lr"] = 0.5 + i
    return opt


def by_name(opt: optim.Optimizer) -> dict[str, Any]:
    return {
        name: exactly(dict(opt.state[p]))
        for group in opt.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


def report_of(opt: optim.Optimizer, saved: Any, match: str = "name") -> Any:
    return opt.load_state_dict(saved, match=match, strict=False)


@pytest.mark.parametrize("match", ["name", "position"])
def test_where_all_matches_it_is_the_strict_one(match: str) -> None:
    opt = stepped("a b", "c")
    strict, free = named("a b", "c"), named("a b", "c")
    assert strict.load_state_dict(opt.state_dict(), match=match) is None
    report = report_of(free, opt.state_dict(), match)
    assert exactly(strict.state_dict()) == exactly(free.state_dict())
    assert by_name(free) == by_name(opt)
    assert [g["lr"] for g in free.param_groups] == [0.5, 1.5]
    assert report == ((), (), ())
    assert repr(report) == "<All parameters matched>"


def test_what_is_missing_starts_anew_and_what_is_unknown_is_named() -> None:
    opt, other = stepped("a b", "c"), named("a big", "c d")
    report = report_of(other, opt.state_dict())
    assert report.missing == ("big", "d")
    assert report.unexpected == ("b",)
    assert report.groups == ()
    assert repr(report) == "LoadReport(missing=['big', 'd'], unexpected=['b'], groups=[])"
    wanted, got = by_name(opt), by_name(other)
    assert (got["a"], got["c"]) == (wanted["a"], wanted["c"])
    assert got["big"] == got["d"] == exactly({})
    assert [g["lr"] for g in other.param_groups] == [0.5, 1.5]
    assert other.param_groups[0]["param_names"] == ["a", "big"]
    run(other, 1)
    assert [other.state[p]["step"] for p in all_parameters(other)] == [3, 1, 3, 1]
    assert set(other.state_dict()["state"]) == {0, 1, 2, 3}


def test_groups_may_differ_where_it_is_clear_by_name() -> None:
    opt, other = stepped("a b", "c d"), named("d", "b", "a c", "x")
    report = report_of(other, opt.state_dict())
    assert report.groups == (2, 3)  # one of both groups, one of none
    assert [g["lr"] for g in other.param_groups] == [1.5, 0.5, 0.1, 0.1]
    assert (report.missing, report.unexpected) == (("x",), ())
    wanted = by_name(opt)
    assert {name: x for name, x in by_name(other).items() if name != "x"} == wanted


def test_by_position_groups_are_alike() -> None:
    opt, other = stepped("a b"), named("a b", "c")
    before = snapshot(other)
    with pytest.raises(ValueError, match=r"different number .*match='name', strict=False"):
        report_of(other, opt.state_dict(), "position")
    with pytest.raises(ValueError, match=r"match the size .*match='name', strict=False"):
        report_of(named("a b c"), opt.state_dict(), "position")
    assert snapshot(other) == before


def test_by_position_entries_may_be_missing_or_too_many() -> None:
    opt = stepped("a b")
    saved = opt.state_dict()
    saved["state"]["note"] = saved["state"].pop(1)
    other = named("a b")
    report = report_of(other, saved, "position")
    assert report == (("b",), ("note",), ())
    assert set(other.state_dict()["state"]) == {0}  # what is unknown is not kept
    other = optim.Adam(cells((3,), (3,)))
    assert report_of(other, saved, "position").missing == (1,)  # no name


def test_what_needs_no_state_lacks_none() -> None:
    opt = stepped("a b", cls=optim.SGD)
    assert report_of(named("a b", cls=optim.SGD), opt.state_dict()) == ((), (), ())
    frozen = named("a b")
    all_parameters(frozen)[1].requires_grad = False
    saved = stepped("a b").state_dict()
    del saved["state"][1]
    assert report_of(frozen, saved).missing == ()


@pytest.mark.parametrize("change", ["shape", "step"])
def test_a_bad_entry_is_an_error_all_the_same(change: str) -> None:
    saved = stepped("a b").state_dict()
    entry = saved["state"][1]
    entry.update({"shape": {"exp_avg": np.ones(9)}, "step": {"step": -1}}[change])
    other = named("b c")
    before = snapshot(other)
    with pytest.raises(ValueError, match=rf"parameter 1.*{change}"):
        report_of(other, saved)
    assert snapshot(other) == before


def test_names_are_needed_and_are_unique() -> None:
    saved = stepped("a b").state_dict()
    saved["param_groups"][0]["param_names"] = ["a", "a"]
    with pytest.raises(ValueError, match="several parameters of the names"):
        report_of(named("a b"), saved)
    del saved["param_groups"][0]["param_names"]
    with pytest.raises(ValueError, match="no param_names"):
        report_of(named("a b"), saved)
    with pytest.raises(ValueError, match=r"lacks \['c'\] .*strict=False"):
        named("a c").load_state_dict(stepped("a b").state_dict(), match="name")


def chain(lr: float = 0.1) -> fo.GradientTransformation:
    return fo.chain(fo.clip_by_global_norm(1.0), fo.adam(lr))


Chain = optim.from_transformation(chain, "Chain")


def test_a_new_parameter_joins_the_state_of_its_group() -> None:
    opt = stepped("a b", cls=Chain)
    other = named("b c", cls=Chain)
    report = report_of(other, opt.state_dict())
    assert report == (("c",), ("a",), ())
    b, c = all_parameters(other)
    assert exactly(dict(other.state[b])) == by_name(opt)["b"]
    assert not other.state[c]["1.exp_avg"].any()
    run(other, 1)
    assert other.state[c]["1.step"] == 3  # which a group has in common


def test_lbfgs_starts_anew_with_other_parameters() -> None:
    def trained(*groups: str) -> optim.Optimizer:
        opt = named(*groups, cls=optim.LBFGS, max_iter=2)
        model = all_parameters(opt)
        opt.step(lambda tree: sum(jnp.sum(x**2) for x in tree), model)
        return opt

    opt = trained("a b")
    same, other = named("a b", cls=optim.LBFGS), named("a c", cls=optim.LBFGS)
    assert report_of(same, opt.state_dict()) == ((), (), ())
    assert len(same.state) == 1
    assert report_of(other, opt.state_dict()) == (("c",), ("b",), ())
    assert len(other.state) == 0


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("live", [("b a",), ("b a", "c")])
def test_names_in_another_order_are_warned_of(live: tuple[str, ...], strict: bool) -> None:
    groups = ("a b", "c")[: len(live)]
    opt, other = stepped(*groups), named(*live)
    wanted = "at position 0 it has 'a', the optimizer has 'b'.*match='name'"
    with pytest.warns(UserWarning, match=wanted) as caught:
        other.load_state_dict(opt.state_dict(), strict=strict)
    assert caught[0].filename == __file__
    assert other.param_groups[0]["param_names"] == ["a", "b"]  # torch's way
    assert exactly(other.state_dict()["state"]) == exactly(opt.state_dict()["state"])


def test_names_across_groups_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=re.escape("position 1 it has 'b'")):
        named("a c", "b").load_state_dict(stepped("a b", "c").state_dict())


def test_an_error_instead_of_the_warning_changes_nothing() -> None:
    other = named("b a")
    before = snapshot(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            other.load_state_dict(stepped("a b").state_dict())
        other.load_state_dict(stepped("c d").state_dict())  # other names: a renamed model
    assert snapshot(other) != before
