"""The memory of L-BFGS: one state for all parameters, as torch keeps it under the first of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.algorithms import lbfgs as algorithm
from functorch_optim.algorithms.lbfgs import (
    FlatVector,
    LBFGSState,
    Run,
    empty,
    search_numbers,
    uses_search,
)
from functorch_optim.core import trees
from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.rules.numbers import hyperparameters_at
from functorch_optim.stateful.memory import hyperparameters
from functorch_optim.stateful.memory.cell import NOBODY, OUTSIDE, CellTree, Changes, at_one_moment
from functorch_optim.stateful.memory.protocol import ActiveGroup, Evaluate, Grouped, NextStep
from functorch_optim.stateful.memory.torch_layout import present
from functorch_optim.stateful.parameter import Parameter

# A group's entries, with torch's defaults.
DEFAULTS: Mapping[str, Any] = {
    "lr": 1,
    "max_iter": 20,
    "max_eval": 25,
    "tolerance_grad": 1e-7,
    "tolerance_change": 1e-9,
    "history_size": 100,
    "line_search_fn": None,
}


# torch's names in the dict of the first parameter; "al" is scratch.
_NAMES = (set(LBFGSState._fields) | {"al"}) - {"step", "pairs"}


class SearchPlan(NamedTuple):
    """Selects the program of a step."""

    searches: bool
    stop_on_nan: bool

    def train(self, evaluate: Evaluate, values: Grouped, buffers: LBFGSState, numbers: Any) -> Any:
        """Every evaluation and the search, in one loop. To be traced."""
        (own,) = values
        layout = FlatVector(own)

        def evaluated(run: Run) -> tuple[Any, Sequence[Any]]:
            result, (grads,) = evaluate([layout.tree(run.trial)])
            return result, grads

        def turn(carry: tuple[Run, Any]) -> tuple[Run, Any]:
            run, first = carry
            result, grads = evaluated(run)
            first = jax.tree.map(lambda a, b: jnp.where(run.started, a, b), first, result)
            vector = layout.vector(grads, "grads")
            return algorithm.advance(run, jnp.reshape(result[0], ()), vector, numbers, *self), first

        begun = algorithm.begin(buffers, layout.vector(own, "params"))
        shapes, _ = jax.eval_shape(evaluated, begun)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        run, first = jax.lax.while_loop(lambda carry: ~carry[0].stopped, turn, (begun, nothing))
        # As leaves: what comes out of a compiled call is put together by JAX, in Python.
        return first, [layout.tree(run.x)], jax.tree.leaves(run.state)


class LBFGSArguments(NamedTuple):
    """What is known of the hyperparameters."""

    defaults: Mapping[str, Any] = DEFAULTS
    selects_code: Collection[str] = frozenset({"line_search_fn"})


class LBFGSMemory:
    """What an L-BFGS optimizer remembers. All parameters take part in a step."""

    arguments: Collection[str] = tuple(DEFAULTS)
    fixed: Mapping[str, Any] = {}
    steps_as_one = True

    def __init__(
        self,
        stop_on_nan: bool,
        owner: Parameter | None = None,
        state: CellTree | None = None,
        steps: int = 0,
    ):
        self.stop_on_nan = stop_on_nan
        self.owner = owner
        self.state = state
        self.steps = steps

    def begin(self, groups: Sequence[ActiveGroup]) -> None:
        """Nothing: state is created at the first step."""

    def gradients(self, groups: Sequence[ActiveGroup], grads: Mapping[Parameter, Any]) -> Grouped:
        """The gradients as they are."""
        return [[grads[p] for p in group.parameters] for group in groups]

    def prepare(self, groups: Sequence[ActiveGroup]) -> NextStep:
        """The next step of all parameters.

        Raises:
          AssertionError: there are several groups.
          TypeError, ValueError: an unusable hyperparameter, or other parameters than before.
          RuntimeError: an unknown line search.
        """
        group = _only(groups)
        values = hyperparameters.checked(LBFGSArguments(), group)
        plan = SearchPlan(uses_search(values["line_search_fn"]), self.stop_on_nan)
        state = self._at_hand(group.parameters, values["history_size"])
        h = hyperparameters_at(values, self.steps)
        numbers = search_numbers(h, _layout(group.parameters).dtype)
        own = {"owner": group.parameters[0], "state": state, "steps": self.steps + 1}

        def release(copies: bool) -> LBFGSState:
            return state.release(copies and state is self.state)

        def put_back(changes: Changes, new: Sequence[jax.Array]) -> None:
            changes.put(state.cells, new)

        def commit(changes: Changes, new: Sequence[jax.Array]) -> None:
            put_back(changes, new)
            changes.update(self.__dict__, own)

        return NextStep(plan, numbers, release, commit, put_back)

    def _at_hand(self, parameters: Sequence[Parameter], history_size: int) -> CellTree:
        """The state of these parameters, with a history of this size."""
        if not isinstance(history_size, int) or history_size < 1:
            raise ValueError(f"history_size should be a positive integer, but got {history_size!r}")
        if self.state is None:
            return CellTree(_fresh(parameters, history_size), NOBODY)
        sizes = {name: cell.array.size for name, cell in self._cells().items()}
        size = _layout(parameters).size
        if sizes["d"] != size:
            raise ValueError(
                f"the state is that of {sizes['d']} numbers, the parameters have {size}: "
                "they changed after the first step. opt.state.clear() starts anew"
            )
        if sizes["ro"] != history_size:
            entry = to_torch(self.state.read())
            return CellTree(from_torch(entry, _fresh(parameters, history_size), 0), NOBODY)
        return self.state

    def _cells(self) -> dict[str, Any]:
        cells = [] if self.state is None else self.state.cells
        return dict(zip(LBFGSState._fields, cells, strict=True))

    def arrays(self, groups: Sequence[ActiveGroup]) -> list[jax.Array]:
        """The arrays of the state."""
        return [] if self.state is None else [cell.array for cell in self.state.cells]

    def view(self) -> dict[Parameter, dict[str, Any]]:
        """torch's dict, under the first parameter."""
        if self.state is None or self.owner is None:
            return {}
        return {self.owner: to_torch(self.state.read())}

    def write(
        self,
        changes: Changes,
        entries: Mapping[Parameter, Mapping[str, Any] | None],
        groups: Sequence[ActiveGroup],
    ) -> None:
        """Adds to the changes that this dict takes the place of the state, or that there is none.

        Raises:
          TypeError, ValueError: entries that cannot be these parameters'.
        """
        given = {p: (f"{p!r}", entry) for p, entry in entries.items() if entry}
        for name, entry in given.values():
            unknown = sorted(map(str, entry.keys() - _NAMES))
            if unknown:
                raise ValueError(f"state of parameter {name}: L-BFGS has no {unknown}")
        if given:
            new = self.loaded(given, groups)
            if self.state is not None and new.state is not None:
                new.state.cells[0] = self._cells()["step"]  # which torch's dict lacks
            changes.update(self.__dict__, {"owner": new.owner, "state": new.state})
        elif self.owner in entries:
            changes.update(self.__dict__, {"owner": None, "state": None, "steps": 0})

    def loaded(
        self,
        entries: Mapping[Parameter, tuple[Any, Any]],
        groups: Sequence[ActiveGroup],
        strict: bool = True,
    ) -> LBFGSMemory:
        """A new memory from torch's dicts, each with its key for messages.

        Raises:
          TypeError, ValueError: entries that cannot be these parameters'.
        """
        memory = LBFGSMemory(self.stop_on_nan)
        for p, (key, entry) in entries.items():
            group = _only(groups)
            if p is not group.parameters[0]:
                raise ValueError(
                    f"state of parameter {key}: L-BFGS keeps its state under the first one"
                )
            fresh = _fresh(group.parameters, group.options["history_size"])
            memory.owner, memory.state = p, CellTree(from_torch(entry, fresh, key))
        return memory

    @at_one_moment
    def snapshot(self) -> LBFGSMemory:
        """A copy that later steps of this one do not change."""
        state = None if self.state is None else CellTree(self.state.read())
        return LBFGSMemory(self.stop_on_nan, self.owner, state, self.steps)

    def lend(
        self, groups: Sequence[ActiveGroup], tree: Any
    ) -> tuple[GradientTransformation, State]:
        """`functorch_optim.lbfgs`, whose update takes `value_and_grad_fn`, and its state.

        Raises:
          ValueError: a Parameter is listed more than once.
        """
        group = _only(groups)
        if trees.flatten(tree)[0] != group.parameters:
            raise ValueError("to_functional: a Parameter is listed more than once")
        values = hyperparameters.checked(LBFGSArguments(), group)
        state = self._at_hand(group.parameters, values["history_size"])
        return algorithm.lbfgs(**values, stop_on_nan=self.stop_on_nan), state.read()

    def taken_back(self, groups: Sequence[ActiveGroup], tree: Any, state: State) -> LBFGSMemory:
        """A new memory that goes on from a state of the pair of `lend`.

        Raises:
          TypeError, ValueError: the state does not fit.
        """
        group = _only(groups)
        if not isinstance(state, LBFGSState):
            raise TypeError(f"state should be an LBFGSState, but is {state!r}")
        wanted = (group.options["history_size"], _layout(group.parameters).size)
        if state.old_dirs.shape != wanted:
            raise ValueError(
                f"state should have a history of shape {wanted}, but has {state.old_dirs.shape}"
            )
        steps = int(state.step)
        if steps == 0 and self.state is None:
            return self
        cells = CellTree(state, OUTSIDE)
        return LBFGSMemory(self.stop_on_nan, group.parameters[0], cells, steps)


