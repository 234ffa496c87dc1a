"""L-BFGS against torch, optax, jaxopt, optimistix and scipy, to the same gradient.

    python -m pip install -e . && python -m pip install torch optax jaxopt optimistix scipy
    python benchmarks/lbfgs.py [--quick]

Side by side in one run and in turns, all in float64 with ten remembered pairs and a strong-Wolfe
search (optimistix: its own), until no component of the gradient is above 1e-6; without a way to
stop there, a library is stepped from a loop of ours. A package that is not installed is left out.
Wall times are medians without compilation, which has its own column. Evaluations are of the value
and the gradient together. Then: one million variables against the time that the vectors' traffic
through memory takes, and 64 problems under one `vmap`. This is a measurement, not a test.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from functorch_optim.algorithms.lbfgs import lbfgs

HISTORY = 10
TOLERANCE = 1e-6
MOST = 5000  # iterations

Run = Callable[[], tuple[Any, Any, Any]]  # the solution, iterations, evaluations


class Problem(NamedTuple):
    """A function of a list of arrays, written with the array module it is given, and a start."""

    function: Callable[..., Any]
    start: list[np.ndarray]
    data: tuple[np.ndarray, ...] = ()
    tolerance: float = TOLERANCE
    most: int = MOST

    def in_jax(self, data: Any) -> Callable[[Any], jax.Array]:
        return lambda params: self.function(Jax, params, data)


class Jax:
    """What the problems need of jax; `Torch` has the same names."""

    exp, tanh = jnp.exp, jnp.tanh

    @staticmethod
    def softplus(x: Any) -> Any:
        return jnp.logaddexp(x, 0.0)

    @staticmethod
    def logsumexp(x: Any) -> Any:
        return jax.scipy.special.logsumexp(x, -1)


def torch_names() -> Any:
    import torch

    class Torch:
        exp, tanh = torch.exp, torch.tanh

        @staticmethod
        def softplus(x: Any) -> Any:
            return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))

        @staticmethod
        def logsumexp(x: Any) -> Any:
            return torch.logsumexp(x, -1)

    return Torch


def regression(samples: int, features: int) -> Problem:
    """Logistic regression, its features' scales a hundredfold apart."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, features)) * np.logspace(0, -2, features)
    y = np.sign(x @ rng.standard_normal(features) + 0.5 * rng.standard_normal(samples))

    def loss(names: Any, params: Any, data: Any) -> Any:
        (w,), (signed,) = params, data
        return names.softplus(-(signed @ w)).mean() + 1e-4 * (w * w).sum()

    return Problem(loss, [np.zeros(features)], (y[:, None] * x,))


def rosenbrock(size: int) -> Problem:
    def valley(names: Any, params: Any, data: Any) -> Any:
        (x,) = params
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Problem(valley, [np.full(size, -1.2)])


def network(samples: int) -> Problem:
    """A 64-32-10 network with weight decay, full batch; random classes of random inputs."""
    rng = np.random.default_rng(0)
    one_hot = np.eye(10)[rng.integers(10, size=samples)]
    shapes = (64, 32), (32,), (32, 10), (10,)
    start = [rng.standard_normal(s) / np.sqrt(s[0]) if len(s) > 1 else np.zeros(s) for s in shapes]

    def loss(names: Any, params: Any, data: Any) -> Any:
        (a, b, c, d), (x, target) = params, data
        scores = names.tanh(x @ a + b) @ c + d
        entropy = (names.logsumexp(scores) - (scores * target).sum(-1)).mean()
        return entropy + 1e-2 * sum((p * p).sum() for p in params)

    return Problem(loss, start, (rng.standard_normal((samples, 64)), one_hot))


def quartic(size: int, iterations: int) -> Problem:
    """A function that costs next to nothing, for a fixed number of iterations."""
    weights = np.random.default_rng(0).uniform(0.5, 2, size)

    def loss(names: Any, params: Any, data: Any) -> Any:
        (x,), (c,) = params, data
        away = (x - 1) ** 2
        return (c * away + 0.1 * away * away).sum()

    return Problem(loss, [np.zeros(size)], (weights,), 0.0, iterations)


