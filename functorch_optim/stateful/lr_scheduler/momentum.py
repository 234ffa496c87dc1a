"""What the schedulers share that cycle momentum too: torch's `momentum`, or the first beta."""

from __future__ import annotations

from typing import Any

from functorch_optim.core import checks
from functorch_optim.stateful.lr_scheduler.base import Group, LRScheduler
from functorch_optim.stateful.lr_scheduler.group_values import like
from functorch_optim.stateful.optimizer import Optimizer


class CyclesMomentum(LRScheduler):
    """Writes the momentum of an epoch together with its learning rate."""

    cycle_momentum: bool
    use_beta1: bool

    def _choose_momentum(self, optimizer: Optimizer, cycle_momentum: bool) -> None:
        """Notes whether and where momentum is cycled.

        Raises:
          ValueError: the optimizer has none.
        """
        checks.flag("cycle_momentum", cycle_momentum)
        self.cycle_momentum = cycle_momentum
        if not cycle_momentum:
            return
        if "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults:
            raise ValueError(
                "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
            )
        self.use_beta1 = "betas" in optimizer.defaults

    def _momenta(self) -> list[Any]:
        """The momentum of epoch `last_epoch`, for each group."""
        raise NotImplementedError

    def _assign(self, rates: list[Any]) -> None:
        momenta = self._momenta() if self.cycle_momentum else []
        super()._assign(rates)
        for group, momentum in zip(self.optimizer.param_groups, momenta, strict=bool(momenta)):
            self._write(group, momentum)

    def _write(self, group: Group, momentum: Any) -> None:
        if self.use_beta1:
            first, *others = group["betas"]
            group["betas"] = (like(first, momentum), *others)
        else:
            group["momentum"] = like(group["momentum"], momentum)
