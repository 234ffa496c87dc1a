"""What all schedulers share."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import is_number
from functorch_optim.stateful.lr_scheduler.group_values import as_rates, copied, like
from functorch_optim.stateful.lr_scheduler.warn import (
    ASK_FOR_THE_LAST,
    EPOCH_DEPRECATION_WARNING,
    OVERRIDDEN_STEP,
    WRONG_ORDER,
    warn,
)
from functorch_optim.stateful.optimizer import Optimizer

Group = dict[str, Any]
_NO_INITIAL_LR = (
    "param 'initial_lr' is not specified in param_groups[{}] when resuming scheduler with "
    "last_epoch >= 0.\n"
    "This typically happens when:\n"
    "1. You're trying to resume training from a checkpoint but haven't properly loaded the "
    "optimizer state\n"
    "2. You're using last_epoch >= 0 for a fresh training run (not recommended)"
)


class LRScheduler:
    """Adjusts the learning rate of every group at each `step()`, as torch's base class.

    Construction stores `initial_lr` in each group and applies the value of epoch 0 (or of
    `last_epoch + 1`). A scheduler of one's own defines `get_lr`, which returns the learning rates
    of epoch `self.last_epoch`, one for each group; and `_get_closed_form_lr`, if it can tell them
    from `self.base_lrs` alone.

    A learning rate that is a jax array stays one, of its shape and dtype, and is never fetched.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      last_epoch: the epoch to go on from; -1 starts anew. The groups then hold the learning rates
        of epoch `last_epoch + 1` already, and `initial_lr`.

    Attributes:
      base_lrs: the learning rates to start from, one for each group.
      last_epoch: the epoch whose learning rates were set last.

    Raises:
      TypeError: optimizer is not an Optimizer, or last_epoch is no number.
      ValueError: last_epoch is below -1.
      KeyError: last_epoch is not -1 and a group has no `initial_lr`.
        Whatever a construction or a step raises, the groups and the scheduler are unchanged then.
    """

    base_lrs: list[Any]
    last_epoch: int
    _last_lr: list[Any]
    _get_lr_called_within_step = False
    _unsaved: Collection[str] = ("optimizer",)

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        self.optimizer = checked_optimizer(optimizer)
        check_last_epoch(last_epoch)
        with self._unchanged_on_error():
            groups = optimizer.param_groups
            self._prepare(groups, anew=last_epoch == -1)
            if last_epoch == -1:
                for group in groups:
                    group.setdefault("initial_lr", group["lr"])
            for index, group in enumerate(groups):
                if "initial_lr" not in group:
                    raise KeyError(_NO_INITIAL_LR.format(index))
            self.base_lrs = self._starting_lrs(groups)
            self.last_epoch = last_epoch
            self._begin()
        _mark_steps(optimizer)

    def get_last_lr(self) -> list[Any]:
        """The learning rates that the last step set, one for each group."""
        return self._last_lr

    def get_lr(self) -> list[Any]:
        """The learning rates of epoch `last_epoch`, from the current ones.

        For `step` to call: most schedulers go on from the groups' values, so another call gives
        others.
        """
        rates = self._rates([group["lr"] for group in self.optimizer.param_groups])
        if not self._get_lr_called_within_step:
            warn(ASK_FOR_THE_LAST)
        return rates

    def step(self, epoch: float | None = None) -> None:
        """Advances by one epoch and writes the learning rates.

        Args:
          epoch: the epoch to go to instead (deprecated, with a warning), by the closed form if
            there is one.
        """
        with self._unchanged_on_error():
            if self._step_count == 1:
                self._warn_of_order()
            self._step_count += 1
            if epoch is None:
                self.last_epoch += 1
                self._assign(self._within_step(self.get_lr))
            else:
                warn(EPOCH_DEPRECATION_WARNING)
                self._jump(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and functions, under torch's names, in torch's order."""
        return {k: copied(v) for k, v in self.__dict__.items() if k not in self._unsaved}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a `state_dict()`, of this library or of torch, which stays as it is.

        The optimizer's own learning rates come with the optimizer's state.
        """
        own = {k: copied(v) for k, v in state_dict.items() if k not in self._unsaved}
        for name in ("base_lrs", "_last_lr"):
            if name in own:
                own[name] = as_rates(own[name])
        self.__dict__.update(own)

    def __repr__(self) -> str:
        words = [f"{name}={value!r}" for name, value in self._described().items()]
        return f"{type(self).__name__}({', '.join(words)})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _mark_steps(self.optimizer)  # a copied or unpickled optimizer has its plain step

    # For subclasses.

    def _described(self) -> dict[str, Any]:
        """The arguments to show: those of the construction that are kept under their own names."""
        names = inspect.signature(type(self)).parameters
        return {k: vars(self)[k] for k in names if k in vars(self) and k != "optimizer"}

    def _prepare(self, groups: list[Group], anew: bool) -> None:
        """Sets values of the groups before all else. They are undone if the construction fails."""

    def _starting_lrs(self, groups: list[Group]) -> list[Any]:
        return [group["initial_lr"] for group in groups]

    def _rates(self, current: list[Any]) -> list[Any]:
        """The learning rates of epoch `last_epoch`."""
        raise NotImplementedError

    # How a scheduler starts, alone and as a member of others. Each writes the learning rates.

    def _begin(self) -> None:
        """The initial step: sets the learning rates of epoch `last_epoch + 1`."""
        self._step_count = 0
        self._is_initial = True
        self.step()
        self._is_initial = False

    def _undo(self) -> None:
        """Takes the initial step back, but for the learning rates."""
        self.last_epoch -= 1

    def _restart(self) -> None:
        """Starts at epoch 0, in the middle of a sequence of schedulers."""
        self._jump(0)

    def _jump(self, epoch: float) -> None:
        self.last_epoch = epoch  # type: ignore[assignment]  # torch keeps a float if given one
        self._assign(self._within_step(getattr(self, "_get_closed_form_lr", self.get_lr)))

    def _within_step(self, compute: Callable[[], list[Any]]) -> list[Any]:
        self._get_lr_called_within_step = True
        try:
            return compute()
        finally:
            self._get_lr_called_within_step = False

    def _assign(self, rates: list[Any]) -> None:
        # zipped before anything is written: a group that was added later may have no rate
        for group, rate in list(zip(self.optimizer.param_groups, rates, strict=True)):
            group["lr"] = like(group["lr"], rate)
        self._remember()

    def _remember(self) -> None:
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _warn_of_order(self) -> None:
        if not hasattr(self.optimizer.step, "_wrapped_by_lr_sched"):
            warn(OVERRIDDEN_STEP)
        elif not self.optimizer._opt_called:
            warn(WRONG_ORDER)

    def _everyone(self) -> Iterator[LRScheduler]:
        """This scheduler and all that it steps."""
        yield self

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        dicts = [*self.optimizer.param_groups, *(s.__dict__ for s in self._everyone())]
        before = [dict(d) for d in dicts]
        try:
            yield
        except BaseException:
            for now, then in zip(dicts, before, strict=True):
                now.clear()
                now.update(then)
            raise


class _LRScheduler(LRScheduler):
    """torch's former name of the base class. `isinstance` should be asked for `LRScheduler`."""


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer.

    Raises:
      TypeError: it is none, or its learning rate is a schedule already.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
    for index, group in enumerate(optimizer.param_groups):
        if callable(group.get("lr")):
            raise TypeError(
                f"the lr of param_groups[{index}] is a function of the step count, which a "
                "scheduler cannot adjust. Give the optimizer a number, or leave out the scheduler."
            )
    return optimizer