def ours(problem: Problem, function: Any) -> Callable[[Any], Any]:
    tx = lbfgs(
        max_iter=problem.most,
        max_eval=2 * problem.most,
        tolerance_grad=problem.tolerance,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    fn = jax.value_and_grad(function)

    def solve(params: Any) -> Any:
        changes, state = tx.update(None, tx.init(params), params, value_and_grad_fn=fn)
        solution = jax.tree.map(jnp.add, params, changes)
        return solution, state.n_iter, state.func_evals

    return solve


def largest(tree: Any) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree)]))


def optax_lbfgs(problem: Problem, function: Any) -> Callable[[Any], Any]:
    import optax

    tx = optax.lbfgs(memory_size=HISTORY)
    fn = optax.value_and_grad_from_state(function)

    def more(carry: Any) -> jax.Array:
        _, state, iterations, _ = carry
        gradient = optax.tree.get(state, "grad")
        return (iterations < problem.most) & (
            (iterations == 0) | (largest(gradient) > problem.tolerance)
        )

    def body(carry: Any) -> Any:
        params, state, iterations, evaluations = carry
        value, grads = fn(params, state=state)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=function)
        trials = optax.tree.get(state, "num_linesearch_steps").astype(jnp.int32)
        return optax.apply_updates(params, updates), state, iterations + 1, evaluations + trials

    def solve(params: Any) -> Any:
        one = jnp.ones((), jnp.int32)  # the evaluation at the start
        params, _, *counts = jax.lax.while_loop(more, body, (params, tx.init(params), 0 * one, one))
        return params, *counts

    return solve


def jaxopt_lbfgs(problem: Problem, function: Any) -> Callable[[Any], Any]:
    import jaxopt

    fn = jax.value_and_grad(function)
    solver = jaxopt.LBFGS(
        fn, value_and_grad=True, tol=0.0, maxiter=problem.most, history_size=HISTORY
    )

    def more(carry: Any) -> jax.Array:
        _, state = carry
        return (state.iter_num < problem.most) & (largest(state.grad) > problem.tolerance)

    def solve(params: Any) -> Any:
        params, state = jax.lax.while_loop(
            more, lambda carry: tuple(solver.update(*carry)), (params, solver.init_state(params))
        )
        return params, state.iter_num, state.num_fun_eval

    return solve


def optimistix_lbfgs(problem: Problem, function: Any) -> Callable[[Any], Any]:
    import equinox
    import optimistix

    solver = optimistix.LBFGS(rtol=0.0, atol=0.0, history_length=HISTORY)

    def fn(params: Any, args: Any) -> Any:
        return function(params), None

    def solve(params: Any) -> Any:
        like = jax.eval_shape(function, params)
        begin = solver.init(fn, params, None, {}, like, None, frozenset())
        arrays, rest = equinox.partition(begin, equinox.is_array)

        def more(carry: Any) -> jax.Array:
            _, arrays, steps = carry
            state = equinox.combine(arrays, rest)
            running = largest(state.f_info.grad) > problem.tolerance
            return (state.num_accepted_steps < problem.most) & ((steps < 2) | running)

        def body(carry: Any) -> Any:
            params, arrays, steps = carry
            state = equinox.combine(arrays, rest)
            params, state, _ = solver.step(fn, params, None, {}, state, frozenset())
            return params, equinox.filter(state, equinox.is_array), steps + 1

        zero = jnp.zeros((), jnp.int32)
        params, arrays, steps = jax.lax.while_loop(more, body, (params, arrays, zero))
        return params, equinox.combine(arrays, rest).num_accepted_steps, steps

    return solve


COMPILED = {
    "ours": ours,
    "optax": optax_lbfgs,
    "jaxopt": jaxopt_lbfgs,
    "optimistix": optimistix_lbfgs,
}


