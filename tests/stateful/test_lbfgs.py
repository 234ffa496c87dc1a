"""LBFGS behind torch's face: by a closure and compiled, with torch's counts, state and errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.parity import assert_close

SEARCH = {"line_search_fn": "strong_wolfe", "max_iter": 6}
PLAIN = {"lr": 0.2, "max_iter": 5, "history_size": 3}
RANDOM = np.random.RandomState(0)
X = RANDOM.standard_normal((24, 4))
Y = np.sin(X.sum(axis=1, keepdims=True))
START = {"a": 0.5 * RANDOM.standard_normal((4, 3)), "b": 0.5 * RANDOM.standard_normal((3, 1))}


def loss_fn(params: Any, x: Any, y: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def made(dtype: str = "float64", **options: Any) -> tuple[Any, optim.LBFGS]:
    model = optim.parameters({name: jnp.asarray(x, dtype) for name, x in START.items()})
    return model, optim.LBFGS(model, **options)


def closure_of(model: Any, opt: Any, calls: list[Any] | None = None) -> Any:
    def closure() -> Any:
        if calls is not None:
            calls.append(1)
        opt.zero_grad()
        return optim.backward(loss_fn, model, X, Y)

    return closure


def values_of(model: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(p) for name, p in model.items()}


def assert_same(actual: Any, wanted: Any, rtol: float = 1e-9) -> None:
    for name in START:
        assert_close(np.asarray(actual[name]), np.asarray(wanted[name]), rtol, name)


def torch_run(options: dict[str, Any], steps: int) -> Any:
    """torch's parameters and optimizer after so many steps, and its calls of the closure."""
    torch = pytest.importorskip("torch", reason="compares with torch.optim.LBFGS")
    cells = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in START.items()}
    opt = torch.optim.LBFGS(cells.values(), **options)
    x, y = torch.tensor(X), torch.tensor(Y)
    calls = []

    def closure() -> Any:
        calls.append(1)
        opt.zero_grad()
        loss = torch.mean((torch.tanh(x @ cells["a"]) @ cells["b"] - y) ** 2)
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(steps)]
    return {name: p.detach().numpy() for name, p in cells.items()}, opt, len(calls), losses, closure


@pytest.mark.parametrize("options", [SEARCH, PLAIN], ids=["search", "plain"])
class TestAgainstTorch:
    def test_iterates_losses_and_counts(self, options: Any, x64: None) -> None:
        wanted, theirs, calls, losses, _ = torch_run(options, 4)
        entry = next(iter(theirs.state.values()))
        model, opt = made(**options)
        compiled_model, compiled = made(**options)
        train_step = compiled.make_step(loss_fn, compiled_model)
        called: list[Any] = []
        for loss in losses:
            assert float(opt.step(closure_of(model, opt, called))) == pytest.approx(loss, rel=1e-9)
            assert float(train_step(X, Y)) == pytest.approx(loss, rel=1e-9)
        assert len(called) == calls
        for found, o in ((model, opt), (compiled_model, compiled)):
            assert_same(found, wanted)
            state = o.state[found["a"]]
            assert (state["n_iter"], state["func_evals"]) == (entry["n_iter"], entry["func_evals"])

    def test_state_dicts_go_both_ways(self, options: Any, x64: None) -> None:
        torch = pytest.importorskip("torch", reason="compares with torch.optim.LBFGS")
        wanted, *_ = torch_run(options, 5)
        halfway, theirs, *_ = torch_run(options, 2)
        saved = jax.tree.map(
            lambda x: x.numpy() if isinstance(x, torch.Tensor) else x, theirs.state_dict()
        )
        model, opt = made(**options)
        opt.load_state_dict(saved)
        for name, p in model.items():
            p.data = halfway[name]
        closure = closure_of(model, opt)
        opt.step(closure)
        ours = opt.state_dict()
        assert list(ours["state"]) == list(saved["state"]) == [0]
        assert ours["state"][0].keys() == saved["state"][0].keys()
        groups = made(**options)[1].state_dict()["param_groups"]
        assert list(groups[0]) == list(theirs.state_dict()["param_groups"][0])
        back = torch.optim.LBFGS(
            [torch.nn.Parameter(torch.tensor(np.asarray(p))) for p in model.values()]
        )
        as_tensors = jax.tree.map(
            lambda x: torch.tensor(np.asarray(x)) if isinstance(x, jax.Array) else x, ours
        )
        back.load_state_dict(as_tensors)
        cells = back.param_groups[0]["params"]
        x, y = torch.tensor(X), torch.tensor(Y)

        def torch_closure() -> Any:
            back.zero_grad()
            loss = torch.mean((torch.tanh(x @ cells[0]) @ cells[1] - y) ** 2)
            loss.backward()
            return loss

        for _ in range(2):
            back.step(torch_closure)
        assert_same(dict(zip(START, (p.detach() for p in cells), strict=True)), wanted)


