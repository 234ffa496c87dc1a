"""A class with a step of its own, written as one writes it for torch."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import lr_scheduler
from functorch_optim.stateful.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
    required,
)
from tests.support.stateful import all_parameters, cells, exactly, give_gradients, progress, run


class MyAdam(optim.Optimizer):
    """Adam as a loop over groups and parameters."""

    def __init__(self, params: Any, lr: Any = 1e-3, betas: Any = (0.9, 0.999), eps: Any = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["exp_avg"] = jnp.zeros_like(p.data)
                    state["exp_avg_sq"] = jnp.zeros_like(p.data)
                state["step"] += 1
                state["exp_avg"] = b1 * state["exp_avg"] + (1 - b1) * p.grad
                state["exp_avg_sq"] = b2 * state["exp_avg_sq"] + (1 - b2) * p.grad**2
                m = state["exp_avg"] / (1 - b1 ** state["step"])
                v = state["exp_avg_sq"] / (1 - b2 ** state["step"])
                p.data -= group["lr"] * m / (jnp.sqrt(v) + group["eps"])
        return loss


class NeedsLr(optim.Optimizer):
    """Plain descent, whose lr has no default."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": required})

    def step(self, closure: Any = None) -> None:
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


class Halved(optim.SGD):
    """A class of this package with another step around its own."""

    def step(self, closure: Any = None) -> Any:
        """Two steps, then half of everything."""
        super().step(closure)
        loss = super().step(closure)
        for p in all_parameters(self):
            p.data = p.data / 2
        return loss


class Mending(MyAdam):
    """A class that adds what old checkpoints lack, where torch's do."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("flag", False)


def build(cls: type[optim.Optimizer] = MyAdam, **options: Any) -> optim.Optimizer:
    p, q, r = cells((3,), (2, 2), ())
    return cls([{"params": [p, q]}, {"params": [r], "lr": 0.05}], lr=0.1, **options)


def test_it_trains_as_ours_does() -> None:
    own, ours = build(), build(optim.Adam)
    for opt in own, ours:
        run(opt, 3)
        opt.param_groups[0]["lr"] = 0.01
        run(opt, 2, start=3)
    for x, y in zip(all_parameters(own), all_parameters(ours), strict=True):
        np.testing.assert_allclose(x.data, y.data, rtol=2e-5, atol=1e-6)
    p = all_parameters(own)[0]
    assert own.state[p]["step"] == 5
    assert type(own.state) is defaultdict
    assert type(own.state[p]) is dict


def test_parameters_without_gradients_and_closures_are_its_own_matter() -> None:
    opt = build()
    p, q, _ = all_parameters(opt)
    give_gradients([p])
    assert opt.step(lambda: 5.0) == 5.0
    assert list(opt.state) == [p]
    assert list(opt.state_dict()["state"]) == [0]
    assert opt.state[q] == {}  # creates it, as torch's does
    assert list(opt.state_dict()["state"]) == [0, 1]


def test_groups_defaults_and_required_values_are_torchs() -> None:
    p, q = cells((3,), (3,))
    with pytest.raises(ValueError, match="of required optimization parameter lr"):
        NeedsLr([p])
    opt = NeedsLr([{"params": [p], "lr": 0.5}])
    with pytest.raises(ValueError, match="of required optimization parameter lr"):
        opt.add_param_group({"params": [q]})
    opt.add_param_group({"params": [q], "lr": 0.25})
    before = [np.array(x.data) for x in (p, q)]
    p.grad = q.grad = jnp.ones(3)
    opt.step()
    np.testing.assert_allclose(p.data, before[0] - 0.5)
    np.testing.assert_allclose(q.data, before[1] - 0.25)
    opt.zero_grad()
    assert p.grad is None
    assert repr(build()).startswith("MyAdam (\nParameter Group 0\n    betas: (0.9, 0.999)")
    tree = NeedsLr([{"params": {"a": p, "b": q}, "lr": 1.0}]).params
    assert set(tree[0]) == {"a", "b"}


@pytest.mark.parametrize("cls", [MyAdam, Halved])
def test_hooks_run_once_around_its_step(cls: Any) -> None:
    opt = build(cls)
    other = build(cls)
    seen: list[str] = []
    closure = lambda: seen.append("closure")  # noqa: E731  # its return value is the loss
    handles = [
        opt.register_step_pre_hook(lambda *given: seen.append("pre")),
        opt.register_step_post_hook(lambda *given: seen.append("post")),
        register_optimizer_step_pre_hook(lambda *given: seen.append("any pre")),
        register_optimizer_step_post_hook(lambda *given: seen.append("any post")),
    ]
    give_gradients(all_parameters(opt))
    opt.step(closure)
    for handle in handles:
        handle.remove()
    closures = ["closure"] * (2 if cls is Halved else 1)
    assert seen == ["any pre", "pre", *closures, "post", "any post"]
    other.step()
    assert len(seen) == 4 + len(closures)


def test_a_hook_may_give_its_step_other_arguments() -> None:
    opt = build()
    give_gradients(all_parameters(opt))
    handle = opt.register_step_pre_hook(lambda own, args, kwargs: ((own, lambda: 7.0), {}))
    assert opt.step() == 7.0
    handle.remove()
    opt.register_step_pre_hook(lambda own, args, kwargs: 5)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        opt.step()


def test_hooks_run_around_a_step_that_came_from_elsewhere() -> None:
    """From a class beside it; put on the class later; around another class's."""
    seen: list[str] = []

    class Beside:
        def step(self, closure: Any = None) -> str:
            return "beside"

    class Mixed(Beside, optim.Optimizer):  # type: ignore[misc]
        pass

    opt = Mixed(cells((3,)), {})
    opt.register_step_pre_hook(lambda *given: seen.append("hook"))
    assert opt.step() == "beside"
    Mixed.step = lambda self, closure=None: "later"  # type: ignore[method-assign]
    again = Mixed(cells((3,)), {})
    again.register_step_pre_hook(lambda *given: seen.append("again"))
    assert again.step() == "later"
    assert seen == ["hook", "again"]
    assert not hasattr(Beside.step, "_hooked")


