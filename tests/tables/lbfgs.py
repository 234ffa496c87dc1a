"""The runs of L-BFGS that are compared with torch: problems, hyperparameters, and a run's rows."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functorch_optim as fo
from functorch_optim.algorithms.lbfgs import LBFGSState, lbfgs

RECORDED = pathlib.Path(__file__).parents[1] / "golden" / "lbfgs.npz"
UNUSED = "unused"  # a parameter of this name has no gradient: None
DEFAULTS = {
    "lr": 1.0,
    "max_iter": 20,
    "max_eval": None,
    "tolerance_grad": 1e-7,
    "tolerance_change": 1e-9,
    "history_size": 100,
    "line_search_fn": None,
}
WOLFE = {"line_search_fn": "strong_wolfe"}

Tree = dict[str, Any]


class Problem(NamedTuple):
    """A function, written once for jax.numpy and torch (the argument `xp`).

    Attributes:
      start: the first parameters.
      value: `value(params, xp)`.
      quantum: the value is rounded down to a multiple of it, the gradient is not.
    """

    start: Tree
    value: Callable[[Tree, Any], Any]
    quantum: float | None = None


def rosenbrock(p: Tree, xp: Any) -> Any:
    x = p["x"]
    return xp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def cosines(p: Tree, xp: Any) -> Any:
    """Curved downwards where it starts."""
    x = p["x"]
    return xp.sum(xp.cos(x)) + 0.3 * xp.sum(x[1:] * x[:-1])


def bowl(p: Tree, xp: Any) -> Any:
    x = p["x"]
    return xp.sum(x[1:] ** 2) + 3 * xp.sum(x[:-1] ** 2) + 0.5 * xp.sum(x[1:] * x[:-1])


def quartic(p: Tree, xp: Any) -> Any:
    x = p["x"]
    return 0.25 * xp.sum(x**4) + xp.sum(xp.cos(3 * x)) + 0.1 * xp.sum(x[1:] * x[:-1])


def linear(p: Tree, xp: Any) -> Any:
    """No minimum, and y = 0. All numbers on the way are exact."""
    return 0.5 * xp.sum(p["x"])


def kinks(p: Tree, xp: Any) -> Any:
    x = p["x"]
    return xp.sum(xp.abs(x[1:] - x[:-1])) + xp.sum(xp.abs(x - 0.3)) + 0.1 * xp.sum(x**2)


def wall(p: Tree, xp: Any) -> Any:
    """NaN where an element is negative; its gradient is finite there."""
    return xp.sum(p["x"] - xp.log(p["x"])) + xp.sum(p["x"] ** 2)


def overflow(p: Tree, xp: Any) -> Any:
    """The value is infinite and the gradient NaN where an element is above 710."""
    x = p["x"]
    return xp.sum(xp.log(1 + xp.exp(x)) - 0.3 * x)


def polynomial(p: Tree, xp: Any) -> Any:
    """Of complex numbers: |z^2 - c|^2, and their imaginary parts are pulled together."""
    z = p["z"]
    w = z * z - (0.5 + 0.25j)
    square = xp.sum(xp.real(w) ** 2 + xp.imag(w) ** 2)
    return square + 0.1 * (xp.imag(z[0]) - xp.imag(z[1])) ** 2 + 0.1 * (p["r"] - xp.real(z[0])) ** 2


def shapes(p: Tree, xp: Any) -> Any:
    m, s, v = p["matrix"], p["scalar"], p["vector"]
    return (
        xp.sum((m - s) ** 4)
        + xp.sum((m[0] * v - 1) ** 2)
        + (s - 2) ** 2
        + xp.sum(p["zero"])
        + xp.sum(xp.exp(-v))
    )


def dtypes(p: Tree, xp: Any) -> Any:
    """One parameter is float32: its rounding decides how far two runs may be apart."""
    narrow = p["narrow"].double() if hasattr(p["narrow"], "double") else p["narrow"].astype(float)
    wide = p["wide"]
    return xp.sum((narrow - wide**2) ** 2) + xp.sum((wide - 1.5) ** 2) + 0.1 * xp.sum(narrow**4)


def _vector(*numbers: float) -> Tree:
    return {"x": np.array(numbers)}


PROBLEMS = {
    "rosenbrock": Problem(_vector(-1.2, 1.0, 0.5, -0.7), rosenbrock),
    "at_minimum": Problem(_vector(1.0, 1.0, 1.0, 1.0), rosenbrock),
    "cosines": Problem(_vector(0.3, -0.2, 0.4, 0.1), cosines),
    "bowl": Problem(_vector(2.0, -1.0, 3.0, 0.5), bowl),
    "stairs": Problem(_vector(2.0, -1.0, 3.0, 0.5), bowl, quantum=4.0),
    "small_stairs": Problem(_vector(2.1, -1.3, 3.0, 0.5), quartic, quantum=0.5),
    "quartic": Problem(_vector(2.0, -1.0, 3.0, 0.7), quartic),
    "linear": Problem(_vector(1.0, 2.0, -3.0, 4.0), linear),
    "kinks": Problem(_vector(1.0, -2.0, 0.5, 3.0), kinks),
    "wall": Problem(_vector(0.3, 2.0, 1.0, 0.6), wall),
    "overflow": Problem(_vector(-3.0, -1.0, -2.0, 0.5), overflow),
    "polynomial": Problem(
        {"r": np.array(0.3), "z": np.array([1.0 + 0.5j, -0.4 + 1.2j])}, polynomial
    ),
    "shapes": Problem(
        {
            "matrix": np.array([[0.5, -1.0, 2.0], [0.1, 0.2, -0.3]]),
            "scalar": np.array(0.7),
            UNUSED: np.array([5.0, 6.0]),
            "vector": np.array([1.0, -0.5, 0.25]),
            "zero": np.zeros((0, 2)),
        },
        shapes,
    ),
    "dtypes": Problem(
        {"narrow": np.array([0.5, -1.5, 2.0], np.float32), "wide": np.array([0.4, 1.1, -0.8])},
        dtypes,
    ),
}


class Case(NamedTuple):
    """A problem and arguments of the optimizer.

    `stop_on_nan=False` among them is ours alone: torch goes on in any case.
    """

    problem: str
    arguments: Tree
    updates: int = 3

    @property
    def name(self) -> str:
        numbers = [f"{k}={v}" for k, v in self.arguments.items() if k != "line_search_fn"]
        search = ["wolfe"] if self.arguments.get("line_search_fn") else []
        return "-".join([self.problem, *search, *numbers])

    @property
    def torch_arguments(self) -> Tree:
        return {k: v for k, v in self.arguments.items() if k != "stop_on_nan"}

    @property
    def rtol(self) -> float:
        return 1e-5 if self.problem == "dtypes" else 1e-9


CASES = [
    Case("rosenbrock", {}),
    Case("rosenbrock", WOLFE),
    Case("rosenbrock", {"max_iter": 1, "lr": 0.01}),
    Case("rosenbrock", {"max_iter": 1, **WOLFE}, updates=6),
    Case("rosenbrock", {"max_iter": 5, "lr": 0.5}),
    Case("rosenbrock", {"max_iter": 5, **WOLFE}),
    Case("rosenbrock", {"max_iter": 0}),
    Case("rosenbrock", {"max_iter": 0, **WOLFE}),
    Case("rosenbrock", {"max_eval": 3}),
    Case("rosenbrock", {"max_eval": 0}),
    Case("rosenbrock", {"max_eval": 1, **WOLFE}),
    Case("rosenbrock", {"max_eval": 7, "lr": 0.1, **WOLFE}),
    Case("rosenbrock", {"lr": 0.1}),
    Case("rosenbrock", {"lr": 0.1, **WOLFE}),
    Case("rosenbrock", {"lr": 10.0, **WOLFE}),
    Case("rosenbrock", {"tolerance_grad": 1.0, **WOLFE}),
    Case("rosenbrock", {"tolerance_grad": 50.0}),
    Case("rosenbrock", {"tolerance_change": 0.01, **WOLFE}),
    Case("rosenbrock", {"tolerance_change": 0.3, "lr": 0.2}),
    Case("rosenbrock", {"history_size": 1, "max_iter": 8}),
    Case("rosenbrock", {"history_size": 3, **WOLFE}),
    Case("at_minimum", {}),
    Case("at_minimum", WOLFE),
    Case("cosines", {"lr": 0.3, "max_iter": 6}),
    Case("cosines", {"max_eval": 2, **WOLFE}, updates=6),
    Case("bowl", {"lr": 0.5}),
    Case("bowl", WOLFE),
    Case("stairs", {"max_iter": 4, **WOLFE}),
    Case("stairs", {"lr": 10.0, **WOLFE}),
    Case("small_stairs", {"lr": 3.0, "max_iter": 6, **WOLFE}),
    Case("quartic", {"lr": 10.0, **WOLFE}),
    Case("quartic", {"lr": 100.0, "max_iter": 4, "max_eval": 40, **WOLFE}),
    Case("linear", {"lr": 0.125}),
    Case("linear", {"max_iter": 5, **WOLFE}, updates=1),
    Case("kinks", {"max_iter": 3, **WOLFE}),
    Case("polynomial", {"lr": 0.2}),
    Case("polynomial", WOLFE),
    Case("shapes", {"lr": 0.1}),
    Case("shapes", WOLFE),
    Case("dtypes", {"max_iter": 6, **WOLFE}, updates=2),
    Case("wall", {"lr": 3.0, "stop_on_nan": False, "max_iter": 4}, updates=2),
    Case("wall", {"lr": 10.0, "stop_on_nan": False, "max_iter": 4, **WOLFE}),
    Case("overflow", {"lr": 6000.0, "stop_on_nan": False, **WOLFE}),
]


def torch_rows(case: Case) -> tuple[np.ndarray, Any]:
    """torch's run: a row per update, and its optimizer's state at the end."""
    import torch

    problem = PROBLEMS[case.problem]
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in problem.start.items()}
    optimizer = torch.optim.LBFGS([params[name] for name in sorted(params)], **case.torch_arguments)
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = problem.value(params, torch)
        loss.backward()
        q = problem.quantum
        return loss if q is None else torch.floor(loss / q) * q

    rows = []
    for _ in range(case.updates):
        optimizer.step(closure)
        state = optimizer.state[params[min(params)]]
        assert calls == state["func_evals"]
        numbers = [
            state["n_iter"],
            state["func_evals"],
            len(state.get("ro") or []),
            *(
                float(default if state.get(name) is None else state[name])
                for name, default in (("t", 0), ("H_diag", 1), ("prev_loss", 0))
            ),
        ]
        rows.append(np.concatenate([numbers, flat({k: p.detach() for k, p in params.items()})]))
    return np.stack(rows), state


def our_rows(case: Case) -> tuple[np.ndarray, LBFGSState]:
    """The same of our run. Wants float64."""
    arguments = {**DEFAULTS, "stop_on_nan": True, **case.arguments}
    flags = [arguments.pop(name) for name in ("history_size", "line_search_fn", "stop_on_nan")]
    if arguments["max_eval"] is None:  # a number, to share one program
        arguments["max_eval"] = arguments["max_iter"] * 5 // 4
    problem = PROBLEMS[case.problem]
    together = tuple(n for n, p in PROBLEMS.items() if p.start.keys() == problem.start.keys())
    params = {name: jnp.asarray(p) for name, p in problem.start.items()}
    state = lbfgs(history_size=flags[0]).init(params)
    numbers = {name: jnp.asarray(x) for name, x in arguments.items()}
    which, rows = jnp.asarray(together.index(case.problem)), []
    for _ in range(case.updates):
        params, state = _step(together, *flags)(which, numbers, params, state)
        counts = [state.n_iter, state.func_evals, np.minimum(state.pairs, flags[0])]
        rows.append(
            np.concatenate([[*counts, state.t, state.H_diag, state.prev_loss], flat(params)])
        )
    return np.stack(rows), state


@functools.cache
def _step(problems: tuple[str, ...], history: int, search: str | None, stop: bool) -> Any:
    """One program for all problems whose parameters look alike, and for all numbers."""
    functions = [value_and_grad(PROBLEMS[name]) for name in problems]

    @jax.jit
    def step(which: Any, numbers: Any, params: Tree, state: LBFGSState) -> Any:
        tx = lbfgs(**numbers, history_size=history, line_search_fn=search, stop_on_nan=stop)
        updates, state = tx.update(
            None,
            state,
            params,
            value_and_grad_fn=lambda params: jax.lax.switch(which, functions, params),
        )
        return fo.apply_updates(params, updates), state

    return step


def value_and_grad(problem: Problem) -> Callable[[Tree], tuple[jax.Array, Tree]]:
    def function(params: Tree) -> tuple[jax.Array, Tree]:
        value, grads = jax.value_and_grad(lambda p: problem.value(p, jnp))(params)
        if problem.quantum is not None:
            value = jnp.floor(value / problem.quantum) * problem.quantum
        grads = jax.tree.map(jnp.conj, grads)  # torch's gradient of a complex parameter
        return value, {name: None if name == UNUSED else g for name, g in grads.items()}

    return function


def flat(params: Tree) -> np.ndarray:
    """The parameters as one vector of float64, complex numbers as pairs."""
    arrays = [np.asarray(params[name]).reshape(-1) for name in sorted(params)]
    parts = [x.view(x.real.dtype).astype(np.float64) for x in arrays]
    return np.concatenate(parts)
