"""`load_state_dict(match="name")`, and state that belongs to no parameter."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import all_parameters, exactly, numbers, run, snapshot
from tests.support.twin import Twin, plain

SIZES = {"w": 3, "b": 2, "scale": 1, "shift": 3}


def named(*names: str, by: str = "tuple") -> list[Any]:
    found = []
    for name in names:
        p = optim.Parameter(numbers(len(name), (SIZES[name],)), name=name)
        found.append((name, p) if by == "tuple" else p)
    return found


def build(*groups: str, by: str = "tuple", **kwargs: Any) -> optim.Optimizer:
    """A group for each text of names."""
    given = [{"params": named(*names.split(), by=by)} for names in groups]
    return optim.Adam(given, **{"lr": 0.1, **kwargs})


def stepped(*groups: str, steps: int = 2) -> optim.Optimizer:
    opt = build(*groups)
    run(opt, steps)
    return opt


def state_by_name(opt: optim.Optimizer) -> Any:
    return {p.name: exactly(dict(opt.state[p])) for p in all_parameters(opt)}


@pytest.mark.parametrize("by", ["tuple", "name of the parameter"])
@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (["w b scale"], ["scale w b"]),
        (["w b", "scale shift"], ["b w", "shift scale"]),
        (["w b", "scale"], ["scale w", "b"]),  # a parameter may be in another group
    ],
)
def test_parameters_may_be_reordered(saved: Any, live: Any, by: str) -> None:
    opt, other = stepped(*saved), build(*live, by=by, lr=7.0)
    other.load_state_dict(opt.state_dict(), match="name")
    wanted = state_by_name(opt)
    assert state_by_name(other) == wanted
    assert len({repr(x) for x in wanted.values()}) == len(wanted)
    assert other.param_groups[0]["lr"] == 0.1


def test_by_position_is_the_default() -> None:
    opt = stepped("w shift")
    other = build("shift w")
    with pytest.warns(UserWarning, match="'w', the optimizer has 'shift'"):
        other.load_state_dict(opt.state_dict())
    assert state_by_name(other)["w"] == state_by_name(opt)["shift"]


def test_the_live_names_stay_in_their_order() -> None:
    opt = build("b w")
    opt.load_state_dict(stepped("w b").state_dict(), match="name")
    assert opt.param_groups[0]["param_names"] == ["b", "w"]
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["b", "w"]
    assert opt.state_dict()["state"][1]["exp_avg"].shape == (3,)


def test_it_goes_on_identically() -> None:
    opt = stepped("w b")
    other = build("b w")
    by_name = {p.name: p for p in all_parameters(other)}
    for p in all_parameters(opt):
        by_name[p.name].data = np.array(p.data)
    other.load_state_dict(opt.state_dict(), match="name")
    for i in range(3):
        for p in all_parameters(opt):
            p.grad = by_name[p.name].grad = numbers(10 * i + p.size, p.shape)
        opt.step()
        other.step()
    for p in all_parameters(opt):
        assert exactly(p.data) == exactly(by_name[p.name].data)
    assert state_by_name(other) == state_by_name(opt)


def refused(opt: optim.Optimizer, saved: Any, match: str = "name") -> str:
    before = snapshot(opt)
    with pytest.raises(ValueError) as caught:
        opt.load_state_dict(saved, match=match)
    assert snapshot(opt) == before
    return str(caught.value)


def test_missing_and_unexpected_names_are_listed() -> None:
    message = refused(stepped("w b scale"), stepped("w b shift").state_dict())
    assert "lacks ['scale'] and has besides ['shift']" in message


def test_another_number_of_parameters_is_refused() -> None:
    message = refused(stepped("w b"), stepped("w b scale").state_dict())
    assert "doesn't match the size of optimizer's group" in message


def test_a_dict_without_names_is_refused() -> None:
    saved = stepped("w b").state_dict()
    del saved["param_groups"][0]["param_names"]
    assert "has no param_names" in refused(stepped("w b"), saved)


def test_an_optimizer_without_names_is_refused() -> None:
    opt = optim.Adam([optim.Parameter(np.ones(3)), optim.Parameter(np.ones(2))])
    refused(opt, stepped("w b").state_dict())


def test_a_name_that_two_parameters_have_is_refused() -> None:
    """Else the state of one of them would be lost."""
    saved = stepped("w shift").state_dict()
    saved["param_groups"][0]["param_names"] = ["w", "w"]
    twice = optim.Adam([("w", p) for _, p in named("w", "shift")])
    assert "w" in refused(twice, saved)


def test_another_shape_under_the_name_is_refused() -> None:
    opt = stepped("w b")
    saved = opt.state_dict()
    saved["param_groups"][0]["param_names"].reverse()
    saved["param_groups"][0] = {**saved["param_groups"][0], "param_names": ["b", "w"]}
    assert "shape" in refused(stepped("w b"), saved)


@pytest.mark.parametrize("match", ["names", "", None])
def test_another_word_is_refused(match: Any) -> None:
    assert "'position' or 'name'" in refused(stepped("w"), stepped("w").state_dict(), match)


@pytest.mark.parametrize("match", ["position", "name"])
def test_state_of_unknown_ids_is_kept(match: str) -> None:
    opt = stepped("w b")
    saved = opt.state_dict()
    extra = {"exp_avg": np.float32([1, 2])}
    saved["state"] = {**saved["state"], 70: extra, "note": {"a": 1}}
    other = build("w b")
    other.load_state_dict(saved, match=match)
    state = other.state_dict()["state"]
    assert list(state) == [0, 1, 70, "note"]
    assert exactly((state[70], state["note"])) == exactly((extra, {"a": 1}))
    assert len(other.state) == 2
    extra["exp_avg"][:] = 0  # it was copied
    run(other, 2)
    again = build("w b")
    again.load_state_dict(copy.deepcopy(other).state_dict(), match=match)
    np.testing.assert_array_equal(again.state_dict()["state"][70]["exp_avg"], [1, 2])


def test_state_of_unknown_ids_is_dropped_by_the_next_load() -> None:
    opt = stepped("w b")
    saved = opt.state_dict()
    opt.load_state_dict({**saved, "state": {**saved["state"], 70: {"exp_avg": 1.0}}})
    opt.load_state_dict(saved)
    assert list(opt.state_dict()["state"]) == [0, 1]


def loaded_with_unknown(twin: Twin, unknown: int) -> None:
    """Both load their state together with an entry that belongs to no parameter."""
    for opt, array in (twin.opt, np.asarray), (twin.reference, twin.torch.tensor):
        saved = opt.state_dict()
        entry = {"step": array(np.float32(9)), "exp_avg": array(np.float32([9]))}
        opt.load_state_dict({**saved, "state": {**saved["state"], unknown: entry}})


def test_state_of_unknown_ids_is_kept_as_in_torch() -> None:
    twin = Twin("Adam", shapes=(((3,), (2,)),))
    twin.step()
    loaded_with_unknown(twin, 70)
    twin.step()
    twin.check(5e-6)


def test_a_new_parameter_takes_the_place_of_an_unknown_id_as_in_torch() -> None:
    """Its own state is saved, not the entry that happened to have its id."""
    twin = Twin("Adam", shapes=(((3,), (2,)),))
    twin.step()
    loaded_with_unknown(twin, 2)
    start = numbers(7, (2,))
    twin.ours.append(optim.Parameter(start))
    twin.theirs.append(twin.torch.tensor(start).requires_grad_())
    twin.opt.add_param_group({"params": twin.ours[2:]})
    twin.reference.add_param_group({"params": twin.theirs[2:]})
    twin.step()
    ours, theirs = plain(twin.opt.state_dict()), plain(twin.reference.state_dict())
    assert float(theirs["state"][2]["step"]) == 1  # what torch saves
    np.testing.assert_allclose(ours["state"][2]["step"], theirs["state"][2]["step"])
    wanted = theirs["state"][2]["exp_avg"]
    np.testing.assert_allclose(ours["state"][2]["exp_avg"], wanted, rtol=5e-6)


def test_the_state_of_a_live_parameter_is_what_is_saved() -> None:
    """Whatever entry without a parameter has that number: no torch is needed to see it."""
    opt = stepped("w")
    saved = opt.state_dict()
    opt.load_state_dict({**saved, "state": {**saved["state"], 1: {"exp_avg": np.zeros(9)}}})
    opt.add_param_group({"params": named("b")})
    run(opt, 1)
    assert opt.state_dict()["state"][1]["exp_avg"].shape == (2,)