def test_a_saved_state_goes_on_identically() -> None:
    opt, other = build(), build(eps=1.0)
    run(opt, 2)
    for p, q in zip(all_parameters(opt), all_parameters(other), strict=True):
        q.data = np.array(p.data)
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    assert other.load_state_dict(saved) is None
    for x in opt, other:
        run(x, 2, start=4)
    assert progress(opt) == progress(other)
    assert [g["lr"] for g in other.param_groups] == [0.1, 0.05]


class Pair(NamedTuple):
    """Something of one's own in a state."""

    left: Any
    right: Any


def test_a_state_may_hold_anything() -> None:
    """Buffers of the parameter's shape are cast to its dtype, as in torch; all else stays."""
    p, q = cells((3,), (2,), dtype=np.float16)
    opt = MyAdam([p, q])
    opt.state[p] = {
        "step": jnp.ones(3, jnp.int32),
        "wide": jnp.ones(3),
        "numpy": np.arange(3.0),
        "other shape": jnp.ones(5),
        "list": [jnp.ones(3), 2, "three"],
        "pair": Pair(jnp.zeros(3), None),
        "dict": {"inner": np.ones(3), "n": 5},
        "none": None,
    }
    opt.state["all"] = {"count": 3}  # type: ignore[index]
    opt.state["plain"] = 7  # type: ignore[index,assignment]
    saved = opt.state_dict()
    assert set(saved["state"]) == {0, "all", "plain"}
    other = MyAdam(cells((3,), (2,), dtype=np.float16))
    other.load_state_dict(saved)
    loaded = other.state[all_parameters(other)[0]]
    assert [loaded[k].dtype for k in ("step", "wide", "numpy", "other shape")] == [
        jnp.int32,
        jnp.float16,
        jnp.float16,
        jnp.float32,
    ]
    assert loaded["list"][0].dtype == jnp.float16
    assert loaded["list"][1:] == [2, "three"]
    assert isinstance(loaded["pair"], Pair)
    assert loaded["pair"].left.dtype == loaded["dict"]["inner"].dtype == jnp.float16
    assert loaded["none"] is None
    assert other.state["all"] == {"count": 3}  # type: ignore[index]
    assert other.state["plain"] == 7  # type: ignore[index]
    del other.state["all"]  # type: ignore[arg-type]
    assert set(other.state_dict()["state"]) == {0, "plain"}
    loaded["list"].append(4)
    assert len(saved["state"][0]["list"]) == 3


def test_a_complex_buffer_for_a_real_parameter_changes_nothing() -> None:
    opt = build()
    run(opt, 1)
    before = progress(opt)
    saved = opt.state_dict()
    saved["state"][0]["exp_avg"] = np.ones(3, np.complex64)
    with pytest.raises(TypeError, match="complex64"):
        opt.load_state_dict(saved)
    assert progress(opt) == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_go_on_by_themselves(copied: Callable[[Any], Any]) -> None:
    opt = build()
    run(opt, 2)
    other = copied(opt)
    before = progress(opt)
    assert progress(other) == before
    run(other, 1, start=5)
    assert progress(opt) == before
    seen: list[str] = []
    other.register_step_pre_hook(lambda *given: seen.append("hook"))
    other.step()
    assert seen == ["hook"]
    run(opt, 1, start=5)
    opt.step()
    assert progress(opt) == progress(other)


