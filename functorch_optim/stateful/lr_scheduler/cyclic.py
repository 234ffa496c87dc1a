"""Between two bounds, up and down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import Group, check_epochs, checked_optimizer
from functorch_optim.stateful.lr_scheduler.group_values import like, per_group
from functorch_optim.stateful.lr_scheduler.momentum import CyclesMomentum
from functorch_optim.stateful.optimizer import Optimizer

# Whether the height of a triangle depends on the number of the cycle or on the epoch.
_MODES = {"triangular": "cycle", "triangular2": "cycle", "exp_range": "iterations"}


class CyclicLR(CyclesMomentum):
    """Raises the learning rate along a line, lowers it again, and so on.

    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017. To be stepped after
    every batch.

    Where an earlier scheduler left an `initial_lr` in the groups, the first learning rate is
    `base_lr` nevertheless (torch sets that `initial_lr` at construction). `load_state_dict` leaves
    its argument as it is (torch takes a key out).

    Args:
      optimizer: the optimizer whose groups are adjusted.
      base_lr: the lower bound, or a list of one for each group.
      max_lr: the upper bound, or a list of one for each group.
      step_size_up: the number of steps on the way up.
      step_size_down: the number of steps on the way down; as many as up if not given.
      mode: "triangular"; "triangular2", which halves the height with each cycle; or "exp_range",
        which multiplies it by `gamma ** step`.
      gamma: for "exp_range".
      scale_fn: what the height is multiplied by, a function, instead of a mode.
      scale_mode: what scale_fn is given: the number of the "cycle", from 1, or of the step with
        "iterations".
      cycle_momentum: whether momentum (or the first beta) goes down while the learning rate goes
        up.
      base_momentum: its lower bound, or a list of one for each group.
      max_momentum: its upper bound, or a list of one for each group.
      last_epoch: the step to go on from; -1 starts anew.

    Raises:
      ValueError: a list of another length, an unknown mode, or no momentum to cycle.
      TypeError, KeyError: as LRScheduler.
    """

    _unsaved = ("optimizer", "_scale_fn_custom")

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
    ):
        self._bases = per_group("base_lr", base_lr, checked_optimizer(optimizer))
        self.max_lrs = per_group("max_lr", max_lr, optimizer)
        check_epochs("step_size_up", step_size_up, zero=True)
        if step_size_down is not None:
            check_epochs("step_size_down", step_size_down, zero=True)
        checks.real(gamma=gamma)
        up = float(step_size_up)
        down = up if step_size_down is None else float(step_size_down)
        self.total_size = up + down
        self.step_ratio = up / self.total_size
        if scale_fn is None and (not isinstance(mode, str) or mode not in _MODES):
            raise ValueError("mode is invalid and scale_fn is None")
        if not isinstance(scale_mode, str) or scale_mode not in _MODES.values():
            raise ValueError(
                f'scale_mode should be "cycle" or "iterations", but got {scale_mode!r}'
            )
        if scale_fn is not None:
            checks.function("scale_fn", scale_fn, "the cycle or the step")
        self.mode = mode
        self.gamma = gamma
        self._scale_fn_custom = scale_fn
        self.scale_mode = _MODES[mode] if scale_fn is None else scale_mode
        self._choose_momentum(optimizer, cycle_momentum)
        if cycle_momentum:
            self.base_momentums = per_group("base_momentum", base_momentum, optimizer)
            self.max_momentums = per_group("max_momentum", max_momentum, optimizer)
        super().__init__(optimizer, last_epoch)

    def _prepare(self, groups: list[Group], anew: bool) -> None:
        for index, group in enumerate(groups if anew else ()):
            group["lr"] = like(group["lr"], self._bases[index])
            if self.cycle_momentum:
                group["max_momentum"] = self.max_momentums[index]
                group["base_momentum"] = self.base_momentums[index]

    def _starting_lrs(self, groups: list[Group]) -> list[Any]:
        return self.__dict__.pop("_bases")

    def _rates(self, current: list[Any]) -> list[Any]:
        height = self._height()
        bounds = zip(self.base_lrs, self.max_lrs, strict=True)
        return [base + (top - base) * height for base, top in bounds]

    def _momenta(self) -> list[Any]:
        height = self._height()
        bounds = zip(self.base_momentums, self.max_momentums, strict=True)
        return [top - (top - base) * height for base, top in bounds]

    def _described(self) -> dict[str, Any]:
        up = round(self.total_size * self.step_ratio, 6)  # what was given, but for rounding
        shown = {"base_lr": self.base_lrs, "max_lr": self.max_lrs, "step_size_up": up}
        return shown | {"step_size_down": self.total_size - up} | super()._described()

    def _height(self) -> float:
        """How far up the current step is; 1 is the top of the first cycle."""
        # The last digit is torch's; cyclic_lr takes the rest in whole numbers instead.
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        x = 1.0 + self.last_epoch / self.total_size - cycle
        slope = x / self.step_ratio if x <= self.step_ratio else (x - 1) / (self.step_ratio - 1)
        return slope * self._scale(cycle if self.scale_mode == "cycle" else self.last_epoch)

    def _scale(self, x: float) -> float:
        if self._scale_fn_custom is not None:
            return checks.returned("scale_fn", self._scale_fn_custom(x))
        if self.mode == "triangular":
            return 1.0
        return 1 / (2.0 ** (x - 1)) if self.mode == "triangular2" else self.gamma**x

    def state_dict(self) -> dict[str, Any]:
        """As the base class, and "_scale_fn_custom": the attributes of a callable object.

        `None` for a plain function, or if there is none.
        """
        scale = self._scale_fn_custom
        plain = isinstance(scale, FunctionType) or not hasattr(scale, "__dict__")
        return super().state_dict() | {"_scale_fn_custom": None if plain else dict(vars(scale))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class, and gives a callable scale_fn its saved attributes."""
        super().load_state_dict(state_dict)
        attributes = state_dict.get("_scale_fn_custom")
        if attributes is not None and self._scale_fn_custom is not None:
            self._scale_fn_custom.__dict__.update(attributes)
