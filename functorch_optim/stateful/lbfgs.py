"""torch.optim.LBFGS: driven by a closure, or with its function inside of one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.algorithms import lbfgs as algorithm
from functorch_optim.algorithms.lbfgs import FlatVector, LBFGSState, Run, SearchNumbers
from functorch_optim.core import trees
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.stateful.memory.of_lbfgs import DEFAULTS, LBFGSMemory, SearchPlan
from functorch_optim.stateful.model import arrays, split
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.step import program
from functorch_optim.stateful.step.program import Part


class LBFGS(Optimizer):
    """torch.optim.LBFGS: the stateful face of `functorch_optim.lbfgs`.

    `step(closure)` takes a torch-style closure, which computes gradients and returns the loss:

        def closure():
            opt.zero_grad()
            return optim.backward(loss_fn, model, batch)

        loss = opt.step(closure)

    `step(loss_fn, model, batch)` is the same step as ONE compiled program, like that of
    `make_step(loss_fn, model)`. Both return the loss before the step, and make the same
    iterations.

    Args:
      params: parameters, of one group.
      lr: the step along a direction, the first trial of the line search. Default: 1.
      max_iter: iterations per step at most. Default: 20.
      max_eval: evaluations per step at most. Default: `max_iter * 5 // 4`.
      tolerance_grad: stop where no component of the gradient is larger. Default: 1e-7.
      tolerance_change: stop where neither parameters nor value change by more. Default: 1e-9.
      history_size: pairs to remember. Default: 100.
      line_search_fn: `None` or "strong_wolfe".
      stop_on_nan: end a step at the last good point where the loss or its gradient is not finite.
        False goes on as torch does. Kept beside `param_groups`, which are torch's. Default: True.

    Raises:
      ValueError: a value that torch refuses, or several groups.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: Any = 1e-7,
        tolerance_change: Any = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        stop_on_nan: bool = True,
    ):
        chosen = (
            lr,
            max_iter,
            max_iter * 5 // 4 if max_eval is None else max_eval,
            tolerance_grad,
            tolerance_change,
            history_size,
            line_search_fn,
        )
        algorithm.lbfgs(*chosen)
        self._stop_on_nan = stop_on_nan
        super().__init__(params, dict(zip(DEFAULTS, chosen, strict=True)))
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    def _new_memory(self) -> LBFGSMemory:
        return LBFGSMemory(self._stop_on_nan)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Minimizes for up to `max_iter` iterations.

        Args:
          *args: `closure`, a function that computes gradients and returns the loss, called at every
            point; or `loss_fn, model, *arguments`, compiled as by `make_step`.
          **kwargs: `closure` by name.

        Returns:
          What the closure returned first: the loss before the step. Or that of `loss_fn`.

        Raises:
          TypeError: there is no closure. AssertionError: a group was added. RuntimeError: as in
            torch, an unknown line search; the state was given away by `to_functional`. If the
            closure raises, parameters and state are those from before the step.
        """
        return super().step(*args, **kwargs)

    def _step(self, closure: Any = None, *arguments: Any) -> Any:
        self._check_not_lent()
        if closure is None:
            raise TypeError("LBFGS.step() missing 1 required positional argument: 'closure'")
        if arguments:
            return self.make_step(closure, arguments[0])(*arguments[1:])
        with self._lock:
            return self._driven(closure, self._only_part())

    def _driven(self, closure: Callable[[], Any], part: Part) -> Any:
        """A step whose function is evaluated by the closure, at one point after the other."""
        _, _, parameters = part
        plan, state, numbers, commit = self._memory.prepare([part])
        before = [p._data for p in parameters]
        traced = program.trace_count()

        def put(values: list[jax.Array]) -> None:
            for p, value in zip(parameters, values, strict=True):
                if not trees.has_no_update(value):  # integers are what they were
                    p.replace(value)

        try:
            first = loss = closure()
            run = _begun(state, before)
            while True:
                grads = [p.grad for p in parameters]
                run, values = _advanced(plan, run, before, _scalar(loss), grads, numbers)
                put(values)
                if run.stopped:
                    break
                loss = closure()
        except BaseException:
            for p, value in zip(parameters, before, strict=True):
                p.data = value
            raise
        commit(run.state)
        self.compile_count += program.trace_count() - traced
        return first

    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> Callable[..., Any]:
        """A step as ONE compiled program: every evaluation of the function, and the search.

        Args:
          loss_fn: `loss_fn(params, *args) -> loss`, where params is the model's plain tree.
          model: a tree with Parameters. Those that this optimizer holds and that require a
            gradient are trained; all else is constant.
          has_aux: loss_fn returns `(loss, aux)`.
          accumulate: average loss and gradients over so many micro-batches, stacked along the
            first axis of every array in args; auxiliary outputs come back stacked.
          clip_norm: not for L-BFGS, whose line search needs the gradients of the function.

        Returns:
          `train_step(*args)`: updates the parameters and returns the loss (or `(loss, aux)`) before
          the step, without waiting for it.

        Raises:
          ValueError: clip_norm is given, or accumulate is not a positive integer; from
            `train_step`, no Parameter of the model is held by this optimizer. AssertionError: from
            `train_step`, a group was added.
        """
        if clip_norm is not None:
            raise ValueError("LBFGS: clipped gradients are not those of the function it minimizes")
        program.check_accumulate(accumulate)
        train = _compiled(loss_fn, has_aux, accumulate)

        def train_step(*args: Any) -> Any:
            self._check_not_lent()
            part = self._only_part()
            skeleton, trained, constant = split(model, self._parameters())
            if not trained:
                raise ValueError("make_step: no Parameter of the model is held by this optimizer")
            if accumulate > 1:
                program.check_micro_batches(args, accumulate)
            places = tuple(part[2].index(p) for p in trained)
            self._opt_called = True
            return self._run(
                [part],
                lambda plan, data, state, numbers: train(
                    plan, skeleton, places, data, state, arrays(constant), numbers, args
                ),
                args,
            )

        return train_step

    def to_functional(self) -> tuple[Any, Any, Any]:
        """The optimizer as `(pair, params, state)`, for a loop inside `jit`.

        The pair is `functorch_optim.lbfgs`, whose update takes `value_and_grad_fn`.
        """
        self._check_not_lent()
        index, group, parameters = self._only_part()
        cells, treedef = trees.flatten(self._tree)
        if cells != parameters:
            raise ValueError("to_functional: a Parameter is listed more than once")
        _, _, _, commit = prepared = self._memory.prepare([(index, group, parameters)])
        commit(prepared.buffers)
        self._memory.steps -= 1
        options = {name: group[name] for name in DEFAULTS}
        pair = algorithm.lbfgs(**options, stop_on_nan=self._stop_on_nan)
        params = treedef.unflatten([p.data for p in cells])
        self._lent = True
        return GradientTransformation(*pair), params, self._memory.shown()

    def from_functional(self, params: Any, state: Any) -> None:
        """Takes back what `to_functional` gave away, further on.

        Raises:
          RuntimeError: nothing was given away. TypeError, ValueError: params or state do not fit;
            nothing is changed then.
        """
        if not self._lent:
            raise RuntimeError("nothing to take back: to_functional was not called before")
        cells, treedef = trees.flatten(self._tree)
        given = trees.flatten_like(params, treedef, "params", "the optimizer's parameters")
        values = [jnp.asarray(value) for value in given]
        for p, value in zip(cells, values, strict=True):
            p.check_like("value", value)
        if not isinstance(state, LBFGSState):
            raise TypeError(f"state should be an LBFGSState, but is {state!r}")
        if state.old_dirs.shape != self._memory.state.old_dirs.shape:
            raise ValueError(
                f"state should have a history of shape {self._memory.state.old_dirs.shape}, but "
                f"has {state.old_dirs.shape}"
            )
        for p, value in zip(cells, values, strict=True):
            p.data = value
        self._memory.state, self._memory.steps = state, int(state.step)
        self._memory.shown()
        self._lent = False

    def _only_part(self) -> Part:
        count = len(self.param_groups)
        if count != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {count}")
        return 0, self.param_groups[0], list(self._parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stop_on_nan": self._stop_on_nan}


def _scalar(loss: Any) -> jax.Array:
    if loss is None or jnp.size(loss) != 1:
        raise TypeError(f"closure should return the loss, a number, but returned {loss!r}")
    return jnp.asarray(loss).reshape(())


@jax.jit
def _begun(state: LBFGSState, data: list[jax.Array]) -> Run:
    """A step that waits for the function; its arrays are copies, to be donated."""
    program.count_trace()
    run = algorithm.begin(state, FlatVector(data).vector(data, "params"))
    return jax.tree.map(jnp.copy, run)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advanced(
    plan: SearchPlan,
    run: Run,
    data: list[jax.Array],
    loss: jax.Array,
    grads: list[Any],
    numbers: SearchNumbers,
) -> tuple[Run, list[jax.Array]]:
    """The step after an evaluation, and what to put into the Parameters: trial or result."""
    program.count_trace()
    layout = FlatVector(data)
    run = algorithm.advance(run, loss, layout.vector(grads, "grads"), numbers, *plan)
    where = jnp.where(run.stopped, run.x, run.trial)
    return run, layout.tree(where)


@functools.lru_cache(maxsize=256)
def _compiled(loss_fn: Callable[..., Any], has_aux: bool, accumulate: int) -> Callable[..., Any]:
    """All of a step in one program, which returns `(result, data, state)`."""

    @functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
    def train_step(
        plan: SearchPlan,
        skeleton: Any,
        places: tuple[int, ...],
        data: list[list[jax.Array]],
        state: LBFGSState,
        constant: Any,
        numbers: SearchNumbers,
        args: Any,
    ) -> Any:
        program.count_trace()
        (values,) = data
        layout = FlatVector(values)
        compute = program.evaluation(loss_fn, has_aux, accumulate, skeleton, constant, args)

        def evaluated(run: Run) -> tuple[Any, list[Any]]:
            point = layout.tree(run.trial)
            result, found = compute(tuple(point[i] for i in places))
            grads: list[Any] = [None] * len(values)
            for i, g in zip(places, found, strict=True):
                grads[i] = g
            return result, grads

        def turn(carry: tuple[Run, Any]) -> tuple[Run, Any]:
            run, first = carry
            result, grads = evaluated(run)
            loss = result[0] if has_aux else result
            first = jax.tree.map(lambda a, b: jnp.where(run.started, a, b), first, result)
            vector = layout.vector(grads, "grads")
            return algorithm.advance(run, loss, vector, numbers, *plan), first

        begun = algorithm.begin(state, layout.vector(values, "params"))
        shapes, _ = jax.eval_shape(evaluated, begun)
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        run, first = jax.lax.while_loop(lambda carry: ~carry[0].stopped, turn, (begun, empty))
        return first, [layout.tree(run.x)], run.state

    return train_step