def test_a_class_may_mend_what_it_loads() -> None:
    opt = build(Mending)
    hooked: list[str] = []
    opt.register_step_pre_hook(lambda *given: hooked.append("hook"))
    opt.load_state_dict(build().state_dict())
    assert [g["flag"] for g in opt.param_groups] == [False, False]
    opt.step()
    assert hooked == ["hook"]
    assert copy.deepcopy(opt).param_groups[0]["flag"] is False


def test_the_state_is_set_anew_in_torchs_ways() -> None:
    opt = build()
    run(opt, 1)
    kept = opt.state_dict()["state"]
    opt.state = defaultdict(dict)
    assert opt.state_dict()["state"] == {}
    run(opt, 1)
    opt.__setstate__({"state": defaultdict(dict)})
    assert len(opt.state) == 0
    p = all_parameters(opt)[0]
    opt.state[p] = kept[0]
    assert opt.state[p]["step"] == 1
    opt.state.clear()
    assert p not in opt.state


def test_schedulers_know_its_steps() -> None:
    opt = build()
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    give_gradients(all_parameters(opt))
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()
    early = build()
    scheduler = lr_scheduler.StepLR(early, 1, gamma=0.5)
    seen: list[str] = []
    early.register_step_pre_hook(lambda *given: seen.append("hook"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            run(early, 1)
            scheduler.step()
    assert [g["lr"] for g in early.param_groups] == [0.025, 0.0125]
    assert seen == ["hook", "hook"]


def test_values_and_state_may_be_swapped() -> None:
    opt = build()
    run(opt, 2)
    before = progress(opt)
    with opt.swap_in(jax.tree.map(jnp.zeros_like, opt.params), opt.state_dict()):
        run(opt, 3)
        assert opt.state[all_parameters(opt)[0]]["step"] == 5
    assert progress(opt) == before


def test_what_needs_a_known_algorithm_says_how_to_write_it() -> None:
    opt = build()
    wanted = "functorch_optim.rules.Rule.*from_transformation"
    with pytest.raises(NotImplementedError, match=f"^make_step .*{wanted}"):
        opt.make_step(lambda params: 0.0, all_parameters(opt))
    with pytest.raises(NotImplementedError, match=f"^to_functional .*{wanted}"):
        opt.to_functional()
    assert not opt._lent
    give_gradients(all_parameters(opt))
    opt.step()
    bare = optim.Optimizer(cells((3,)), {"lr": 1})
    for _ in range(2):  # without gradients, and with
        with pytest.raises(NotImplementedError, match=f"^step .*{wanted}"):
            bare.step()
        give_gradients(all_parameters(bare))


def test_a_step_around_that_of_a_known_class_may_call_it() -> None:
    opt = build(Halved)
    give_gradients(all_parameters(opt))
    plain = build(optim.SGD)
    give_gradients(all_parameters(plain))
    opt.step()
    plain.step()
    plain.step()
    for p, q in zip(all_parameters(opt), all_parameters(plain), strict=True):
        np.testing.assert_array_equal(p.data, q.data / 2)


def test_loading_what_matches_works_by_name() -> None:
    p, q = (optim.Parameter(jnp.ones(3), name=name) for name in "pq")
    opt = MyAdam([("p", p), ("q", q)])
    run(opt, 1)
    other = MyAdam([("q", optim.Parameter(jnp.ones(3))), ("r", optim.Parameter(jnp.ones(2)))])
    report: Any = other.load_state_dict(opt.state_dict(), match="name", strict=False)
    assert (report.missing, report.unexpected) == (("r",), ("p",))
    new, fresh = all_parameters(other)
    assert exactly(other.state[new]) == exactly(opt.state[q])
    assert fresh not in other.state


def test_its_class_goes_when_nobody_has_it() -> None:
    """The hooks of a class hold nothing that outlives it."""

    class Local(MyAdam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    Local(cells((3,))).step()
    names = [c.__name__ for c in optim.Optimizer.__subclasses__()]
    assert "MyAdam" in names
    del Local
    gc.collect()
    assert [c.__name__ for c in MyAdam.__subclasses__()] == ["Mending"]