def check_last_epoch(last_epoch: Any) -> None:
    """Raises for what is no epoch to go on from, or -1.

    Raises:
      TypeError: it is no number. ValueError: it is below -1.
    """
    checks.real(last_epoch=last_epoch)
    if is_number(last_epoch) and not last_epoch >= -1:
        raise ValueError(f"last_epoch should be -1 or an epoch from 0 on, but is {last_epoch}")


def check_epochs(name: str, value: Any, zero: bool = False) -> None:
    """Raises for what is no number of epochs. As in torch it need not be whole.

    Raises:
      TypeError: it is no number. ValueError: it is below 0, or 0 unless `zero`.
    """
    checks.real(**{name: value})
    if is_number(value) and not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name} should be {'at least' if zero else 'above'} 0, but is {value}")


def _mark_steps(optimizer: Optimizer) -> None:
    """Makes `optimizer.step` note that it was called, for the warning about the order of calls."""
    step = optimizer.step
    if hasattr(step, "_wrapped_by_lr_sched"):
        return
    # The optimizer holds this function: held in turn, its arrays would outlive their last user
    # until the garbage collector finds the cycle.
    owner = weakref.ref(optimizer)
    bound = getattr(step, "__self__", None) is optimizer
    function: Callable[..., Any] = step.__func__ if bound else step  # type: ignore[attr-defined]  # a method

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        alive = owner()
        if alive is None:
            raise ReferenceError("the optimizer whose step this is no longer exists")
        alive._opt_called = True
        return function(alive, *args, **kwargs) if bound else function(*args, **kwargs)

    marked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # torch's mark
    optimizer.step = marked  # type: ignore[method-assign]  # as torch does