def _only(groups: Sequence[ActiveGroup]) -> ActiveGroup:
    if len(groups) != 1:
        raise AssertionError(f"Expected exactly one param_group, but got {len(groups)}")
    return groups[0]


def to_torch(state: LBFGSState) -> dict[str, Any]:
    """torch's per-parameter dict: the pairs as lists, the oldest first."""
    n_iter = int(state.n_iter)
    found: dict[str, Any] = {"func_evals": int(state.func_evals), "n_iter": n_iter}
    if n_iter == 0:
        return found
    size, pairs = state.ro.size, int(state.pairs)
    slots = [i % size for i in range(max(0, pairs - size), pairs)]
    if n_iter > 1:
        found["al"] = [None] * size  # torch's scratch
    return found | {
        "d": state.d,
        "t": state.t,
        "old_dirs": [state.old_dirs[i] for i in slots],
        "old_stps": [state.old_stps[i] for i in slots],
        "ro": [state.ro[i] for i in slots],
        "H_diag": state.H_diag,
        "prev_flat_grad": state.prev_flat_grad,
        "prev_loss": float(state.prev_loss),
    }


def from_torch(entry: Mapping[str, Any], fresh: LBFGSState, key: Any) -> LBFGSState:
    """A state from torch's per-parameter dict; of more pairs than fit, the newest.

    Args:
      entry: torch's dict.
      fresh: a state of the right sizes.
      key: of the entry, for messages.

    Raises:
      TypeError: a complex entry. ValueError: one that is missing, or has another shape.
    """

    def fitting(name: str, value: Any, like: jax.Array) -> jax.Array:
        array = np.asarray(value)
        if array.size != like.size or (like.ndim and array.shape != like.shape):
            raise ValueError(
                f"state of parameter {key}: {name} has shape {array.shape}, but should have shape "
                f"{like.shape}"
            )
        if np.iscomplexobj(array):
            raise TypeError(f"state of parameter {key}: {name} should not be complex")
        return jnp.array(array.reshape(like.shape), like.dtype)

    def of(name: str) -> Any:
        return present(entry, name, key)

    counts = {name: fitting(name, of(name), fresh.n_iter) for name in ("func_evals", "n_iter")}
    state = fresh._replace(**counts)
    if entry.get("d") is None:
        return state
    rings = {name: list(of(name)) for name in ("old_dirs", "old_stps", "ro")}
    lengths = {name: len(ring) for name, ring in rings.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"state of parameter {key}: pairs of different number: {lengths}")
    filled = {}
    for name, ring in rings.items():
        target = getattr(fresh, name)
        rows = [fitting(name, row, target[0]) for row in ring[-target.shape[0] :]]
        filled[name] = target.at[: len(rows)].set(jnp.stack(rows)) if rows else target
    single = {
        name: fitting(name, of(name), getattr(fresh, name))
        for name in ("d", "t", "H_diag", "prev_flat_grad", "prev_loss")
    }
    kept = min(lengths["ro"], fresh.ro.size)
    return state._replace(**filled, **single, pairs=jnp.asarray(kept, jnp.int32))


def _fresh(parameters: Sequence[Parameter], history_size: int) -> LBFGSState:
    layout = _layout(parameters)
    return empty(layout.size, layout.dtype, history_size)


def _layout(parameters: Sequence[Parameter]) -> FlatVector:
    return FlatVector([p._data for p in parameters])