@pytest.mark.parametrize(
    "options",
    [pytest.param(SEARCH, id="search"), pytest.param(PLAIN, id="plain", marks=pytest.mark.slow)],
)
class TestOneImplementation:
    def test_closure_compiled_and_pair_agree(self, options: Any, x64: None) -> None:
        model, opt = made(**options)
        by_call, other = made(**options)
        with_aux, third = made(**options)
        step = third.make_step(lambda p, *xy: (loss_fn(p, *xy), {"a": p["a"]}), with_aux, True)
        tx = fo.lbfgs(**options)
        params = {name: jnp.asarray(x) for name, x in START.items()}
        state = tx.init(params)
        fn = jax.value_and_grad(lambda p: loss_fn(p, X, Y))
        for _ in range(3):
            before = values_of(model)
            losses = [opt.step(closure_of(model, opt)), other.step(loss_fn, by_call, X, Y)]
            loss, aux = step(X, Y)
            np.testing.assert_allclose([*losses, loss], fn(before)[0], rtol=1e-9)
            assert_close(np.asarray(aux["a"]), before["a"], 1e-9, "aux")
            updates, state = tx.update(None, state, params, value_and_grad_fn=fn)
            params = fo.apply_updates(params, updates)
            for found in (model, by_call, with_aux):
                assert_same(found, params)

    def test_changed_numbers_do_not_compile_again(self, options: Any) -> None:
        model, opt = made("float32", **options)
        train_step = opt.make_step(loss_fn, model)
        x, y = X.astype(np.float32), Y.astype(np.float32)
        train_step(x, y)
        compiled = opt.compile_count
        opt.param_groups[0].update(lr=0.1, max_iter=2, tolerance_change=1e-7)
        train_step(x, y)
        assert opt.state[model["a"]]["n_iter"] <= options["max_iter"] + 2
        assert opt.compile_count == compiled

    def test_copies_and_pickles_go_on_alike(self, options: Any, x64: None) -> None:
        """(In torch they cannot step.)"""
        model, opt = made(**options)
        opt.step(loss_fn, model, X, Y)
        for twin_model, twin in (
            copy.deepcopy((model, opt)),
            pickle.loads(pickle.dumps((model, opt))),
        ):
            twin.step(closure_of(twin_model, twin))
            reference_model, reference = copy.deepcopy((model, opt))
            reference.step(loss_fn, reference_model, X, Y)
            assert_same(twin_model, reference_model)

    def test_into_a_pair_and_back(self, options: Any, x64: None) -> None:
        model, opt = made(**options)
        reference_model, reference = made(**options)
        for _ in range(3):
            reference.step(loss_fn, reference_model, X, Y)
        opt.step(loss_fn, model, X, Y)
        tx, params, state = opt.to_functional()
        with pytest.raises(RuntimeError, match="given away by to_functional"):
            opt.step(loss_fn, model, X, Y)
        fn = jax.value_and_grad(lambda p: loss_fn(p, X, Y))
        updates, state = jax.jit(lambda s, p: tx.update(None, s, p, value_and_grad_fn=fn))(
            state, params
        )
        opt.from_functional(fo.apply_updates(params, updates), state)
        opt.step(closure_of(model, opt))
        assert_same(model, reference_model)

    def test_what_was_read_stays(self, options: Any) -> None:
        model, opt = made("float32", **options)
        opt.step(loss_fn, model, X.astype(np.float32), Y.astype(np.float32))
        entry, data = opt.state_dict()["state"][0], model["a"].data
        kept = jax.tree.map(np.array, (entry, data))
        opt.step(loss_fn, model, X.astype(np.float32), Y.astype(np.float32))
        jax.tree.map(np.testing.assert_array_equal, (entry, data), kept)


