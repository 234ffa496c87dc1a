"""Steps of several threads take turns; what others read beside them is of one moment."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful.swa_utils import AveragedModel


def adam() -> optim.Optimizer:
    cells = [optim.Parameter(np.linspace(-1, 1, 1000, dtype=np.float32)) for _ in range(20)]
    for p in cells:
        p.grad = jnp.full(p.shape, 0.5)
    return optim.Adam(cells, lr=1e-2)


def test_no_step_of_two_threads_is_lost() -> None:
    together, alone = adam(), adam()
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(together.step) for _ in range(40)]:
            done.result()
    for _ in range(40):
        alone.step()
    for p, wanted in zip(together.params, alone.params, strict=True):
        np.testing.assert_array_equal(p, wanted)
    assert {float(state["step"]) for state in together.state.values()} == {40.0}


def counting(cls: Any = optim.Adam) -> tuple[optim.Optimizer, list[optim.Parameter]]:
    """Parameters that lose 1 in each step, so that a value tells the number of steps."""
    cells = [optim.Parameter(jnp.zeros(8), name=str(i)) for i in range(3)]
    for p in cells:
        p.grad = jnp.ones(8)
    return cls(cells, lr=1.0, eps=0.0, betas=(0.0, 0.0)), cells


def steps_of(values: Any) -> set[float]:
    """How many steps these values have made."""
    return {float(-x) for value in values for x in np.asarray(value).ravel()}


def of_state(state: Any) -> set[float]:
    return {float(entry["step"]) for entry in state.values()}


READERS: dict[str, Callable[[optim.Optimizer, list[optim.Parameter]], set[float]]] = {
    "pickle": lambda opt, cells: (
        steps_of((copied := pickle.loads(pickle.dumps(opt))).params) | of_state(copied.state)
    ),
    "deepcopy": lambda opt, cells: (
        steps_of((copied := copy.deepcopy(opt)).params) | of_state(copied.state)
    ),
    "params": lambda opt, cells: steps_of(opt.params),
    "values": lambda opt, cells: steps_of(optim.values(cells)),
    "state_dict": lambda opt, cells: of_state(opt.state_dict()["state"]),
    "copied state": lambda opt, cells: of_state(copy.deepcopy(opt.state)),
    "items": lambda opt, cells: of_state(dict(opt.state.items())),
    "of values": lambda opt, cells: {float(x["step"]) for x in opt.state.values()},
    "data": lambda opt, cells: steps_of([cells[0].data]),
    "state": lambda opt, cells: {float(opt.state[cells[0]]["step"])},
    "average": lambda opt, cells: steps_of(averaged(cells)),
}


def averaged(cells: list[optim.Parameter]) -> Any:
    average = AveragedModel(cells)
    average.update_parameters(cells)
    return optim.values(average.module)


def beside(work: Callable[[], Any], read: Callable[[], Any]) -> list[Any]:
    """What was read again and again while another thread worked."""
    failed: list[BaseException] = []
    finished = threading.Event()

    def worked() -> None:
        try:
            for _ in range(60):
                work()
        except BaseException as error:
            failed.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=worked, daemon=True)
    seen = [read()]
    thread.start()
    while not finished.is_set():
        seen.append(read())
    thread.join(60)
    assert not thread.is_alive()
    assert failed == []
    return [*seen, read()]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_beside_steps_is_of_one_moment(reader: str, compiled: bool) -> None:
    opt, cells = counting()
    train = opt.make_step(lambda tree: sum(jnp.sum(x) for x in tree), cells)
    step = train if compiled else opt.step
    step()
    for seen in beside(step, lambda: READERS[reader](opt, cells)):
        assert len(seen) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_writes_beside_steps_neither_fail_nor_mix(compiled: bool) -> None:
    opt, cells = counting()
    train = opt.make_step(lambda tree: sum(jnp.sum(x) for x in tree), cells)
    step = train if compiled else opt.step
    step()

    def forget() -> set[str]:
        opt.state.pop(cells[0], None)
        opt.state[cells[1]]["exp_avg"] = jnp.zeros(8)
        return set(opt.state[cells[1]])

    for seen in beside(step, forget):
        assert seen == {"step", "exp_avg", "exp_avg_sq"}
    assert opt.state[cells[1]]["step"] == 61


def test_a_gradient_is_computed_beside_steps() -> None:
    opt, cells = counting()
    train = opt.make_step(lambda tree: sum(jnp.sum(x) for x in tree), cells)
    train()

    def read() -> float:
        return float(optim.backward(lambda tree: jnp.max(tree[0]) - jnp.min(tree[1]), cells))

    assert set(beside(train, read)) == {0.0}  # both of the same moment


@pytest.mark.parametrize(
    "name", ["step_pre", "step_post", "state_dict_pre", "load_state_dict_post"]
)
def test_a_hook_may_read_all(name: str) -> None:
    opt, cells = counting()
    opt.step()
    seen: list[Any] = []

    def read(*given: Any) -> None:
        if seen:  # `state_dict` below calls the hook again
            return
        seen.append(0)
        seen.extend([pickle.dumps(opt), copy.deepcopy(opt), opt.params, opt.state_dict()])
        seen.extend([dict(opt.state[cells[0]]), cells[0].data, averaged(cells)])

    def work() -> None:
        opt.step()
        opt.load_state_dict(opt.state_dict())

    getattr(opt, f"register_{name}_hook")(read)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    beside(opt.step, lambda: opt.params)
    thread.join(60)
    assert not thread.is_alive()
    assert len(seen) == 8
