"""`opt.state` can be written, in all of torch's ways; what cannot be a state changes nothing."""

from __future__ import annotations

import collections
import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.stateful.test_interrupts import instructions, interrupted_at
from tests.support.stateful import (
    all_parameters,
    cells,
    exactly,
    give_gradients,
    numbers,
    progress,
    run,
    snapshot,
)

Written = Callable[[optim.Optimizer, optim.Parameter], Any]


def adam(steps: int = 2, **options: Any) -> optim.Optimizer:
    p, q = cells((3,), (2, 2))
    p.name = "w"
    opt = optim.Adam([p, q], lr=0.1, **options)
    run(opt, steps)
    return opt


def chain(lr: float = 0.1) -> fo.GradientTransformation:
    return fo.chain(fo.clip_by_global_norm(1.0), fo.adam(lr))


Chain = optim.from_transformation(chain, "Chain")
LAMB = optim.from_transformation(fo.lamb, "Lamb")


def assign(opt: optim.Optimizer, entries: Any) -> None:
    opt.state = entries


FORGETS: dict[str, Written] = {
    "del": lambda opt, p: opt.state.__delitem__(p),
    "pop": lambda opt, p: opt.state.pop(p),
    "clear": lambda opt, p: opt.state.clear(),
    "an empty dict": lambda opt, p: opt.state.__setitem__(p, {}),
    "its own clear": lambda opt, p: opt.state[p].clear(),
    "assigned": lambda opt, p: assign(opt, collections.defaultdict(dict)),
    "__setstate__": lambda opt, p: opt.__setstate__({"state": collections.defaultdict(dict)}),
}


@pytest.mark.parametrize("way", FORGETS)
def test_a_parameter_that_is_forgotten_starts_anew(way: str) -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    FORGETS[way](opt, p)
    assert p not in opt.state
    assert dict(opt.state[p]) == {}
    fresh = optim.Adam([optim.Parameter(np.array(p.data))], lr=0.1)
    run(fresh, 1, start=7)
    run(opt, 1, start=7)
    np.testing.assert_array_equal(p.data, fresh.params[0])
    assert opt.state[p]["step"] == 1


WRITES: dict[str, Written] = {
    "item": lambda opt, p: opt.state[p].__setitem__("exp_avg", jnp.ones(3)),
    "numpy": lambda opt, p: opt.state[p].__setitem__("exp_avg", np.ones(3)),
    "update": lambda opt, p: opt.state[p].update(exp_avg=jnp.ones(3)),
    "update of all": lambda opt, p: opt.state.update({p: {**opt.state[p], "exp_avg": np.ones(3)}}),
    "|=": lambda opt, p: opt.state[p].__ior__({"exp_avg": jnp.ones(3)}),
    "a whole dict": lambda opt, p: opt.state.__setitem__(p, opt.state[p] | {"exp_avg": np.ones(3)}),
    "the whole state": lambda opt, p: assign(
        opt, {k: {**x, "exp_avg": jnp.ones(k.shape)} for k, x in opt.state.items()}
    ),
}


@pytest.mark.parametrize("way", WRITES)
def test_what_is_written_is_what_steps_go_on_from(way: str) -> None:
    opt, other = adam(), adam()
    p, q = all_parameters(opt)
    WRITES[way](opt, p)
    if way == "the whole state":
        opt.state[q]["exp_avg"] = other.state[all_parameters(other)[1]]["exp_avg"]
    saved = other.state_dict()
    saved["state"][0]["exp_avg"] = np.ones(3, np.float32)
    other.load_state_dict(saved)
    assert exactly(opt.state_dict()) == exactly(other.state_dict())
    for x in opt, other:
        run(x, 2, start=4)
    assert progress(opt) == progress(other)


def test_a_count_can_be_written() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    opt.state[p]["step"] = 5
    opt.state[p]["step"] += 1
    assert opt.state[p]["step"].dtype == jnp.float32
    run(opt, 1)
    assert opt.state[p]["step"] == 7


def test_other_numbers_can_be_written() -> None:
    (p,) = cells((3,))
    opt = optim.NAdam([p])
    run(opt, 1)
    opt.state[p]["mu_product"] = 0.25
    assert opt.state[p]["mu_product"] == 0.25


def test_a_count_beyond_float32_survives_another_write() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**24 + 1
    opt.load_state_dict(saved)
    opt.state[p]["exp_avg"] = jnp.ones(3)
    assert opt._memory.records[p].step == 2**24 + 1  # type: ignore[attr-defined]


