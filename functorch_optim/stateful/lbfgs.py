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
from functorch_optim.core.pair import Hyperparameter
from functorch_optim.stateful.grad_scaler import GradScaler
from functorch_optim.stateful.memory.cell import OUTSIDE, VALUES, Changes, alone
from functorch_optim.stateful.memory.of_lbfgs import DEFAULTS, LBFGSMemory, SearchPlan
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.step.program import Traces


class LBFGS(Optimizer):
    """torch.optim.LBFGS: the stateful face of `functorch_optim.lbfgs`.

    `step(closure)` takes a torch-style closure, which computes gradients and returns the loss::

        def closure():
            opt.zero_grad()
            return optim.backward(loss_fn, model, batch)

        loss = opt.step(closure)

    `step(loss_fn, model, batch)` is the same step as ONE compiled program, like that of
    `make_step(loss_fn, model)`. Both return the loss before the step, and make the same
    iterations. All parameters take part; those that the model lacks stay where they are.

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
        lr: Hyperparameter = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: Hyperparameter = 1e-7,
        tolerance_change: Hyperparameter = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        stop_on_nan: bool = True,
    ) -> None:
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
        return alone(self._lock, self._driven, closure)

    def _driven(self, closure: Callable[[], Any]) -> Any:
        """A step whose function is evaluated by the closure, at one point after the other."""
        groups = self._active(self._parameters())
        step = self._memory.prepare(groups)
        parameters = groups[0].parameters
        cells = [p._cell for p in parameters]
        before = alone(VALUES, lambda: [cell.read() for cell in cells])
        state = step.release(True)
        count, traced = self.compile_count, Traces.count
        finished: dict[str, Any] = {}
        try:
            first = loss = closure()
            run = _begun(state, before)
            while True:
                grads = [p.grad for p in parameters]
                run, values = _advanced(step.plan, run, before, _scalar(loss), grads, step.numbers)
                changes = Changes()
                moved = [not trees.has_no_update(x) for x in values]  # integers stay what they were
                changes.put(
                    [cell for cell, moves in zip(cells, moved, strict=True) if moves],
                    [x for x, moves in zip(values, moved, strict=True) if moves],
                )
                if run.stopped:
                    step.commit(changes, jax.tree.leaves(run.state))
                    compiled = Traces.count - traced
                    changes.update(self.__dict__, {"compile_count": count + compiled})
                    changes.update(finished, {"finished": True})
                changes.make()
                if finished:
                    return first
                loss = closure()
        except BaseException:
            if not finished:
                changes = Changes()
                changes.put(cells, before, OUTSIDE)
                changes.make()
            raise

    def _check_options(self, clip_norm: float | None, scaler: GradScaler | None) -> None:
        if clip_norm is not None:
            raise ValueError("LBFGS: clipped gradients are not those of the function it minimizes")
        if scaler is not None:
            raise ValueError("LBFGS: a step of many evaluations takes no GradScaler")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stop_on_nan": self._stop_on_nan}


def _scalar(loss: Any) -> jax.Array:
    if loss is None or jnp.size(loss) != 1:
        raise TypeError(f"closure should return the loss, a number, but returned {loss!r}")
    return jnp.asarray(loss).reshape(())


@jax.jit
def _begun(state: LBFGSState, data: list[jax.Array]) -> Run:
    """A step that waits for the function; its arrays are copies, to be donated."""
    Traces.add()
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
    Traces.add()
    layout = FlatVector(data)
    run = algorithm.advance(run, loss, layout.vector(grads, "grads"), numbers, *plan)
    where = jnp.where(run.stopped, run.x, run.trial)
    return run, layout.tree(where)
