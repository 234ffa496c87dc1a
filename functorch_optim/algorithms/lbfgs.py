"""L-BFGS: Newton's step with an inverse Hessian known from the last few steps and gradients.

    s_k = x_{k+1} - x_k,   y_k = g_{k+1} - g_k,   kept where y_k . s_k > 1e-10
    d_k = -H_k g_k         by the two-loop recursion over the pairs, H_0 = (s . y / y . y) I
    x_{k+1} = x_k + t d_k  with t = lr, or found by a strong-Wolfe search (`strong_wolfe.py`)

Nocedal, "Updating Quasi-Newton Matrices with Limited Storage", 1980. Liu, Nocedal, "On the Limited
Memory BFGS Method for Large Scale Optimization", 1989.

One update is one `torch.optim.LBFGS.step`: many iterations and evaluations of the function. They
run as one `while_loop` of a state machine: each turn takes the function's value and gradient at one
point, and leads to the next point. So the program has one place that evaluates the function, and a
caller with a function that cannot be traced can drive the machine by hand (`begin`, `advance`).

As in torch all parameters are one vector: complex numbers as pairs of reals, mixed dtypes in the
widest (float16 and bfloat16 in float32), in which they stay within an update. A departure: a
function that is not finite ends the iteration at the last good point, where torch goes on with NaN.
If that is where the iteration started, the pairs are dropped, and it starts anew along -g.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.algorithms import strong_wolfe
from functorch_optim.core import checks, slips, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import is_number
from functorch_optim.core.counting import LAST, increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Hyperparameter,
    Params,
    Scalar,
    Updates,
)
from functorch_optim.rules.docstrings import with_math
from functorch_optim.rules.numbers import hyperparameters_at

SMALLEST_CURVATURE = 1e-10


class LBFGSState(NamedTuple):
    """What one update leaves to the next; all vectors are flat.

    Attributes:
      step: updates made so far (torch keeps none).
      func_evals: evaluations so far.
      n_iter: iterations so far.
      d: the last direction, `(n,)`.
      t: the last step along it.
      old_dirs: the pairs' y, `(history_size, n)`, a ring.
      old_stps: the pairs' s, likewise.
      ro: 1 / (y . s), `(history_size,)`.
      H_diag: the inverse Hessian before the pairs, a multiple of the identity.
      prev_flat_grad: the gradient where the last iteration started, `(n,)`.
      prev_loss: the function's value there.
      pairs: pairs kept so far; the last one is at `(pairs - 1) % history_size`.
    """

    step: Scalar
    func_evals: Scalar
    n_iter: Scalar
    d: jax.Array
    t: Scalar
    old_dirs: jax.Array
    old_stps: jax.Array
    ro: jax.Array
    H_diag: Scalar
    prev_flat_grad: jax.Array
    prev_loss: Scalar
    pairs: Scalar


class SearchNumbers(NamedTuple):
    """The hyperparameters of one update."""

    lr: Any
    max_iter: Any
    max_eval: Any
    tolerance_grad: Any
    tolerance_change: Any


class Run(NamedTuple):
    """One update on its way: what it waits for is the function at `x + t * state.d`.

    Attributes:
      state: the state so far.
      x: the point where the iteration started, `(n,)`.
      t: the trial's step; 0 before the first iteration.
      g: the gradient at the best point of the search.
      search: the line search; without one, its beginning.
      iterations: of this update.
      evaluations: of this update.
      started: whether the function at the first point is known.
      stopped: whether the update is over; its result is x.
    """

    state: LBFGSState
    x: jax.Array
    t: Scalar
    g: jax.Array
    search: strong_wolfe.Search
    iterations: Scalar
    evaluations: Scalar
    started: Scalar
    stopped: Scalar

    @property
    def trial(self) -> jax.Array:
        """Where the function is to be evaluated next."""
        return self.x + self.t * self.state.d


class Next(NamedTuple):
    """What the end of an iteration, or one more trial in it, leads to.

    Attributes:
      d: the direction.
      t: the step along it, as the state keeps it.
      search: waits for the function at its next trial.
      prev_flat_grad: the gradient where the iteration started.
      prev_loss: the function's value there.
      pairs: pairs that are of use.
      H_diag: the inverse Hessian before them.
      stays: whether the function does not fall enough along the direction.
    """

    d: jax.Array
    t: Scalar
    search: strong_wolfe.Search
    prev_flat_grad: jax.Array
    prev_loss: Scalar
    pairs: Scalar
    H_diag: Scalar
    stays: Scalar


def empty(size: int, dtype: Any, history_size: int) -> LBFGSState:
    """The state before the first update of a vector of this size."""

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, dtype)

    def count() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    history = history_size, size
    return LBFGSState(
        step=count(),
        func_evals=count(),
        n_iter=count(),
        d=zeros(size),
        t=zeros(),
        old_dirs=zeros(*history),
        old_stps=zeros(*history),
        ro=zeros(history_size),
        H_diag=jnp.ones((), dtype),
        prev_flat_grad=zeros(size),
        prev_loss=zeros(),
        pairs=count(),
    )


def begin(state: LBFGSState, x: jax.Array) -> Run:
    """An update of the vector x that waits for the function there."""
    zero = jnp.zeros((), x.dtype)
    return Run(
        state=state._replace(step=increment(state.step)),
        x=x,
        t=zero,
        g=jnp.zeros_like(x),
        search=strong_wolfe.begin(zero, zero, zero, zero, jnp.zeros((), jnp.int32)),
        iterations=jnp.zeros((), jnp.int32),
        evaluations=jnp.zeros((), jnp.int32),
        started=jnp.zeros((), bool),
        stopped=jnp.zeros((), bool),
    )


def advance(
    run: Run, f: jax.Array, g: jax.Array, h: SearchNumbers, searches: bool, stop_on_nan: bool
) -> Run:
    """The update after the function at its trial turned out to have this value and gradient."""
    f, g = f.astype(run.x.dtype), g.astype(run.x.dtype)
    evaluations = run.evaluations + 1
    state = run.state._replace(func_evals=run.state.func_evals + 1)

    # Where the iteration ended, if it did: at the step t, with this value and gradient.
    first = ~run.started
    slope = jnp.sum(g * state.d)
    bad = ~(jnp.isfinite(f) & jnp.isfinite(slope)) if stop_on_nan else jnp.zeros((), bool)
    trial = f, slope
    if searches:
        bad = bad & (first | (f != jnp.inf))  # a search comes back from what is too high
        search, outcome = strong_wolfe.advance(run.search, *trial)
        best = _choose(bad, run.search.low, search.low)  # the last good one
        ended = first | bad | outcome.ended
        t, f = _choose(first, (run.t, f), (best.t, best.f))
        g = jnp.where(first | (outcome.trial_is_low & ~bad), g, run.g)
        g = jnp.where(outcome.start_is_low & ~bad & ~first, state.prev_flat_grad, g)
    else:
        ended = ~jnp.zeros((), bool)
        start = state.prev_loss, state.prev_flat_grad
        t, (f, g) = jnp.where(bad, 0, run.t), _choose(bad & ~first, start, (f, g))

    # Nothing good along the direction: the pairs that it is made of are not to be used again.
    blocked = bad & ~first & (t == 0)
    again = blocked & (state.pairs > 0)
    exhausted = (run.iterations == h.max_iter) | (evaluations >= h.max_eval)
    small = (jnp.abs(t) * run.search.size <= h.tolerance_change) | (
        jnp.abs(f - state.prev_loss) < h.tolerance_change
    )
    nothing_to_do = (_largest(g) <= h.tolerance_grad) | (h.max_iter <= 0)
    enough = exhausted | (small & ~again)
    over = ended & ((bad & ~again) | nothing_to_do | (enough & ~first))
    now = ended & ~over
    one = now.astype(jnp.int32)
    state = state._replace(t=jnp.where(ended & ~first, t, state.t), n_iter=state.n_iter + one)
    run = run._replace(
        state=_remembered(state, g, now, blocked),
        x=jnp.where(ended, run.x + t * state.d, run.x),
        g=g,
        iterations=run.iterations + one,
        evaluations=evaluations,
        started=~jnp.zeros((), bool),
    )

    # Only what changes comes out of a branch: more would be copied.
    def iterate(run: Run) -> Next:
        return _next_iteration(run, f, h, stop_on_nan)

    def go_on(run: Run) -> Next:
        last, search = run.state, run.search
        if searches:
            search, _ = strong_wolfe.advance(search, *trial)
        no = jnp.zeros((), bool)
        return Next(
            last.d,
            last.t,
            search,
            last.prev_flat_grad,
            last.prev_loss,
            last.pairs,
            last.H_diag,
            no,
        )

    found = jax.lax.cond(now, iterate, go_on, run)
    state = run.state._replace(
        d=found.d,
        t=found.t,
        prev_flat_grad=found.prev_flat_grad,
        prev_loss=found.prev_loss,
        pairs=found.pairs,
        H_diag=found.H_diag,
    )
    x, stopped = run.x, over | found.stays
    if not searches:  # the last move is not looked at
        moves = now & ~found.stays & (run.iterations == h.max_iter)
        x, stopped = jnp.where(moves, x + found.t * found.d, x), stopped | moves
    return run._replace(state=state, x=x, t=found.search.t, search=found.search, stopped=stopped)


def _next_iteration(run: Run, f: jax.Array, h: SearchNumbers, stop_on_nan: bool) -> Next:
    """The start of an iteration at x, where the function has this value and the gradient run.g."""
    g, state = run.g, run.state
    d = _direction(g, state)
    slope = jnp.sum(g * d)
    anew = (state.n_iter == 1) | ((state.pairs == 0) & (state.t == 0))
    pairs, scale = state.pairs, state.H_diag
    if stop_on_nan:  # pairs that lead nowhere, or not down, are dropped
        useless = ~((slope < 0) & jnp.isfinite(slope))
        steepest = -g, -jnp.sum(g * g), jnp.zeros_like(pairs), jnp.ones_like(scale)
        d, slope, pairs, scale = _choose(useless, steepest, (d, slope, pairs, scale))
        anew = anew | useless
    shorter = jnp.minimum(1, 1 / jnp.sum(jnp.abs(g)))
    t = jnp.where(anew, shorter, 1).astype(d.dtype) * h.lr
    search = strong_wolfe.begin(t, f, slope, _largest(d), h.max_eval - run.evaluations)
    return Next(d, t, search, g, f, pairs, scale, slope > -h.tolerance_change)


def _remembered(state: LBFGSState, g: jax.Array, now: jax.Array, blocked: jax.Array) -> LBFGSState:
    """The state with the pair of the iteration that ended with this gradient, if it did `now`.

    Without any pair if it was `blocked`.
    """
    anew = (now & (state.n_iter == 1)) | blocked
    y, s = g - state.prev_flat_grad, state.d * state.t
    ys, yy = jnp.sum(y * s), jnp.sum(y * y)
    keep = now & ~anew & (ys > SMALLEST_CURVATURE) & (ys < jnp.inf) & (yy < jnp.inf)
    pairs = jnp.where(anew, 0, state.pairs)
    slot = pairs % state.ro.size

    # One row is written in any case: a choice between whole rings would copy them.
    def row(ring: jax.Array, new: jax.Array) -> jax.Array:
        return _put(ring, slot, jnp.where(keep, new, _at(ring, slot)))

    scale = ys / yy
    return state._replace(
        old_dirs=row(state.old_dirs, y),
        old_stps=row(state.old_stps, s),
        ro=row(state.ro, 1 / ys),
        H_diag=jnp.where(keep, scale, jnp.where(anew, 1, state.H_diag)),
        pairs=pairs + keep.astype(jnp.int32),
    )


def _direction(g: jax.Array, state: LBFGSState) -> jax.Array:
    """`-H g`, by the two-loop recursion: newest pair to oldest, and back."""
    size = state.ro.size
    count = jnp.minimum(state.pairs, size)

    def backward(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, al = carry
        j = (state.pairs - 1 - i) % size
        a = jnp.sum(_at(state.old_stps, j) * q) * _at(state.ro, j)
        return q - a * _at(state.old_dirs, j), _put(al, j, a)

    def forward(i: Any, r: jax.Array) -> jax.Array:
        j = (state.pairs - count + i) % size
        b = jnp.sum(_at(state.old_dirs, j) * r) * _at(state.ro, j)
        return r + (_at(al, j) - b) * _at(state.old_stps, j)

    q, al = jax.lax.fori_loop(0, count, backward, (-g, jnp.zeros_like(state.ro)))
    return jax.lax.fori_loop(0, count, forward, q * state.H_diag)


def _at(ring: jax.Array, slot: Any) -> jax.Array:
    """A row, whose number is known to be one: no kernels that look whether it is."""
    return ring.at[slot].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _put(ring: jax.Array, slot: Any, row: jax.Array) -> jax.Array:
    return ring.at[slot].set(row, mode="promise_in_bounds", wrap_negative_indices=False)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)


def _choose(condition: jax.Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


class FlatVector:
    """How a tree of parameters is one vector.

    Leaves that are not floating point are no part of it.
    """

    def __init__(self, params: Params):
        self.leaves, self.treedef = trees.flatten(params)
        self.inside = [i for i, p in enumerate(self.leaves) if not trees.has_no_update(p)]
        self.like = [jnp.asarray(self.leaves[i]) for i in self.inside]
        wide = widest(jnp.float32, *(p.dtype for p in self.like))
        self.dtype = real_dtype(wide)
        self.size = sum(math.prod(_real_shape(p)) for p in self.like)

    def vector(self, tree: Any, name: str) -> jax.Array:
        """A tree like the parameters as a vector; a leaf that is `None` is zeros.

        Raises:
          TypeError: the structures differ. ValueError: two shapes differ.
        """
        given = trees.flatten_like(tree, self.treedef, name)
        trees.check_shapes(given, self.leaves, self.treedef, name)
        parts = [self._part(given[i], p) for i, p in zip(self.inside, self.like, strict=True)]
        return jnp.concatenate([jnp.zeros(0, self.dtype), *parts])

    def _part(self, x: Any, like: jax.Array) -> jax.Array:
        if trees.is_sparse(x):
            x = x.todense()
        x = jnp.zeros_like(like) if trees.has_no_update(x) else jnp.asarray(x)
        if jnp.iscomplexobj(x) and not jnp.iscomplexobj(like):
            raise TypeError(f"a gradient of dtype {x.dtype} cannot update one of {like.dtype}")
        if jnp.iscomplexobj(like):
            x = x.astype(widest(x.dtype, like.dtype))
        return to_real(x, self.dtype).reshape(-1)

    def split(self, vector: jax.Array) -> list[jax.Array]:
        """The leaves that are in a vector, in their own dtypes and shapes."""
        found, start = [], 0
        for p in self.like:
            shape = _real_shape(p)
            stop = start + math.prod(shape)
            found.append(from_real(vector[start:stop].reshape(shape), p.dtype))
            start = stop
        return found

    def tree(self, vector: jax.Array) -> Params:
        """The parameters that a vector stands for; those outside of it as they are."""
        filled = list(self.leaves)
        for i, p in zip(self.inside, self.split(vector), strict=True):
            filled[i] = p
        return self.treedef.unflatten(filled)


def _real_shape(p: jax.Array) -> tuple[int, ...]:
    return (*p.shape, 2) if jnp.iscomplexobj(p) else p.shape


@value_equal
@with_math
def lbfgs(
    lr: Hyperparameter = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: Hyperparameter = 1e-7,
    tolerance_change: Hyperparameter = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
    *,
    stop_on_nan: bool = True,
) -> GradientTransformation:
    """L-BFGS; one update is one step of torch.optim.LBFGS, with all its inner iterations.

    `update(grads, state, params, value=value, value_and_grad_fn=fn)` needs the function itself,
    `fn(params) -> (value, grads)`. `value` and `grads` are its result at `params`; without `value`
    they are computed in the update, which then looks at no `grads`:
    `update(None, state, params, value_and_grad_fn=fn)`. That compiles the function once instead of
    twice. Of complex parameters, grads are the conjugates of `jax.grad`'s.

    An update cannot be differentiated in reverse (a `while_loop` cannot), and its vectors are not
    sharded. A chain hands `value_and_grad_fn` on, this library's and optax's.

    Args:
      lr: the step along a direction, the first trial of the line search. Every number but
        history_size may be an array or a schedule.
      max_iter: iterations per update at most.
      max_eval: evaluations per update at most; `max_iter * 5 // 4` by default. As in torch, the
        last line search may make one more.
      tolerance_grad: stop where no component of the gradient is larger.
      tolerance_change: stop where neither parameters nor value change by more.
      history_size: pairs that the state remembers: `2 * history_size` vectors.
      line_search_fn: `None` or "strong_wolfe". With max_iter of 1 the default max_eval is 1, and
        the search tries one point alone: as in torch, nothing ever moves where that point is no
        lower. Give it a larger max_eval.
      stop_on_nan: end the update at the last good point where the function or its gradient is not
        finite (a line search comes back from plus infinity by itself); the pairs are dropped if
        that is where the iteration started. False goes on as torch does, to parameters that are
        NaN. The last move of an update without a line search is not looked at, as in torch: where
        it leads is seen by the next update.

    Returns:
      A `GradientTransformation` whose state is `LBFGSState`. An update without a gradient above
      `tolerance_grad` is zero.

    Raises:
      ValueError: a learning rate that torch refuses, a history_size that is not a positive
        integer; from update, missing arguments. RuntimeError: from update as in torch, an unknown
        line_search_fn.
    """
    slips.check_no_parameters("lbfgs", "lr", lr)
    checks.learning_rate(lr)
    is_count = isinstance(history_size, int | np.integer) and not isinstance(history_size, bool)
    if not is_count or history_size < 1:
        raise ValueError(f"history_size should be a positive integer, but got {history_size!r}")
    values = {
        "lr": lr,
        "max_iter": max_iter,
        "max_eval": max_eval,
        "tolerance_grad": tolerance_grad,
        "tolerance_change": tolerance_change,
    }
    for name in ("lr", "tolerance_grad", "tolerance_change"):
        checks.number_or_schedule(name, values[name])
    checks.number_of_times("max_iter", max_iter)
    if max_eval is not None:
        checks.number_of_times("max_eval", max_eval)
    if line_search_fn is not None:
        checks.word("line_search_fn", line_search_fn)
    checks.flag("stop_on_nan", stop_on_nan)
    checks.finite(lr=lr)

    @abstract_aware
    def init(params: Params) -> LBFGSState:
        layout = FlatVector(params)
        return empty(layout.size, layout.dtype, history_size)

    def update(
        grads: Updates,
        state: LBFGSState,
        params: Params | None = None,
        *,
        value: Any = None,
        value_and_grad_fn: Callable[[Params], tuple[Any, Updates]] | None = None,
        **extra: Any,
    ) -> tuple[Updates, LBFGSState]:
        checks.state("lbfgs", LBFGSState, state)
        checks.given("lbfgs", "params", params, "steps start there")
        checks.given("lbfgs", "value_and_grad_fn", value_and_grad_fn, "it evaluates other points")
        assert value_and_grad_fn is not None  # known to the type checker, too
        searches = uses_search(line_search_fn)
        layout = FlatVector(params)
        x = layout.vector(params, "params")
        if x.size != state.d.size:
            raise ValueError(
                f"state and params differ in size: the state is that of {state.d.size} numbers, "
                f"params have {x.size}"
            )
        _check_state(state, jax.eval_shape(lambda: empty(x.size, x.dtype, history_size)))
        h = search_numbers(hyperparameters_at(values, state.step.astype(jnp.int32)), x.dtype)

        def flat(value: Any, grads: Any) -> tuple[jax.Array, jax.Array]:
            return jnp.asarray(value, layout.dtype).reshape(()), layout.vector(grads, "grads")

        def evaluated(run: Run) -> tuple[jax.Array, jax.Array]:
            return flat(*value_and_grad_fn(layout.tree(run.trial)))

        def turn(run: Run) -> Run:
            f, g = (
                evaluated(run)
                if first is None
                else jax.lax.cond(run.started, evaluated, lambda run: first, run)
            )
            return advance(run, f, g, h, searches, stop_on_nan)

        first = None if value is None else flat(value, grads)

        run = jax.lax.while_loop(lambda run: ~run.stopped, turn, begin(state, x))
        filled: list[Any] = [None] * len(layout.leaves)
        for i, change in zip(layout.inside, layout.split(run.x - x), strict=True):
            filled[i] = change
        return layout.treedef.unflatten(filled), run.state

    return GradientTransformation(init, update)


def _check_state(state: LBFGSState, like: LBFGSState) -> None:
    """Raises unless a state has the shapes and dtypes of another, its numbers any real dtype.

    Raises:
      TypeError: a dtype differs. ValueError: a shape differs.
    """
    for name, value, wanted in zip(state._fields, state, like, strict=True):
        if jnp.shape(value) != wanted.shape:
            raise ValueError(
                f"lbfgs: {name} of the state has shape {jnp.shape(value)}, but should have "
                f"{wanted.shape}"
            )
        dtype = jnp.result_type(value)
        if dtype != wanted.dtype and name != "step":
            raise TypeError(
                f"lbfgs: {name} of the state has dtype {dtype}, but should have {wanted.dtype}"
            )


def uses_search(line_search_fn: str | None) -> bool:
    """Whether there is a line search.

    Raises:
      RuntimeError: an unknown one, in torch's words.
    """
    if line_search_fn not in (None, "strong_wolfe"):
        raise RuntimeError("only 'strong_wolfe' is supported")
    return line_search_fn is not None


def search_numbers(h: Any, dtype: Any) -> SearchNumbers:
    """The hyperparameters as arrays: counts as integers, the others in the vectors' dtype."""
    max_eval = h.max_iter * 5 // 4 if h.max_eval is None else h.max_eval

    def count(x: Any) -> jax.Array:
        return jnp.asarray(min(x, LAST) if is_number(x) else x).astype(jnp.int32)

    return SearchNumbers(
        jnp.asarray(h.lr, dtype),
        count(h.max_iter),
        count(max_eval),
        jnp.asarray(h.tolerance_grad, dtype),
        jnp.asarray(h.tolerance_change, dtype),
    )
