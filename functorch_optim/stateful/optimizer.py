"""torch's Optimizer over compiled pure pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.stateful import groups, hooks
from functorch_optim.stateful.grad_scaler import GradScaler
from functorch_optim.stateful.groups import required
from functorch_optim.stateful.hooks import (
    Hook,
    Hooks,
    RemovableHandle,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from functorch_optim.stateful.memory import torch_layout
from functorch_optim.stateful.memory.by_leaf import LeafMemory
from functorch_optim.stateful.memory.cell import (
    OUTSIDE,
    VALUES,
    Changes,
    alone,
    at_one_moment,
    new_lock,
)
from functorch_optim.stateful.memory.own import OwnMemory, unknown
from functorch_optim.stateful.memory.protocol import ActiveGroup, Memory
from functorch_optim.stateful.memory.view import Entry, StateView
from functorch_optim.stateful.model import check_loss, if_plain, split, values
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.step import compile_log, program
from functorch_optim.stateful.step.run import Call, Outcome, run

__all__ = [
    "Optimizer",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
    "required",
]

# What copies of an optimizer keep.
_KEPT = (
    "defaults",
    "param_groups",
    "compile_count",
    "log_compiles",
    "_opt_called",
    "_lent",
    "_unmatched",
    "_memory",
    "_trees",
    "_grouped",
)


class Optimizer:
    """An optimizer with torch's interface; the classes of this package derive from it.

    So may a class of your own, as in torch: it calls `super().__init__(params, defaults)`, and its
    `step` writes `p.data` and `self.state[p]`.

    Attributes:
      param_groups: list of dicts. A changed hyperparameter takes effect at the next step without
        a recompile; a changed flag (`amsgrad`, `nesterov`, `maximize`) selects another program.
      defaults: the constructor's hyperparameters.
      compile_count: how many programs this optimizer's steps have caused to be traced.
      log_compiles: log, on the logger "functorch_optim", which input caused each of them.
    """

    _factory: Any = None  # a class without has a step of its own

    def __init__(self, params: Any, defaults: Mapping[str, Any]):
        self.defaults: dict[str, Any] = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.compile_count = 0
        self.log_compiles = False
        self._opt_called = False  # for the schedulers' warning about the order of calls
        self._lent = False
        self._unmatched: dict[Any, Any] = {}
        self._memory: Memory = self._new_memory()
        self._begin()
        self._trees: dict[tuple[Parameter, ...], Any] = {}
        given, given_trees, self._grouped = groups.normalized(params)
        for group, tree in zip(given, given_trees, strict=True):
            self._append(group, tree)
        self._memory.begin(self._active(self._parameters()))

    def _new_memory(self) -> Memory:
        return OwnMemory() if self._factory is None else LeafMemory(self._factory)

    @property
    def state(self) -> MutableMapping[Parameter, MutableMapping[str, Any]]:
        """torch's state of each parameter, `opt.state[p]["exp_avg"]`, to read and to write.

        What is written is checked as `load_state_dict` checks it. For a class with a step of its
        own, these are plain dicts.
        """
        memory = self._memory
        return memory.states if isinstance(memory, OwnMemory) else StateView(self)

    @state.setter
    def state(self, entries: Mapping[Parameter, Mapping[str, Any]]) -> None:
        StateView(self).replace(entries)

    def _entries(self) -> Mapping[Parameter, Entry]:
        return self._memory.view()

    def _write(self, entries: Mapping[Parameter, Entry | None]) -> None:
        """Puts these dicts in the places of the parameters' state, all or none."""
        self._check_not_lent()
        alone(self._lock, self._write_alone, entries)

    def _write_alone(self, entries: Mapping[Parameter, Entry | None]) -> None:
        changes = Changes()
        self._memory.write(changes, entries, self._active(self._parameters()))
        # JAX may see the next call as one of another kind. And who forgets the state of a Parameter
        # that was replaced wants its memory back.
        changes.update(self.__dict__, {"_last_call": None, "_trees": self._present_trees()})
        changes.make()

    @property
    def params(self) -> Any:
        """The current values, in the tree (or list) that was given; of groups, a list of trees."""
        return values(self._tree)

    @property
    def _tree(self) -> Any:
        """Of each group the tree that was given; a list, where its "params" were replaced."""
        of_groups = [
            self._trees.get(tuple(group["params"]), list(group["params"]))
            for group in self.param_groups
        ]
        return of_groups if self._grouped or len(of_groups) != 1 else of_groups[0]

    def _present_trees(self) -> dict[tuple[Parameter, ...], Any]:
        listed = [tuple(group["params"]) for group in self.param_groups]
        return {members: self._trees[members] for members in listed if members in self._trees}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, `{"params": ..., **options}`; missing options are the defaults.

        Raises:
          TypeError, ValueError: as at construction; nothing is added then.
        """
        group, tree = groups.normalized_group(param_group)
        self._append(group, tree)

    def _append(self, group: dict[str, Any], tree: Any) -> None:
        groups.check_against(group, self.param_groups)
        for name, default in self.defaults.items():
            if default is required and name not in group:
                raise ValueError(
                    "parameter group didn't specify a value of required optimization parameter "
                    f"{name}"
                )
            group.setdefault(name, default)
        self._trees = {**self._present_trees(), tuple(group["params"]): tree}
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets every gradient to `None`, or to zeros."""
        cells = list(self._parameters())
        changes = Changes()
        changes.set(
            cells, "_grad", [None if set_to_none else updating.zeros_like(p.grad) for p in cells]
        )
        changes.make()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Updates every parameter that has a gradient, all in one compiled call.

        Args:
          *args: `closure`, if any: a function that computes gradients and returns the loss, called
            once; or a tree of gradients that matches `params`, used instead of `.grad`.
          **kwargs: `closure` by name. Hooks see the arguments as they were given, as in torch.

        Returns:
          What the closure returned, else `None`.

        Raises:
          TypeError: gradients that do not match, a hyperparameter that is no number.
          ValueError: a gradient's shape, a hyperparameter that is NaN.
          KeyError: a flag was set that needs a buffer from the first step on.
          RuntimeError: the state was given away by `to_functional`. Nothing is changed by any of
            these; an error on the device says whether the parameters are lost.
        """
        before, after = self._step_pre_hooks, self._step_post_hooks
        around = before, after, hooks.BEFORE_ANY_STEP, hooks.AFTER_ANY_STEP
        own = type(self).step is Optimizer.step  # else they run around all of the class's step
        if not own or not any([some.registered for some in around]):
            return self._step(*args, **kwargs)
        return hooks.around_step(self, type(self)._step, before, after, (self, *args), kwargs)

    def _step(self, closure: Any = None) -> Any:
        if isinstance(self._memory, OwnMemory):
            unknown("step")
        self._check_not_lent()
        # A tree may be callable too (a module): a closure is what is no tree.
        is_closure = callable(closure) and jax.tree_util.all_leaves([closure])
        result = closure() if is_closure else None
        if closure is None or is_closure:
            grads = {p: p._grad for p in self._parameters()}
        else:
            grads = self._matched(closure)
        active = self._active({p for p, grad in grads.items() if grad is not None})
        if active:
            ordered = self._memory.gradients(active, grads)

            def arguments(plan: Any, values: Any, buffers: Any, numbers: Any) -> tuple[Any, ...]:
                return plan, values, buffers, ordered, numbers

            inputs = [g for of_group in ordered for g in of_group]
            try:
                self._run(active, Call(program.compiled_update, arguments, inputs, None), ordered)
            except ValueError:
                for p, grad in grads.items():
                    p.check_devices(grad)  # JAX's message says grads[0][17]
                raise
        return result

    @overload
    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: Literal[False] = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> Callable[..., jax.Array]: ...
    @overload
    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: Literal[True],
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> Callable[..., tuple[jax.Array, Any]]: ...
    @overload
    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: bool,
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> Callable[..., Any]: ...
    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> Callable[..., Any]:
        """A training step as ONE compiled program: forward, backward and update.

        Args:
          loss_fn: `loss_fn(params, *args) -> loss`, where params is the model's plain tree.
          model: a tree with Parameters. Those that this optimizer holds and that require a
            gradient are trained; all else is constant.
          has_aux: loss_fn returns `(loss, aux)`.
          accumulate: average loss and gradients over so many micro-batches, stacked along the
            first axis of every array in args; auxiliary outputs come back stacked.
          clip_norm: clip the gradients to this global norm before the update. Not for L-BFGS,
            whose line search needs the gradients of the function.
          scaler: a `GradScaler`, whose `scale`, `unscale_`, `step` and `update` are then a part of
            the step. Each call waits for the device, to know whether the step was skipped. Not for
            L-BFGS, as in torch: its step has many evaluations.

        Returns:
          `train_step(*args)`: updates the parameters and returns the loss (or `(loss, aux)`)
          without waiting for it. Hyperparameters stay live: they are read from `param_groups` at
          every call. `.grad` is neither read nor written, and step hooks do not run.

        Raises:
          ValueError: accumulate is not a positive integer, L-BFGS is given clip_norm or scaler;
            from `train_step`: no Parameter of the model is held by this optimizer, or the
            micro-batches are not stacked. AssertionError: from `train_step` of L-BFGS, a group was
            added.
        """
        self._check_options(clip_norm, scaler)
        if isinstance(self._memory, OwnMemory):
            unknown("make_step")
        check_loss("make_step", loss_fn)
        program.check_accumulate(accumulate)
        if clip_norm is not None:
            checks.not_negative(clip_norm=clip_norm)
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise TypeError(f"scaler should be a GradScaler, but is {scaler!r}")
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        train = program.compiled_train_step(loss_fn, has_aux, accumulate, clip_norm)
        skipped = None if scaler is None else program.was_skipped

        def train_step(*args: Any) -> Any:
            self._check_not_lent()
            members = self._parameters()
            skeleton, trained, constant = split(model, members)
            if not trained:
                raise ValueError(
                    "make_step: no Parameter of the model is held by this optimizer"
                    f"{if_plain(model)}"
                )
            if accumulate > 1:
                program.check_micro_batches(args, accumulate)
            active = self._active(members if self._memory.steps_as_one else set(trained))
            where = {
                p: (i, j) for i, group in enumerate(active) for j, p in enumerate(group.parameters)
            }
            positions = tuple(where[p] for p in trained)
            fixed = tuple(values(constant))  # they may be another optimizer's
            scaling = None if scaler is None else scaler.for_program()

            def arguments(plan: Any, values: Any, buffers: Any, numbers: Any) -> tuple[Any, ...]:
                rest = fixed, numbers, scaling, args
                return plan, skeleton, positions, values, buffers, *rest

            inputs, structure = jax.tree.flatten((args, fixed))
            if any(isinstance(x, Parameter) for x in inputs):  # a batch may hold some
                args = values(args)
                inputs, structure = jax.tree.flatten((args, fixed))
            self._opt_called = True
            call = Call(train, arguments, inputs, (skeleton, positions, structure), skipped)
            result = self._run(active, call, args)
            if scaler is not None:
                result, found = result
                scaler.after_program(bool(found))
            loss, aux = result
            return (loss, aux) if has_aux else loss

        return train_step

    def _check_options(self, clip_norm: float | None, scaler: GradScaler | None) -> None:
        """Raises for an option of `make_step` that the algorithm cannot have: here, for none."""

    def state_dict(self) -> dict[str, Any]:
        """torch's layout: `{"state": {id: {...}}, "param_groups": [...]}`.

        The arrays stay as they are when the optimizer goes on.
        """
        for hook in self._state_dict_pre_hooks:
            hook(self)
        packed = alone(VALUES, self._packed)
        return hooks.replaced(self._state_dict_post_hooks, self, packed)

    def _packed(self) -> dict[str, Any]:
        return torch_layout.packed(self.param_groups, self._entries(), self._unmatched)

    @overload
    def load_state_dict(
        self, state_dict: Mapping[str, Any], match: str = "position", strict: Literal[True] = True
    ) -> None: ...
    @overload
    def load_state_dict(
        self, state_dict: Mapping[str, Any], match: str = "position", *, strict: Literal[False]
    ) -> torch_layout.LoadReport: ...
    @overload
    def load_state_dict(
        self, state_dict: Mapping[str, Any], match: str = "position", strict: bool = True
    ) -> torch_layout.LoadReport | None: ...
    def load_state_dict(
        self, state_dict: Mapping[str, Any], match: str = "position", strict: bool = True
    ) -> torch_layout.LoadReport | None:
        """Takes over hyperparameters and state.

        Floating-point buffers are cast to their parameter's dtype. Hyperparameters that the saved
        groups lack stay as they are (torch drops them).

        Args:
          state_dict: as `state_dict()` returns it, here or in torch (its tensors as arrays).
          match: "position", as torch; or "name", by the saved `param_names`.
          strict: False takes over what matches. A parameter that the dict lacks starts anew, and
            what is in the dict only is left out. By name the groups may differ too: each takes
            the hyperparameters of the one saved group that holds its parameters.

        Returns:
          `None`, as torch; if not strict, a report: `missing`, `unexpected`, and the `groups` that
          keep their hyperparameters.

        Raises:
          ValueError: a wrong number of groups or parameters, a wrong shape, an invalid step.
          TypeError: a wrong dtype or structure. The optimizer is unchanged then.

        Warns:
          UserWarning: the saved names are those of the optimizer in another order, and are matched
            by position.
        """
        self._check_not_lent()
        state_dict = hooks.replaced(self._load_state_dict_pre_hooks, self, dict(state_dict))
        own = self._memory
        found = torch_layout.matched(
            state_dict, self.param_groups, own.fixed, match, strict, own.steps_as_one
        )
        entries, unmatched = found.entries, found.unmatched
        if isinstance(own, OwnMemory):  # which may keep something under other keys, as torch
            entries, unmatched = own.with_others(entries, unmatched), {}
        memory = own.loaded(entries, self._active(self._parameters(), found.groups), strict)
        loaded = {"param_groups": found.groups, "_memory": memory, "_unmatched": unmatched}
        changes = Changes()
        changes.update(self.__dict__, {**loaded, "_last_call": None})
        alone(self._lock, changes.make)
        if type(self).__setstate__ is not Optimizer.__setstate__:
            self.__setstate__(loaded)  # where a class adds what groups of old checkpoints lack
        for hook in self._load_state_dict_post_hooks:
            hook(self)
        return None if strict else found.report

    @contextlib.contextmanager
    def swap_in(self, params: Any, state: Mapping[str, Any]) -> Iterator[Optimizer]:
        """Temporarily puts other values and another state in the place of the live ones.

        `with opt.swap_in(params, state_dict): ...` steps on them; on leaving, also by an exception,
        values, gradients, hyperparameters and state are the live ones again. Read the results
        (`opt.params`, `opt.state_dict()`) inside.

        Args:
          params: a tree like `opt.params`.
          state: a `state_dict()`.

        Raises:
          TypeError, ValueError: they do not fit; nothing is changed then.
        """
        cells, treedef = trees.flatten(self._tree)
        given = trees.flatten_like(params, treedef, "params", "the optimizer's parameters")
        swapped = [Parameter(value).data for value in given]
        for p, value in zip(cells, swapped, strict=True):
            p.check_like("value", value)
        own = [p._cell for p in cells]
        back = Changes()
        back.put(own, alone(VALUES, lambda: [cell.read() for cell in own]), OUTSIDE)
        back.set(cells, "_grad", [p.grad for p in cells])
        names = ("param_groups", "_memory", "_unmatched", "_trees", "_grouped", "_lent")
        back.update(self.__dict__, {name: getattr(self, name) for name in names})
        try:
            try:
                there = Changes()
                there.put(own, swapped, OUTSIDE)
                there.set(cells, "_grad", [None] * len(cells))
                there.make()
                self.load_state_dict(state)
                yield self
            finally:
                back.make()
        finally:
            back.make()  # once more: an interrupt may have come just before the first

    def to_functional(self) -> tuple[GradientTransformation, Any, Any]:
        """The optimizer as `(pair, params, state)`, for a loop inside `jit` or `lax.scan`.

        Hyperparameters are those of now; Parameters that require no gradient are left as they are.
        The state is given away: the optimizer refuses to step until `from_functional` gives it
        back.
        """
        self._check_not_lent()
        return alone(self._lock, self._given_away)

    @at_one_moment
    def _given_away(self) -> tuple[Any, Any, Any]:
        pair, state = self._memory.lend(self._lendable(), self._tree)
        params = self.params
        self._lent = True
        return pair, params, state

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
        arrays = [jnp.asarray(value) for value in given]
        for p, value in zip(cells, arrays, strict=True):
            p.check_like("value", value)
        memory = self._memory.taken_back(self._lendable(), self._tree, state)
        changes = Changes()
        changes.put([p._cell for p in cells], arrays, OUTSIDE)
        changes.update(self.__dict__, {"_memory": memory, "_lent": False})
        changes.make()

    def _lendable(self) -> list[ActiveGroup]:
        everything = self._parameters()
        if self._memory.steps_as_one:
            return self._active(everything)
        return self._active({p for p in everything if p.requires_grad})

    def register_step_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Runs `hook(optimizer, args, kwargs) -> None | (args, kwargs)` before each step."""
        return self._step_pre_hooks.add(hook)

    def register_step_post_hook(self, hook: Hook) -> RemovableHandle:
        """Runs `hook(optimizer, args, kwargs)` after each step."""
        return self._step_post_hooks.add(hook)

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Runs `hook(optimizer)` before `state_dict()`."""
        return self._state_dict_pre_hooks.add(hook, prepend)

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Runs `hook(optimizer, state_dict) -> None | state_dict` after `state_dict()`."""
        return self._state_dict_post_hooks.add(hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Hook, prepend: bool = False
    ) -> RemovableHandle:
        """Runs `hook(optimizer, state_dict) -> None | state_dict` before loading."""
        return self._load_state_dict_pre_hooks.add(hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Hook, prepend: bool = False
    ) -> RemovableHandle:
        """Runs `hook(optimizer)` after loading."""
        return self._load_state_dict_post_hooks.add(hook, prepend)

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for index, group in enumerate(self.param_groups):
            text += f"\nParameter Group {index}\n"
            for key in sorted(group):
                if key != "params":
                    text += f"    {key}: {group[key]}\n"
        return text + ")"

    @at_one_moment
    def __getstate__(self) -> dict[str, Any]:
        # As torch: hooks, and what was put on this object from outside (a scheduler's step), stay
        # behind. Values and state are of one moment, whatever other threads do meanwhile.
        kept = {name: self.__dict__[name] for name in _KEPT}
        kept["param_groups"] = [dict(group) for group in self.param_groups]
        kept["_memory"] = self._memory.snapshot()
        kept["_values"] = [(p, p.data, p.grad) for p in self._parameters()]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {name: value for name, value in state.items() if name not in ("_values", "state")}
        self.__dict__.update(own)
        for p, value, grad in state.get("_values", ()):
            p.data, p.grad = value, grad
        if "_lock" not in self.__dict__:
            self._begin()
        for group in self.param_groups:
            group.update({k: value for k, value in self._memory.fixed.items() if k in group})
        if "state" in state:  # torch's way to set it
            self.state = state["state"]

    def _begin(self) -> None:
        """What copies of an optimizer do not keep."""
        if type(self).step is not Optimizer.step:
            hooks.hook_step(type(self))
        self._last_call: Any = None
        self._last_inputs: Mapping[str, Any] | None = None
        self._lock = new_lock()
        self._step_pre_hooks = Hooks()
        self._step_post_hooks = Hooks()
        self._state_dict_pre_hooks = Hooks()
        self._state_dict_post_hooks = Hooks()
        self._load_state_dict_pre_hooks = Hooks()
        self._load_state_dict_post_hooks = Hooks()

    def _check_not_lent(self) -> None:
        if self._lent:
            raise RuntimeError(
                "this optimizer's state was given away by to_functional; give it back with "
                "from_functional(params, state) first"
            )

    def _parameters(self) -> dict[Parameter, None]:
        return {p: None for group in self.param_groups for p in group["params"]}

    def _matched(self, grads: Any) -> dict[Parameter, Any]:
        """A tree of gradients, by Parameter."""
        cells, treedef = trees.flatten(self._tree)
        given = trees.flatten_like(grads, treedef, "grads")
        return {
            p: None if grad is None or trees.is_float0(grad) else p.checked_gradient(grad)
            for p, grad in zip(cells, given, strict=True)
        }

    def _active(
        self, members: Collection[Parameter], groups: Sequence[Mapping[str, Any]] | None = None
    ) -> list[ActiveGroup]:
        """The parts of the groups that are among these members."""
        active = []
        for index, group in enumerate(self.param_groups if groups is None else groups):
            chosen = [p for p in dict.fromkeys(group["params"]) if p in members]
            if chosen:
                active.append(ActiveGroup(index, group, chosen))
        return active

    def _run(self, active: list[ActiveGroup], call: Call, inputs: Any) -> Any:
        """Runs a compiled program on the groups' values and buffers, and keeps its results.

        Steps of several threads take turns: each goes on from what the one before left.
        """
        return alone(self._lock, self._run_alone, active, call, inputs)

    def _run_alone(self, active: list[ActiveGroup], call: Call, inputs: Any) -> Any:
        count, described = self.compile_count, self._last_inputs

        def after(changes: Changes, outcome: Outcome) -> None:
            own = {"compile_count": count + outcome.traced, "_last_call": outcome.kind}
            if self.log_compiles:
                own["_last_inputs"] = compile_log.described(
                    active, self._memory.arguments, outcome.released, inputs
                )
            changes.update(self.__dict__, own)

        result = run(self._memory, active, call, self._last_call, after)
        if self.log_compiles and self.compile_count > count:
            compile_log.log(self, described, self._last_inputs or {}, first=count == 0)
        return result
