"""Functions that users register around an optimizer's methods: torch's order and torch's rules."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import optimizer as optimizer_module
from tests.support.stateful import cells, exactly, give_gradients, run, snapshot

KINDS = (
    "step_pre",
    "step_post",
    "state_dict_pre",
    "state_dict_post",
    "load_state_dict_pre",
    "load_state_dict_post",
)
over_kinds = pytest.mark.parametrize("kind", KINDS)
with_prepend = pytest.mark.parametrize("kind", KINDS[2:])


def build() -> optim.Optimizer:
    """With gradients for the next step."""
    p, q = cells((3,), (2,))
    opt = optim.SGD([p, q], lr=0.1, momentum=0.9)
    give_gradients([p, q])
    return opt


def theirs() -> tuple[Any, Any]:
    """An optimizer of torch, and the module with the global hooks."""
    torch = pytest.importorskip("torch", reason="compares with torch live")
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return torch.optim.SGD([p], lr=0.1, momentum=0.9), import_module("torch.optim.optimizer")


def register(opt: Any, kind: str, hook: Callable[..., Any], **kwargs: Any) -> Any:
    return getattr(opt, f"register_{kind}_hook")(hook, **kwargs)


def call(opt: Any, kind: str) -> None:
    """Calls the method that hooks of this kind run around."""
    if kind.startswith("step"):
        opt.step()
    elif kind.startswith("load"):
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    else:
        opt.state_dict()


def order(opt: Any, module: Any) -> list[str]:
    """In which order all kinds of hooks ran in a step, a saving and a loading."""
    log: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *args: log.append(f"{name}: {len(args)} arguments")

    with contextlib.ExitStack() as stack:
        for kind in KINDS:
            for name in "local 1", "local 2":
                stack.enter_context(register(opt, kind, note(f"{kind} {name}")))
            if not kind.startswith("step"):
                for name in "first", "before the first":
                    hook = note(f"{kind} {name}")
                    stack.enter_context(register(opt, kind, hook, prepend=True))
        for name in "global 1", "global 2":
            before, after = note(f"step_pre {name}"), note(f"step_post {name}")
            stack.enter_context(module.register_optimizer_step_pre_hook(before))
            stack.enter_context(module.register_optimizer_step_post_hook(after))
        opt.step()
        log.append("saved and loaded")
        opt.load_state_dict(opt.state_dict())
    opt.step()  # all are taken out again
    opt.load_state_dict(opt.state_dict())
    return log


def test_the_order() -> None:
    log = order(build(), optimizer_module)
    assert [name.split(":")[0] for name in log] == [
        "step_pre global 1",
        "step_pre global 2",
        "step_pre local 1",
        "step_pre local 2",
        "step_post local 1",
        "step_post local 2",
        "step_post global 1",
        "step_post global 2",
        "saved and loaded",
        *(
            f"{kind} {name}"
            for kind in KINDS[2:]
            for name in ("before the first", "first", "local 1", "local 2")
        ),
    ]


def test_the_order_is_torchs() -> None:
    assert order(build(), optimizer_module) == order(*theirs())


def test_step_hooks_run_around_the_update() -> None:
    opt = build()
    (p, _) = opt.param_groups[0]["params"]
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append(np.array(p.data)))
    opt.register_step_post_hook(lambda *_: seen.append(np.array(p.data)))
    opt.step()
    np.testing.assert_array_equal(seen[1], p.data)
    assert not np.array_equal(seen[0], seen[1])


def test_global_hooks_run_for_every_optimizer() -> None:
    opts = build(), build()
    seen: list[Any] = []
    pre = optimizer_module.register_optimizer_step_pre_hook(lambda opt, *_: seen.append(opt))
    post = optimizer_module.register_optimizer_step_post_hook(lambda opt, *_: seen.append(opt))
    with pre, post:
        for opt in opts:
            opt.step()
    assert [id(x) for x in seen] == [id(opts[0])] * 2 + [id(opts[1])] * 2


def step_arguments(opt: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """What hooks see of a step's arguments, the optimizer's identity and types aside."""
    seen: list[Any] = []

    def hook(given: Any, args: Any, kwargs: Any) -> None:
        assert given is opt
        assert args[0] is opt
        seen.append((type(args), args[1:], dict(kwargs)))

    with opt.register_step_pre_hook(hook), opt.register_step_post_hook(hook):
        opt.step(*args, **kwargs)
    return seen


def closure() -> float:
    return 1.0


def test_args_include_the_optimizer() -> None:
    assert step_arguments(build()) == [(tuple, (), {})] * 2
    assert step_arguments(build(), closure) == [(tuple, (closure,), {})] * 2


@pytest.mark.parametrize("given", ["nothing", "by position", "by name"])
def test_hooks_see_torchs_arguments(given: str) -> None:
    args = (closure,) if given == "by position" else ()
    kwargs = {"closure": closure} if given == "by name" else {}
    wanted = step_arguments(theirs()[0], *args, **kwargs)
    assert step_arguments(build(), *args, **kwargs) == wanted


def test_a_pre_hook_replaces_the_arguments() -> None:
    opt = build()
    seen: list[Any] = []
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((*args, lambda: "closure"), kwargs))
    opt.register_step_pre_hook(lambda opt, args, kwargs: seen.append(len(args)))
    opt.register_step_post_hook(lambda opt, args, kwargs: seen.append(len(args)))
    assert opt.step() == "closure"
    assert seen == [2, 2]


def test_a_pre_hook_can_name_the_closure() -> None:
    opt = build()
    opt.register_step_pre_hook(lambda opt, args, kwargs: (args, {"closure": lambda: "closure"}))
    assert opt.step() == "closure"


def handed_to_hooks(opt: Any, other: Any) -> list[bool]:
    """Whether hooks are handed the optimizer whose step was called, when args are replaced."""
    seen: list[bool] = []
    opt.register_step_pre_hook(lambda given, args, kwargs: ((other, *args[1:]), kwargs))
    opt.register_step_pre_hook(lambda given, args, kwargs: seen.append(given is opt))
    opt.register_step_post_hook(lambda given, args, kwargs: seen.append(given is opt))
    opt.step()
    return seen


def test_hooks_are_handed_the_optimizer_whatever_args_become() -> None:
    assert handed_to_hooks(build(), build()) == handed_to_hooks(theirs()[0], theirs()[0])


@pytest.mark.parametrize("result", [[1, 2], (1,), (1, 2, 3), 0, False])
def test_another_result_of_a_pre_hook_is_refused(result: Any) -> None:
    opt = build()
    before = snapshot(opt)
    opt.register_step_pre_hook(lambda *_: result)
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    words = f"must return None or a tuple of (new_args, new_kwargs), but got {result}."
    assert str(caught.value).endswith(words)
    assert snapshot(opt) == before


def test_the_words_are_torchs() -> None:
    words = []
    for opt in build(), theirs()[0]:
        opt.register_step_pre_hook(lambda *_: [1, 2])
        with pytest.raises(RuntimeError) as caught:
            opt.step()
        words.append(str(caught.value).split(">", 1)[1])
    assert words[0] == words[1]


def test_the_result_of_a_post_hook_is_ignored() -> None:
    opt = build()
    opt.register_step_post_hook(lambda *_: [1, 2])
    assert opt.step() is None


def test_step_hooks_run_when_there_is_no_gradient() -> None:
    opt = build()
    opt.zero_grad()
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    opt.step()
    assert seen == ["pre", "post"]


def test_post_hooks_do_not_run_if_the_step_raises() -> None:
    opt = build()
    seen: list[str] = []

    def failing() -> None:
        raise ZeroDivisionError

    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    after = optimizer_module.register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    with after, pytest.raises(ZeroDivisionError):
        opt.step(failing)
    assert seen == ["pre"]


def test_hooks_do_not_run_in_a_train_step() -> None:
    opt = build()
    model = opt.param_groups[0]["params"]
    opt.register_step_pre_hook(lambda *_: pytest.fail("ran"))
    before = exactly(model)
    opt.make_step(lambda params: params[0].sum(), model)()
    assert exactly(model) != before


@over_kinds
def test_a_handle_takes_the_hook_out(kind: str) -> None:
    opt = build()
    seen: list[str] = []
    first = register(opt, kind, lambda *_: seen.append("first"))
    second = register(opt, kind, lambda *_: seen.append("second"))
    call(opt, kind)
    first.remove()
    first.remove()  # no error
    call(opt, kind)
    with second as entered:
        assert entered is second
        call(opt, kind)
    call(opt, kind)
    assert seen == ["first", "second", "second", "second"]


@over_kinds
def test_leaving_with_an_exception_takes_the_hook_out(kind: str) -> None:
    opt = build()
    with pytest.raises(ZeroDivisionError), register(opt, kind, lambda *_: pytest.fail("ran")):
        raise ZeroDivisionError
    call(opt, kind)


@with_prepend
def test_a_prepended_hook_can_be_taken_out(kind: str) -> None:
    opt = build()
    seen: list[str] = []
    register(opt, kind, lambda *_: seen.append("last"))
    middle = register(opt, kind, lambda *_: seen.append("middle"), prepend=True)
    register(opt, kind, lambda *_: seen.append("first"), prepend=True)
    middle.remove()
    call(opt, kind)
    assert seen == ["first", "last"]


@over_kinds
def test_a_hook_can_take_itself_out(kind: str) -> None:
    opt = build()
    seen: list[str] = []

    def once(*_: Any) -> None:
        seen.append("once")
        handle.remove()

    handle = register(opt, kind, once)
    register(opt, kind, lambda *_: seen.append("always"))
    call(opt, kind)
    call(opt, kind)
    assert seen == ["once", "always", "always"]


def test_a_global_hook_can_take_itself_out() -> None:
    opt = build()
    seen: list[str] = []

    def once(*_: Any) -> None:
        seen.append("once")
        handle.remove()

    handle = optimizer_module.register_optimizer_step_pre_hook(once)
    with handle:
        opt.step()
        opt.step()
    assert seen == ["once"]


@over_kinds
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda opt: pickle.loads(pickle.dumps(opt))]
)
def test_copies_have_no_hooks(duplicate: Any, kind: str) -> None:
    opt = build()
    seen: list[str] = []
    register(opt, kind, lambda *_: seen.append("ran"))  # a lambda cannot be pickled either
    twin = duplicate(opt)
    call(twin, kind)
    assert seen == []
    register(twin, kind, lambda *_: seen.append("of the copy"))
    call(opt, kind)
    call(twin, kind)
    assert seen == ["ran", "of the copy"]


def test_a_state_dict_post_hook_replaces_the_dict() -> None:
    opt = build()
    opt.step()
    plain = opt.state_dict()
    seen: list[Any] = []
    opt.register_state_dict_post_hook(lambda opt, saved: {**saved, "note": 1})
    opt.register_state_dict_post_hook(lambda opt, saved: seen.append(list(saved)))  # None keeps it
    opt.register_state_dict_post_hook(lambda opt, saved: {**saved, "note": saved["note"] + 1})
    assert exactly(opt.state_dict()) == exactly({**plain, "note": 2})
    assert seen == [["state", "param_groups", "note"]]


def test_a_state_dict_pre_hook_comes_before_the_dict_is_made() -> None:
    opt = build()
    opt.register_state_dict_pre_hook(lambda opt: opt.param_groups[0].update(lr=7.0))
    assert opt.state_dict()["param_groups"][0]["lr"] == 7.0


def test_a_load_pre_hook_replaces_the_dict() -> None:
    opt = build()
    saved = opt.state_dict()

    def with_lr(opt: Any, state_dict: Any) -> Any:
        groups = [{**group, "lr": 7.0} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    opt.register_load_state_dict_pre_hook(with_lr)
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["lr"] == 7.0
    assert saved["param_groups"][0]["lr"] == 0.1


def test_a_load_pre_hook_may_change_its_own_copy() -> None:
    """A shallow one, as in torch."""
    opt = build()
    run(opt, 1)
    saved = opt.state_dict()
    opt.register_load_state_dict_pre_hook(lambda opt, state_dict: state_dict.update(state={}))
    opt.load_state_dict(saved)
    assert len(opt.state) == 0
    assert len(saved["state"]) == 2


def test_a_load_post_hook_sees_what_was_loaded() -> None:
    opt = build()
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 7.0
    seen: list[float] = []
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(opt.param_groups[0]["lr"]))
    opt.load_state_dict(saved)
    assert seen == [7.0]


def test_load_post_hooks_do_not_run_if_loading_is_refused() -> None:
    opt = build()
    opt.register_load_state_dict_post_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict({"state": {}, "param_groups": []})