def test_writing_begins_the_state_of_an_unseen_parameter() -> None:
    """Name by name, as in torch; a step between would miss the others."""
    opt, other = adam(), adam(0)
    for p, q in zip(all_parameters(opt), all_parameters(other), strict=True):
        q.data = np.array(p.data)
        state = other.state[q]
        for name, value in opt.state[p].items():
            state[name] = value
        assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
        assert q in other.state
    for x in opt, other:
        run(x, 1, start=4)
    assert progress(opt) == progress(other)


@pytest.mark.parametrize("name", ["exp_avg", "step"])
def test_what_was_taken_out_is_missed_at_the_next_step(name: str) -> None:
    """As in torch: a KeyError; nothing is changed by it."""
    opt = adam()
    p, _ = all_parameters(opt)
    del opt.state[p][name]
    assert name not in opt.state[p]
    assert name not in opt.state_dict()["state"][0]
    give_gradients(all_parameters(opt))
    before = snapshot(opt)
    with pytest.raises(KeyError, match=name):
        opt.step()
    assert snapshot(opt) == before
    opt.state[p][name] = 3 if name == "step" else jnp.zeros(3)
    opt.step()
    with pytest.raises(KeyError, match="exp_avg_sqr"):
        del opt.state[p]["exp_avg_sqr"]


