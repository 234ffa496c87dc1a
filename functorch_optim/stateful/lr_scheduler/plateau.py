"""A learning rate that goes down when a metric no longer improves."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks
from functorch_optim.schedules.plateau import check_limits
from functorch_optim.stateful.lr_scheduler.base import LRScheduler, checked_optimizer
from functorch_optim.stateful.lr_scheduler.group_values import like
from functorch_optim.stateful.lr_scheduler.warn import EPOCH_DEPRECATION_WARNING, warn
from functorch_optim.stateful.optimizer import Optimizer


class ReduceLROnPlateau(LRScheduler):
    """Multiplies the learning rate by `factor` after `patience` epochs without improvement.

    A metric that is NaN is no improvement. The metric is fetched at each step, for what is done
    depends on it; a learning rate that is an array is not.

    Args:
      optimizer: the optimizer whose groups are adjusted.
      mode: "min" if a lower metric is better, "max" if a higher one is.
      factor: below 1.
      patience: the number of epochs without improvement that change nothing.
      threshold: what an improvement is more than: a part of the best value, or a difference.
      threshold_mode: "rel" or "abs". With "rel" and a best value below 0 a part of it points the
        other way, as in torch.
      cooldown: the number of epochs after a reduction that are not counted.
      min_lr: the lowest learning rate, or a list of one for each group.
      eps: a smaller change is not made.

    Attributes:
      best: the best metric so far.
      num_bad_epochs: the number of epochs without improvement.
      cooldown_counter: the number of epochs that are not counted from now on.

    Raises:
      ValueError: factor is 1 or more, patience or cooldown is below 0, an unknown mode, or a list
        of another length.
      TypeError: optimizer is not an Optimizer, or an argument is no number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ):
        check_limits(mode, factor, patience, threshold, threshold_mode, cooldown, eps)
        self.factor = factor
        self.optimizer = checked_optimizer(optimizer)
        count = len(optimizer.param_groups)
        if isinstance(min_lr, list | tuple):
            if len(min_lr) != count:
                raise ValueError(f"expected {count} min_lrs, got {len(min_lr)}")
            self.default_min_lr: float | None = None
            for index, lowest in enumerate(min_lr):
                checks.real(**{f"min_lr[{index}]": lowest})
            self.min_lrs = list(min_lr)
        else:
            checks.real(min_lr=min_lr)
            self.default_min_lr = min_lr
            self.min_lrs = [min_lr] * count
        self.patience = patience
        self.cooldown = cooldown
        self.eps = eps
        self.last_epoch = 0
        self._remember()
        self.mode_worse = math.inf if mode == "min" else -math.inf
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    @property
    def in_cooldown(self) -> bool:
        """Whether epochs are not counted at present."""
        return self.cooldown_counter > 0

    def step(  # type: ignore[override]  # torch's takes a metric too
        self, metrics: Any, epoch: int | None = None
    ) -> None:
        """Takes an epoch's metric, and reduces the learning rates if it is time.

        Args:
          metrics: a number, or an array with one, of any shape.
          epoch: the number of the epoch (deprecated, with a warning).

        Raises:
          RuntimeError: it is time, but groups were added and min_lr was a list.
          TypeError, ValueError: metrics is no number, or an array of several. Nothing is changed
            then.
        """
        current = _fetched(metrics)
        with self._unchanged_on_error():
            if epoch is None:
                epoch = self.last_epoch + 1
            else:
                warn(EPOCH_DEPRECATION_WARNING)
            self.last_epoch = epoch
            if self._is_better(current, self.best):
                self.best = current
                self.num_bad_epochs = 0
            else:
                self.num_bad_epochs += 1
            if self.in_cooldown:
                self.cooldown_counter -= 1
                self.num_bad_epochs = 0
            if self.num_bad_epochs > self.patience:
                self._reduce()
                self.cooldown_counter = self.cooldown
                self.num_bad_epochs = 0
            self._remember()

    def _described(self) -> dict[str, Any]:
        min_lr = self.min_lrs if self.default_min_lr is None else self.default_min_lr
        return super()._described() | {"min_lr": min_lr, "last_epoch": self.last_epoch}

    def _is_better(self, metric: float, best: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            bound = best * (1.0 + sign * self.threshold)
        else:
            bound = best + sign * self.threshold
        return metric > bound if self.mode == "max" else metric < bound

    def _reduce(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            if self.default_min_lr is None:
                raise RuntimeError(
                    f"The number of param groups in the `optimizer` ({len(groups)}) differs from "
                    f"when `ReduceLROnPlateau` was initialized ({len(self.min_lrs)}), usually due "
                    "to a new param group being added to the optimizer. Please modify the "
                    "`min_lrs` field to match the length of the `optimizer` param groups."
                )
            self.min_lrs = [self.default_min_lr] * len(groups)
        for group, lowest in zip(groups, self.min_lrs, strict=True):
            group["lr"] = like(group["lr"], self._reduced(group["lr"], lowest))

    def _reduced(self, lr: Any, lowest: Any) -> Any:
        if isinstance(lr, jax.Array) or isinstance(lowest, jax.Array):
            new = jnp.maximum(lr * self.factor, lowest)
            return jnp.where(lr - new > self.eps, new, lr)
        new = max(lr * self.factor, lowest)
        return new if lr - new > self.eps else lr


def _fetched(metrics: Any) -> float:
    """The number, from an array of one element too: of jax, of numpy, of torch, a Parameter."""
    try:
        if hasattr(metrics, "item"):
            return float(metrics.item())
        if hasattr(metrics, "__array__"):
            return float(np.asarray(metrics).item())
        return float(metrics)
    except (TypeError, ValueError) as error:
        words = f"metrics should be a number or an array of one element, but got {metrics!r}"
        raise type(error)(words) from error