def test_micro_batches_are_averaged(x64: None) -> None:
    model, opt = made(**SEARCH)
    whole, reference = made(**SEARCH)
    step = opt.make_step(loss_fn, model, accumulate=3)
    loss = step(X.reshape(3, 8, -1), Y.reshape(3, 8, -1))
    assert float(loss) == pytest.approx(float(reference.step(loss_fn, whole, X, Y)), rel=1e-12)
    assert_same(model, whole)
    with pytest.raises(ValueError, match="takes 3 micro-batches"):
        step(X, Y)
    with pytest.raises(ValueError, match="accumulate should be a positive integer"):
        opt.make_step(loss_fn, model, accumulate=0)
    with pytest.raises(ValueError, match="clipped gradients are not those of the function"):
        opt.make_step(loss_fn, model, clip_norm=1.0)


def test_parameters_without_a_gradient_stay(x64: None) -> None:
    """torch takes a missing gradient for zeros."""
    model, _ = made()
    extra = {"frozen": optim.Parameter(jnp.ones(2), requires_grad=False), "unused": jnp.ones(3)}
    model = optim.parameters({**model, **extra, "table": jnp.arange(3)})
    opt = optim.LBFGS(model, **SEARCH)
    opt.step(closure_of(model, opt))
    opt.step(loss_fn, model, X, Y)
    assert not np.array_equal(model["a"], START["a"])
    np.testing.assert_array_equal(model["frozen"], np.ones(2))
    np.testing.assert_array_equal(model["unused"], np.ones(3))
    np.testing.assert_array_equal(model["table"], np.arange(3))


def test_complex_parameters(x64: None) -> None:
    target = np.array([1 + 2j, -0.5j])

    def distance(params: Any) -> jax.Array:
        off = params["z"] - target
        return jnp.sum(jnp.abs(off) ** 2 * jnp.array([1.0, 3.0]))

    for compiled in (False, True):
        model = optim.parameters({"z": jnp.zeros(2, jnp.complex128)})
        opt = optim.LBFGS(model, line_search_fn="strong_wolfe")

        def closure(model: Any = model, opt: Any = opt) -> Any:
            opt.zero_grad()
            return optim.backward(distance, model)

        opt.make_step(distance, model)() if compiled else opt.step(closure)
        np.testing.assert_allclose(model["z"], target, rtol=1e-4)


def test_nothing_is_left_half_done_if_the_closure_raises(x64: None) -> None:
    model, opt = made(**SEARCH)
    opt.step(closure_of(model, opt))
    before, entry = values_of(model), opt.state_dict()["state"][0]
    calls: list[Any] = []

    def failing() -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        return closure_of(model, opt, calls)()

    with pytest.raises(KeyboardInterrupt):
        opt.step(failing)
    assert len(calls) == 3
    for name, p in model.items():
        np.testing.assert_array_equal(p, before[name])
    jax.tree.map(np.testing.assert_array_equal, opt.state_dict()["state"][0], entry)
    twin_model, twin = copy.deepcopy((model, opt))
    opt.step(closure_of(model, opt))
    twin.step(loss_fn, twin_model, X, Y)
    assert_same(model, twin_model)


def test_a_loss_that_is_not_finite_ends_the_step_at_the_last_good_point(x64: None) -> None:
    """The function has a root: beyond 0 it is NaN, and so is its gradient."""

    def barrier(params: Any) -> jax.Array:
        return jnp.sum(params["w"] - 0.1 * jnp.sqrt(params["w"]))

    for options in ({"lr": 10.0}, {"line_search_fn": "strong_wolfe", "lr": 10.0}):
        for stop_on_nan in (True, False):
            model = optim.parameters({"w": jnp.asarray([0.5, 2.0])})
            opt = optim.LBFGS(model, **options, stop_on_nan=stop_on_nan)
            opt.make_step(barrier, model)()
            assert bool(np.isfinite(barrier(optim.values(model)))) is stop_on_nan
            twin = pickle.loads(pickle.dumps(opt))
            assert twin._stop_on_nan is stop_on_nan