BAD: dict[str, tuple[str, Any, type[Exception], str]] = {
    "shape": ("exp_avg", jnp.ones(4), ValueError, r"has shape \(4,\)"),
    "dtype": ("exp_avg", np.array(["a", "b", "c"]), TypeError, "dtype"),
    "complex": ("exp_avg", np.ones(3, np.complex64), TypeError, "complex64"),
    "step": ("step", -1, ValueError, "count of updates"),
    "half a step": ("step", 1.5, ValueError, "count of updates"),
    "nan": ("step", float("nan"), ValueError, "count of updates"),
    "no number": ("step", "5", TypeError, "number"),
    "unknown": ("note", 5, ValueError, r"note has shape \(\)"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_a_state_changes_nothing(bad: str) -> None:
    name, value, error, message = BAD[bad]
    opt = adam()
    p, q = all_parameters(opt)
    before = snapshot(opt)
    good = {**opt.state[q], "exp_avg": jnp.ones((2, 2))}
    for write in (
        lambda: opt.state[p].__setitem__(name, value),
        lambda: opt.state[p].update({"exp_avg_sq": jnp.ones(3), name: value}),
        lambda: opt.state.update({q: good, p: {**opt.state[p], name: value}}),
    ):
        with pytest.raises(error, match=message):
            write()
        assert snapshot(opt) == before
        assert "Parameter('w'" in repr(p)


def test_a_state_that_is_no_dict_is_refused() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    with pytest.raises(TypeError, match="should be a dict"):
        opt.state[p] = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="should be a dict"):
        opt.state = {p: [1]}  # type: ignore[dict-item]


def test_a_parameter_of_no_group_is_refused() -> None:
    opt = adam()
    (stranger,) = cells((3,))
    with pytest.raises(ValueError, match="no group of this optimizer holds it"):
        opt.state[stranger] = dict(opt.state[all_parameters(opt)[0]])
    with pytest.raises(KeyError):
        del opt.state[stranger]
    assert opt.state.pop(stranger, 7) == 7
    with pytest.raises(KeyError):
        opt.state.pop(stranger)


def test_single_entries_are_taken_out_as_of_a_dict() -> None:
    opt = adam()
    p, q = all_parameters(opt)
    assert opt.state[p].popitem()[0] == "exp_avg_sq"
    assert opt.state[p].pop("exp_avg").shape == (3,)
    assert opt.state[p].pop("exp_avg", 5) == 5
    assert list(opt.state[p]) == ["step"]
    assert opt.state.popitem()[0] is q
    assert opt.state.popitem() == (p, {"step": 2.0})
    with pytest.raises(KeyError):
        opt.state.popitem()


def test_setdefault_is_a_dicts() -> None:
    opt = adam()
    p, q = all_parameters(opt)
    kept = opt.state[p]["exp_avg"]
    assert opt.state[p].setdefault("exp_avg", jnp.zeros(3)) is kept
    entry = opt.state.pop(q)
    assert dict(opt.state.setdefault(q)) == {}
    assert q not in opt.state
    assert opt.state.setdefault(q, entry)["step"] == 2
    assert opt.state.setdefault(p, {})["step"] == 2


def test_a_parameter_is_replaced_by_a_smaller_one() -> None:
    """The way of those who prune: its state is changed and goes to the new one."""
    opt = adam()
    p, q = all_parameters(opt)
    old = opt.state.pop(p)
    old["exp_avg"], old["exp_avg_sq"] = old["exp_avg"][:2], old["exp_avg_sq"][:2]
    new = optim.Parameter(p.data[:2])
    opt.param_groups[0]["params"][0] = new
    opt.state[new] = old
    assert list(opt.state_dict()["state"]) == [1, 0]
    left = weakref.ref(p)
    del p, old
    gc.collect()
    assert left() is None  # nothing holds the memory of what is no longer there
    run(opt, 1)
    assert opt.state[new]["step"] == 3
    assert [x.shape for x in opt.params] == [(2,), (2, 2)]
    kept = opt.state[q]
    del opt.state[q]
    kept["exp_avg"] = jnp.zeros(7)  # a plain dict: nothing is written, nothing is refused
    assert kept["step"] == 3
    assert q not in opt.state


def test_a_view_of_the_state_stays_live() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    state = opt.state
    run(opt, 1)
    assert state[p]["step"] == 3
    held = state[p]
    run(opt, 1)
    held["exp_avg"] = jnp.ones(3)  # into the state of now
    assert held["step"] == 4
    opt.load_state_dict(adam(1).state_dict())
    assert state[p]["step"] == 1
    assert state == opt.state or list(state) == list(opt.state)


def test_copies_of_the_state_are_plain_dicts() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    before = progress(opt)
    for plain in (
        copy.deepcopy(opt.state[p]),
        pickle.loads(pickle.dumps(opt.state[p])),
        opt.state[p].copy(),
    ):
        assert type(plain) is dict
        assert exactly(plain) == exactly(dict(opt.state[p]))
        plain["exp_avg"] = 5
    assert type(copy.deepcopy(opt.state)) is dict
    assert type(copy.copy(opt.state)) is dict
    assert len(pickle.loads(pickle.dumps(opt.state))) == 2
    assert progress(opt) == before


def test_a_hook_after_loading_may_change_the_state() -> None:
    opt = adam(0)

    def doubled(loaded: optim.Optimizer) -> None:
        for p in all_parameters(loaded):
            loaded.state[p]["exp_avg"] = 2 * loaded.state[p]["exp_avg"]

    opt.register_load_state_dict_post_hook(doubled)
    saved = adam().state_dict()
    opt.load_state_dict(saved)
    p, _ = all_parameters(opt)
    np.testing.assert_array_equal(opt.state[p]["exp_avg"], 2 * saved["state"][0]["exp_avg"])
    run(opt, 1)
    assert opt.state[p]["step"] == 3


def test_a_hook_of_a_step_may_change_the_state() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    opt.register_step_post_hook(lambda own, args, kwargs: own.state[p].update(step=9))
    run(opt, 1)
    assert opt.state[p]["step"] == 9
    run(opt, 1)
    assert opt.state[p]["step"] == 9


def test_what_was_read_before_a_write_stays() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    given = jnp.ones(3)
    opt.state[p]["exp_avg"] = given
    run(opt, 2)
    np.testing.assert_array_equal(given, np.ones(3))


def test_momentum_can_be_written_and_forgotten() -> None:
    (p,) = cells((3,))
    opt = optim.SGD([p], lr=0.5, momentum=0.5)
    start = np.array(p.data)
    opt.state[p]["momentum_buffer"] = jnp.ones(3)
    p.grad = jnp.ones(3)
    opt.step()
    np.testing.assert_allclose(p.data, start - 0.75, rtol=1e-6)
    opt.state[p]["momentum_buffer"] = None  # as of old checkpoints: none
    assert p not in opt.state
    p.grad = jnp.ones(3)
    opt.step()
    np.testing.assert_allclose(opt.state[p]["momentum_buffer"], np.ones(3))


def test_nothing_is_written_while_the_state_is_given_away() -> None:
    opt = adam()
    p, _ = all_parameters(opt)
    opt.to_functional()
    with pytest.raises(RuntimeError, match="given away"):
        opt.state[p]["step"] = 5
    with pytest.raises(RuntimeError, match="given away"):
        opt.state.clear()


def grouped() -> optim.Optimizer:
    opt = Chain(cells((3,), (2, 2)), lr=0.1)
    run(opt, 2)
    return opt


def test_the_state_of_a_group_can_be_written() -> None:
    opt = grouped()
    p, q = all_parameters(opt)
    before = exactly(dict(opt.state[q]))
    (moment,) = (name for name in opt.state[p] if name.endswith("exp_avg"))
    opt.state[p][moment] = jnp.ones(3)
    np.testing.assert_array_equal(opt.state[p][moment], np.ones(3))
    assert exactly(dict(opt.state[q])) == before
    (count,) = (name for name in opt.state[p] if name.endswith("step"))
    opt.state[q][count] = 5  # which all of them have in common
    assert opt.state[p][count] == opt.state[q][count] == 5
    run(opt, 1)
    assert opt.state[p][count] == 6


def test_the_state_of_a_group_is_forgotten_as_a_whole() -> None:
    opt = grouped()
    p, q = all_parameters(opt)
    before = snapshot(opt)
    with pytest.raises(ValueError, match=r"one state for a group as a whole.*opt\.state\.clear"):
        del opt.state[p]
    with pytest.raises(ValueError, match="has no \\['note'\\] in its state"):
        opt.state[p]["note"] = 5
    with pytest.raises(ValueError, match="shape"):
        opt.state[p].update({name: jnp.ones(9) for name in opt.state[p]})
    assert snapshot(opt) == before
    entries = opt.state.copy()
    opt.state.clear()
    assert len(opt.state) == 0
    with pytest.raises(ValueError, match=r"Write that of all its parameters at once"):
        opt.state[p] = entries[p]
    opt.state.update({q: entries[q], p: entries[p]})
    assert snapshot(opt) == before


def test_the_state_of_lbfgs_can_be_written() -> None:
    p, q = cells((3,), (2, 2))
    opt = optim.LBFGS([p, q], max_iter=3)

    def loss_fn(model: Any) -> Any:
        return sum(jnp.sum((x - 1) ** 4) for x in model)

    opt.step(loss_fn, [p, q])
    before = snapshot(opt)
    with pytest.raises(ValueError, match="under the first one"):
        opt.state[q]["n_iter"] = 5
    with pytest.raises(ValueError, match="L-BFGS has no"):
        opt.state[p]["note"] = 5
    with pytest.raises(ValueError, match="lacks"):
        opt.state[p] = {"n_iter": 3}
    with pytest.raises(ValueError, match="shape"):
        opt.state[p]["d"] = jnp.ones(3)
    assert snapshot(opt) == before
    opt.state[p]["func_evals"] = 50
    assert opt.state[p]["func_evals"] == 50
    opt.step(loss_fn, [p, q])
    assert opt.state[p]["func_evals"] > 50
    del opt.state[p]
    assert len(opt.state) == 0
    opt.step(loss_fn, [p, q])
    assert opt.state[p]["n_iter"] > 0


def replaced(way: str) -> tuple[optim.Optimizer, optim.Parameter]:
    opt = adam()
    p, _ = all_parameters(opt)
    if way == "replaced":
        opt.param_groups[0]["params"] = [optim.Parameter(numbers(5, (4,)))]
    elif way == "removed":
        opt.param_groups[0]["params"].remove(p)
    else:
        opt.add_param_group({"params": [optim.Parameter(numbers(5, (4,)))]})
        del opt.param_groups[0]
    return opt, p


@pytest.mark.parametrize("way", ["replaced", "removed", "its group is gone"])
def test_a_parameter_that_left_its_group_can_be_forgotten(way: str) -> None:
    opt, p = replaced(way)
    assert p in opt.state
    with pytest.raises(KeyError, match=r"no group holds it any more.*del opt\.state\[p\]"):
        opt.state_dict()
    for gone in [x for x in opt.state if x not in all_parameters(opt)]:
        del opt.state[gone]
    saved = opt.state_dict()
    assert len(saved["param_groups"][0]["params"]) == len(all_parameters(opt))
    opt.load_state_dict(saved)


@pytest.mark.parametrize("way", ["replaced", "removed", "its group is gone"])
def test_all_else_works_when_a_parameter_has_left(way: str) -> None:
    opt, p = replaced(way)
    left = np.array(p.data)
    for own in opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        run(own, 1)
        (x,) = own.params
        assert np.array_equal(x, all_parameters(own)[0].data)
        own.step([jnp.ones(x.shape)])
        own.zero_grad()
        assert all_parameters(own)[0].grad is None
        assert own.state[all_parameters(own)[0]]["step"] in (2, 4)
        pair, params, state = own.to_functional()
        updates, state = pair.update([jnp.ones(x.shape)], state, params)
        own.from_functional(fo.apply_updates(params, updates), state)
    np.testing.assert_array_equal(p.data, left)


def test_a_group_of_a_pair_starts_anew_after_its_parameters_changed() -> None:
    opt = grouped()
    p, q = all_parameters(opt)
    opt.param_groups[0]["params"] = [q]
    give_gradients([q])
    with pytest.raises(ValueError, match=r"changed after its first step.*opt\.state\.clear\(\)"):
        opt.step()
    with pytest.raises(KeyError, match="no group holds it any more"):
        opt.state_dict()
    del opt.state[p]
    opt.step()
    assert list(opt.state_dict()["state"]) == [0]


def test_lbfgs_starts_anew_after_its_parameters_changed() -> None:
    p, q = cells((3,), (2, 2))
    opt = optim.LBFGS([p, q], max_iter=2)
    opt.step(lambda model: sum(jnp.sum(x**2) for x in model), [p, q])
    opt.param_groups[0]["params"] = [q]
    with pytest.raises(ValueError, match=r"changed after the first step.*opt\.state\.clear\(\)"):
        opt.step(lambda model: jnp.sum(model[0] ** 2), [q])
    opt.state.clear()
    opt.step(lambda model: jnp.sum(model[0] ** 2), [q])
    assert list(opt.state_dict()["state"]) == [0]


WITH_DEFAULTS = (
    ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    ("NAdam", "RAdam", "RMSprop", "Rprop", "Muon", "LBFGS", "Lamb", "Chain"),
)
CLASSES: dict[str, dict[str, Any]] = {
    **{name: {} for names in WITH_DEFAULTS for name in names},
    "SGD": {"momentum": 0.9},
}


def made(name: str, tree: Any) -> optim.Optimizer:
    own = {"Lamb": LAMB, "Chain": Chain}
    return (own.get(name) or getattr(optim, name))(tree, **CLASSES[name])


@pytest.mark.parametrize("name", CLASSES)
def test_an_untouched_loan_leaves_nothing_behind(name: str) -> None:
    opt = made(name, cells((2, 3), (3, 2)))
    before = snapshot(opt)
    _, params, state = opt.to_functional()
    opt.from_functional(params, state)
    assert snapshot(opt) == before


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("LBFGS", "Lamb")])
def test_a_loan_that_fails_leaves_nothing_behind(name: str) -> None:
    opt = made(name, cells((2, 3), (3, 2)))
    before = snapshot(opt)
    lr = opt.param_groups[0]["lr"]
    opt.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError, match="should be a number"):
        opt.to_functional()
    opt.param_groups[0]["lr"] = lr
    assert snapshot(opt) == before
    opt.to_functional()