def compiled(make: Any, problem: Problem) -> Run:
    start = [jnp.asarray(x) for x in problem.start]
    data = [jnp.asarray(x) for x in problem.data]  # an argument: a constant slows compilation

    def solve(params: Any, data: Any) -> Any:
        return make(problem, problem.in_jax(data))(params)

    program = jax.jit(solve).lower(start, data).compile()
    return lambda: jax.block_until_ready(program(start, data))


def torch_lbfgs(problem: Problem) -> Run:
    import torch

    names = torch_names()
    data = [torch.tensor(a) for a in problem.data]

    def run() -> tuple[Any, Any, Any]:
        params = [torch.nn.Parameter(torch.tensor(x)) for x in problem.start]
        optimizer = torch.optim.LBFGS(
            params,
            max_iter=problem.most,
            max_eval=2 * problem.most,
            tolerance_grad=problem.tolerance,
            tolerance_change=0.0,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            optimizer.zero_grad()
            loss = problem.function(names, params, data)
            loss.backward()
            return loss

        optimizer.step(closure)
        state = optimizer.state[params[0]]
        return [p.detach().numpy() for p in params], state["n_iter"], state["func_evals"]

    return run


def scipy_lbfgs(problem: Problem) -> Run:
    from scipy.optimize import minimize

    start, unravel = ravel_pytree([jnp.asarray(x) for x in problem.start])
    data = [jnp.asarray(a) for a in problem.data]

    @jax.jit
    @jax.value_and_grad
    def function(x: jax.Array, data: Any) -> jax.Array:
        return problem.in_jax(data)(unravel(x))

    fn = function.lower(start, data).compile()

    def evaluated(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grads = fn(jnp.asarray(x), data)
        return float(value), np.asarray(grads)

    options = {
        "maxcor": HISTORY,
        "ftol": 0.0,
        "gtol": problem.tolerance,
        "maxiter": problem.most,
        "maxfun": 2 * problem.most,
    }

    def run() -> tuple[Any, Any, Any]:
        found = minimize(evaluated, np.asarray(start), jac=True, method="L-BFGS-B", options=options)
        return unravel(jnp.asarray(found.x)), found.nit, found.nfev

    return run


def installed(names: list[str]) -> list[str]:
    kept = []
    for name in names:
        try:
            importlib.import_module("functorch_optim" if name == "ours" else name)
            kept.append(name)
        except ImportError:
            print(f"{name} is not installed: left out.\n")
    return kept


def solver(name: str, problem: Problem) -> tuple[Run, float]:
    """A library's run, and the seconds it takes to trace and compile it."""
    start = time.perf_counter()
    if name in COMPILED:
        run = compiled(COMPILED[name], problem)
    else:
        run = {"torch": torch_lbfgs, "scipy": scipy_lbfgs}[name](problem)
    return run, time.perf_counter() - start


def side_by_side(runs: dict[str, Run], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each and what they found, taken in turns."""
    found = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}, found


def compare(title: str, problem: Problem, names: list[str], repeats: int) -> None:
    print(f"{title}, median of {repeats}\n")
    print("| | iterations | evaluations | max abs gradient | compile s | ms | of ours |")
    print("|---|---|---|---|---|---|---|")
    made = {name: solver(name, problem) for name in names}
    seconds, found = side_by_side({name: run for name, (run, _) in made.items()}, repeats)
    gradient = jax.grad(problem.in_jax([jnp.asarray(a) for a in problem.data]))
    for name in names:
        solution, iterations, evaluations = found[name]
        left = largest(gradient([jnp.asarray(x) for x in solution]))
        compiling = "-" if name == "torch" else f"{made[name][1]:.2f}"
        print(
            f"| {name} | {int(iterations)} | {int(evaluations)} | {float(left):.1e} | {compiling} "
            f"| {1e3 * seconds[name]:.1f} | {seconds[name] / seconds['ours']:.2f} |"
        )
    print()


def traffic(size: int, repeats: int) -> float:
    """Seconds that one iteration's vectors take through memory at the speed of a copy.

    The two-loop recursion uses each of the 2 x HISTORY remembered vectors twice, and with each use
    reads, or reads and writes, the vector it works on: the one that is on its way is read for an
    inner product, and read and written for a sum. That is 10 vectors for each pair.
    """
    ring = jnp.zeros((2 * HISTORY, size))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ring = jax.block_until_ready(copy(ring))
        times.append(time.perf_counter() - start)
    bandwidth = 2 * ring.nbytes / statistics.median(times[1:])
    print(f"Copies run at {bandwidth / 1e9:.1f} GB/s.")
    return 10 * HISTORY * size * 8 / bandwidth


def compare_large(size: int, iterations: int, names: list[str], repeats: int) -> None:
    problem = quartic(size, iterations)
    floor = 1e3 * traffic(size, repeats)
    runs = {name: solver(name, problem)[0] for name in names}
    seconds, found = side_by_side(runs, repeats)
    each = {name: 1e3 * seconds[name] / int(found[name][1]) for name in names}
    print(f"{size:,} variables, {iterations} iterations, median of {repeats}\n")
    print("| | iterations | evaluations | ms per iteration | of ours | of the floor |")
    print("|---|---|---|---|---|---|")
    for name in names:
        print(
            f"| {name} | {int(found[name][1])} | {int(found[name][2])} | {each[name]:.2f} "
            f"| {each[name] / each['ours']:.2f} | {each[name] / floor:.2f} |"
        )
    print(
        f"| the two-loop recursion's traffic | | | {floor:.2f} | {floor / each['ours']:.2f} | 1 |"
    )
    print()


def compare_many(problems: int, names: list[str], repeats: int) -> None:
    """Problems of different data under one `vmap`."""
    rng = np.random.default_rng(0)
    signed = jnp.asarray(rng.standard_normal((problems, 200, 50)))
    start = jnp.zeros((problems, 50))
    blank = regression(2, 2)
    print(f"{problems} regressions of 200 x 50 under vmap, median of {repeats}\n")
    print("| | most iterations | most evaluations | compile s | ms | of ours |")
    print("|---|---|---|---|---|---|")
    runs, compiling = {}, {}
    for name in names:

        def one(data: Any, params: Any, name: str = name) -> Any:
            return COMPILED[name](blank, blank.in_jax([data]))(params)

        before = time.perf_counter()
        program = jax.jit(jax.vmap(one)).lower(signed, [start]).compile()
        compiling[name] = time.perf_counter() - before
        runs[name] = lambda program=program: jax.block_until_ready(program(signed, [start]))
    seconds, found = side_by_side(runs, repeats)
    for name in names:
        _, iterations, evaluations = found[name]
        print(
            f"| {name} | {int(iterations.max())} | {int(evaluations.max())} "
            f"| {compiling[name]:.2f} | {1e3 * seconds[name]:.1f} "
            f"| {seconds[name] / seconds['ours']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="small problems, no network, under a minute"
    )
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    names = installed(["ours", "torch", "optax", "jaxopt", "optimistix", "scipy"])
    in_jax = [name for name in names if name in COMPILED]
    repeats = 2 if quick else 5
    for name in in_jax:  # so that no compilation time below has a first use in it
        compiled(COMPILED[name], rosenbrock(3))

    sizes = (2_000, 50) if quick else (20_000, 500)
    compare("Logistic regression {:,} x {}".format(*sizes), regression(*sizes), names, repeats)
    size = 20 if quick else 100
    compare(f"Rosenbrock-{size}", rosenbrock(size), names, repeats)
    if not quick:
        compare("Network 64-32-10, 512 samples", network(512), names, repeats)
    compare_large(100_000 if quick else 1_000_000, 15 if quick else 20, names, repeats)
    compare_many(8 if quick else 64, in_jax, repeats)


if __name__ == "__main__":
    main()