def test_hooks_see_the_closure() -> None:
    model, opt = made("float32", **PLAIN)
    seen = []
    opt.register_step_pre_hook(lambda *call: seen.append(call))
    opt.register_step_post_hook(lambda *call: seen.append(call))

    def closure() -> Any:
        opt.zero_grad()
        return optim.backward(loss_fn, model, X.astype(np.float32), Y.astype(np.float32))

    opt.step(closure)
    assert seen == [(opt, (opt, closure), {})] * 2


def test_a_scheduler_drives_it(x64: None) -> None:
    model, opt = made(**PLAIN)
    scheduler = optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    opt.step(closure_of(model, opt))
    scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.1


class TestErrors:
    def test_of_the_constructor(self) -> None:
        model, _ = made("float32")
        cells = list(model.values())
        with pytest.raises(ValueError, match=r"LBFGS doesn't support per-parameter options"):
            optim.LBFGS([{"params": cells[:1]}, {"params": cells[1:]}])
        with pytest.raises(ValueError, match=r"^Invalid learning rate: -1$"):
            optim.LBFGS(model, lr=-1)
        with pytest.raises(ValueError, match="history_size should be a positive integer"):
            optim.LBFGS(model, history_size=0)
        assert optim.LBFGS(model).param_groups[0]["max_eval"] == 25
        assert optim.LBFGS(model, max_iter=7).param_groups[0]["max_eval"] == 8

    def test_of_a_step(self) -> None:
        model, opt = made("float32", line_search_fn="armijo")
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'closure'"):
            opt.step()
        with pytest.raises(RuntimeError, match=r"^only 'strong_wolfe' is supported$"):
            opt.step(closure_of(model, opt))
        model, opt = made("float32")
        with pytest.raises(TypeError, match="closure should return the loss"):
            opt.step(lambda: None)
        with pytest.raises(ValueError, match="no Parameter of the model is held"):
            opt.make_step(loss_fn, optim.parameters(START))(X, Y)
        opt.add_param_group({"params": [jnp.ones(2)]})
        for call in (
            lambda: opt.step(closure_of(model, opt)),
            lambda: opt.make_step(loss_fn, model)(X, Y),
        ):
            with pytest.raises(AssertionError, match="Expected exactly one param_group, but got 2"):
                call()

    def test_of_loading(self, x64: None) -> None:
        model, opt = made(**SEARCH)
        opt.step(loss_fn, model, X, Y)
        saved = opt.state_dict()
        entry = saved["state"][0]
        for change, message in (
            ({"d": entry["d"][:3]}, r"d has shape \(3,\), but should have shape \(15,\)"),
            ({"ro": entry["ro"][:-1]}, "pairs of different number"),
            ({"old_dirs": [x[:2] for x in entry["old_dirs"]]}, "old_dirs has shape"),
        ):
            other_model, other = made(**SEARCH)
            with pytest.raises(ValueError, match=message):
                other.load_state_dict({**saved, "state": {0: {**entry, **change}}})
            assert not other.state
            assert_same(other_model, START)
        lacking = {name: x for name, x in entry.items() if name != "t"}
        with pytest.raises(ValueError, match=r"state of parameter 0 lacks 't'"):
            made(**SEARCH)[1].load_state_dict({**saved, "state": {0: lacking}})
        with pytest.raises(ValueError, match="keeps its state under the first one"):
            made(**SEARCH)[1].load_state_dict({**saved, "state": {1: entry}})

    def test_a_history_of_another_size_keeps_the_newest_pairs(self, x64: None) -> None:
        model, opt = made(**SEARCH)
        opt.step(loss_fn, model, X, Y)
        newest = opt.state[model["a"]]["ro"][-2:]
        opt.param_groups[0].update(history_size=2, max_iter=0)
        opt.step(loss_fn, model, X, Y)
        np.testing.assert_array_equal(opt.state[model["a"]]["ro"], newest)