def test_decay_is_what_adamw_makes_it_after_copies_and_loading() -> None:
    """As in torch: a live group may say otherwise until then."""
    p, q = cells((3,), (3,))

    def build() -> optim.Optimizer:
        return optim.AdamW([{"params": [p], "decoupled_weight_decay": False}, {"params": [q]}])

    opt = build()
    saved = opt.state_dict()
    assert [g["decoupled_weight_decay"] for g in opt.param_groups] == [False, True]
    with pytest.raises(
        ValueError, match=r"'decoupled_weight_decay'\] is False, but that of adamw is"
    ):
        opt.to_functional()
    opt.load_state_dict(saved)
    for own in opt, copy.deepcopy(build()), pickle.loads(pickle.dumps(build())):
        assert [g["decoupled_weight_decay"] for g in own.param_groups] == [True, True]
    assert build().param_groups[0]["decoupled_weight_decay"] is False


def write_two(opt: optim.Optimizer) -> None:
    p, q = all_parameters(opt)
    opt.state.update({p: opt.state[p] | {"exp_avg": jnp.ones(3), "step": 9}, q: {}})


def forget_all(opt: optim.Optimizer) -> None:
    opt.state.clear()


@pytest.mark.parametrize("change", [write_two, forget_all])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_leaves_the_state_as_before_or_as_after(change: Any) -> None:
    opt = adam()
    saved = opt.state_dict()
    before = progress(opt)
    change(opt)
    after = progress(opt)
    opt.load_state_dict(saved)
    usual = instructions(lambda: change(opt), ours=True)
    for instruction in range(1, usual + 1, max(1, usual // 60)):
        opt.load_state_dict(saved)
        interrupted_at(instruction, lambda: change(opt), ours=True)
        assert progress(opt) in (before, after)
    opt.load_state_dict(saved)
    change(opt)
    assert progress(opt) == after
