"""torch's Optimizer over compiled pure pairs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax

from functorch_optim.core import checks, trees, updating
from functorch_optim.stateful import functional, groups, hooks
from functorch_optim.stateful.hooks import (
    Hook,
    Hooks,
    RemovableHandle,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from functorch_optim.stateful.memory import torch_layout
from functorch_optim.stateful.memory.by_leaf import LeafMemory
from functorch_optim.stateful.model import arrays, split, values
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.step import compile_log, program
from functorch_optim.stateful.step.program import Part

__all__ = [
    "Optimizer",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
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

    Attributes:
      param_groups: list of dicts. A changed hyperparameter takes effect at the next step without
        a recompile; a changed flag (`amsgrad`, `nesterov`, `maximize`) selects another program.
      defaults: the constructor's hyperparameters.
      compile_count: how many programs this optimizer's steps have caused to be traced.
      log_compiles: log, on the logger "functorch_optim", which input caused each of them.
    """

    _factory: Any

    def __init__(self, params: Any, defaults: Mapping[str, Any]):
        self.defaults: dict[str, Any] = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.compile_count = 0
        self.log_compiles = False
        self._last_inputs: Mapping[str, Any] | None = None
        self._opt_called = False  # for the schedulers' warning about the order of calls
        self._lent = False
        self._unmatched: dict[Any, Any] = {}
        self._memory = self._new_memory()
        self._lock = threading.RLock()
        self._reset_hooks()
        given, self._trees, self._grouped = groups.normalized(params)
        for group in given:
            self._append(group)
        everything = self._parameters()
        self._memory.begin(everything, self._parts(everything))

    def _new_memory(self) -> Any:
        return LeafMemory(self._factory)

    @property
    def state(self) -> Mapping[Parameter, Mapping[str, Any]]:
        """torch's state of each parameter, `opt.state[p]["exp_avg"]`, to read."""
        return self._memory.view()

    @property
    def params(self) -> Any:
        """The current values, in the tree (or list) that was given; of groups, a list of trees."""
        return values(self._tree)

    @property
    def _tree(self) -> Any:
        return self._trees if self._grouped or len(self._trees) > 1 else self._trees[0]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, `{"params": ..., **options}`; missing options are the defaults.

        Raises:
          TypeError, ValueError: as at construction; nothing is added then.
        """
        group, tree = groups.normalized_group(param_group)
        self._append(group)
        self._trees.append(tree)

    def _append(self, group: dict[str, Any]) -> None:
        groups.check_against(group, self.param_groups)
        for name, default in self.defaults.items():
            if default is groups.required and name not in group:
                raise ValueError(
                    "parameter group didn't specify a value of required optimization parameter "
                    f"{name}"
                )
            group.setdefault(name, default)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets every gradient to `None`, or to zeros."""
        for p in self._parameters():
            keep = not set_to_none and p.grad is not None
            p.grad = updating.zeros_like(p.grad) if keep else None

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
        return hooks.around_step(self, type(self)._step, before, after, (self, *args), kwargs)

    def _step(self, closure: Any = None) -> Any:
        self._check_not_lent()
        # A tree may be callable too (a module): a closure is what is no tree.
        is_closure = callable(closure) and jax.tree_util.all_leaves([closure])
        result = closure() if is_closure else None
        if closure is None or is_closure:
            grads = {p: p.grad for p in self._parameters()}
        else:
            grads = self._matched(closure)
        parts = self._parts({p for p, grad in grads.items() if grad is not None})
        if parts:
            ordered = self._memory.gradients(parts, grads)
            self._run(
                parts,
                lambda plan, data, buffers, numbers: (
                    None,
                    *program.compiled_update(plan, data, buffers, ordered, numbers),
                ),
                ordered,
            )
        return result

    def make_step(
        self,
        loss_fn: Callable[..., Any],
        model: Any,
        has_aux: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> Callable[..., Any]:
        """A training step as ONE compiled program: forward, backward and update.

        Args:
          loss_fn: `loss_fn(params, *args) -> loss`, where params is the model's plain tree.
          model: a tree with Parameters. Those that this optimizer holds and that require a
            gradient are trained; all else is constant.
          has_aux: loss_fn returns `(loss, aux)`.
          accumulate: average loss and gradients over so many micro-batches, stacked along the
            first axis of every array in args; auxiliary outputs come back stacked.
          clip_norm: clip the gradients to this global norm before the update.

        Returns:
          `train_step(*args)`: updates the parameters and returns the loss (or `(loss, aux)`)
          without waiting for it. Hyperparameters stay live: they are read from `param_groups` at
          every call. `.grad` is neither read nor written, and step hooks do not run.

        Raises:
          ValueError: accumulate is not a positive integer; from `train_step`: no Parameter of the
            model is held by this optimizer, or the micro-batches are not stacked.
        """
        program.check_accumulate(accumulate)
        if clip_norm is not None:
            checks.not_negative(clip_norm=clip_norm)
        train = program.compiled_train_step(loss_fn, has_aux, accumulate, clip_norm)

        def train_step(*args: Any) -> Any:
            self._check_not_lent()
            skeleton, trained, constant = split(model, self._parameters())
            if not trained:
                raise ValueError("make_step: no Parameter of the model is held by this optimizer")
            if accumulate > 1:
                program.check_micro_batches(args, accumulate)
            parts = self._parts(set(trained))
            place = {p: (i, j) for i, part in enumerate(parts) for j, p in enumerate(part[2])}
            places = tuple(place[p] for p in trained)
            self._opt_called = True
            return self._run(
                parts,
                lambda plan, data, buffers, numbers: train(
                    plan, skeleton, places, data, buffers, arrays(constant), numbers, args
                ),
                args,
            )

        return train_step

    def state_dict(self) -> dict[str, Any]:
        """torch's layout: `{"state": {id: {...}}, "param_groups": [...]}`.

        The arrays stay as they are when the optimizer goes on.
        """
        for hook in self._state_dict_pre_hooks:
            hook(self)
        packed = torch_layout.packed(self.param_groups, self.state, self._unmatched)
        return hooks.replaced(self._state_dict_post_hooks, self, packed)

    def load_state_dict(self, state_dict: Mapping[str, Any], match: str = "position") -> None:
        """Takes over hyperparameters and state.

        Floating-point buffers are cast to their parameter's dtype. Hyperparameters that the saved
        groups lack stay as they are (torch drops them).

        Args:
          state_dict: as `state_dict()` returns it, here or in torch (its tensors as arrays).
          match: "position", as torch; or "name", by the saved `param_names`.

        Raises:
          ValueError: a wrong number of groups or parameters, a wrong shape, an invalid step.
          TypeError: a wrong dtype or structure. The optimizer is unchanged then.
        """
        self._check_not_lent()
        state_dict = hooks.replaced(self._load_state_dict_pre_hooks, self, dict(state_dict))
        found = torch_layout.matched(state_dict, self.param_groups, self._memory.fixed, match)
        parts = self._parts(self._parameters(), found.groups)
        memory = self._memory.loaded(found.entries, parts)
        self.param_groups, self._memory, self._unmatched = found.groups, memory, found.unmatched
        for hook in self._load_state_dict_post_hooks:
            hook(self)

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
        names = ("param_groups", "_memory", "_unmatched", "_trees", "_grouped", "_lent")
        live = {name: getattr(self, name) for name in names}
        self._trees = list(self._trees)
        held = [(p, p._data, p.grad) for p in cells]
        try:
            for p, value in zip(cells, given, strict=True):
                p.data, p.grad = value, None
            self.load_state_dict(state)
            yield self
        finally:
            self.__dict__.update(live)
            for p, value, grad in held:
                p.data, p.grad = value, grad

    def to_functional(self) -> tuple[Any, Any, Any]:
        """The optimizer as `(pair, params, state)`, for a loop inside `jit` or `lax.scan`.

        Hyperparameters are those of now; Parameters that require no gradient are left as they are.
        The state is given away: the optimizer refuses to step until `from_functional` gives it
        back.
        """
        self._check_not_lent()
        result = functional.lent(self._memory, self._parts(self._trainable()), self._tree)
        self._lent = True
        return result

    def from_functional(self, params: Any, state: Any) -> None:
        """Takes back what `to_functional` gave away, further on.

        Raises:
          RuntimeError: nothing was given away. TypeError, ValueError: params or state do not fit;
            nothing is changed then.
        """
        if not self._lent:
            raise RuntimeError("nothing to take back: to_functional was not called before")
        parts = self._parts(self._trainable())
        functional.take_back(self._memory, parts, self._tree, params, state)
        self._lent = False

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

    def __getstate__(self) -> dict[str, Any]:
        # As torch: hooks, and what was put on this object from outside (a scheduler's step), stay
        # behind.
        return {name: self.__dict__[name] for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._last_inputs = None
        self._lock = threading.RLock()
        self._reset_hooks()

    def _reset_hooks(self) -> None:
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

    def _trainable(self) -> set[Parameter]:
        return {p for p in self._parameters() if p.requires_grad}

    def _matched(self, grads: Any) -> dict[Parameter, Any]:
        """A tree of gradients, by Parameter."""
        cells, treedef = trees.flatten(self._tree)
        given = trees.flatten_like(grads, treedef, "grads")
        return {
            p: None if grad is None or trees.is_float0(grad) else p.checked_gradient(grad)
            for p, grad in zip(cells, given, strict=True)
        }

    def _parts(
        self, members: Collection[Parameter], groups: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Part]:
        """The parts of the groups that are among these members: `(index, group, parameters)`."""
        parts: list[Part] = []
        for index, group in enumerate(self.param_groups if groups is None else groups):
            chosen = [p for p in dict.fromkeys(group["params"]) if p in members]
            if chosen:
                parts.append((index, group, chosen))
        return parts

    def _run(self, parts: list[Part], compute: Callable[..., Any], inputs: Any) -> Any:
        """Runs a compiled program on the parts' values and buffers, and keeps its results.

        Steps of several threads take turns: each goes on from what the one before left.
        """
        with self._lock:
            return self._run_alone(parts, compute, inputs)

    def _run_alone(self, parts: list[Part], compute: Callable[..., Any], inputs: Any) -> Any:
        plan, buffers, numbers, commit = self._memory.prepare(parts)
        data = [[p.release() for p in parameters] for _, _, parameters in parts]
        described = self._described(parts, buffers, inputs)
        traced = program.trace_count()
        try:
            result, new_data, new_buffers = compute(plan, data, buffers, numbers)
        except BaseException as error:
            if self._is_lost(parts):
                raise RuntimeError(
                    "the step failed after its parameters and state were given to the device: "
                    "they are lost. Restore them from a checkpoint."
                ) from error
            raise
        new = program.trace_count() - traced
        self.compile_count += new
        try:
            self._keep(parts, new_data, new_buffers, commit)
        except BaseException:  # an interrupt: nothing stays half updated
            self._keep(parts, new_data, new_buffers, commit)
            raise
        if described is not None:
            if new:
                compile_log.log(self, self._last_inputs, described, first=self.compile_count == new)
            self._last_inputs = described
        return result

    def _described(self, parts: list[Part], buffers: Any, inputs: Any) -> dict[str, Any] | None:
        if not self.log_compiles:
            return None
        return compile_log.described(parts, self._memory.arguments, buffers, inputs)

    def _is_lost(self, parts: list[Part]) -> bool:
        """Whether values or state that the optimizer holds were given to the device."""
        held = [p._data for _, _, parameters in parts for p in parameters]
        return any(x.is_deleted() for x in [*held, *self._memory.held(parts)])

    def _keep(
        self, parts: list[Part], data: Any, buffers: Any, commit: Callable[[Any], None]
    ) -> None:
        for (_, _, parameters), new in zip(parts, data, strict=True):
            for p, value in zip(parameters, new, strict=True):
                p.replace(value)
        commit(buffers)
