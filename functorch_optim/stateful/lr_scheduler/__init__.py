"""torch's learning-rate schedulers: they write `param_groups[i]["lr"]`.

They keep torch's recursive forms, in which a step multiplies the current value, so that several
schedulers on one optimizer combine. The pure functions of the step count are in
`functorch_optim.schedules`.
"""

from functorch_optim.stateful.lr_scheduler.base import LRScheduler
from functorch_optim.stateful.lr_scheduler.base import _LRScheduler as _LRScheduler
from functorch_optim.stateful.lr_scheduler.chained import ChainedScheduler
from functorch_optim.stateful.lr_scheduler.constant import ConstantLR
from functorch_optim.stateful.lr_scheduler.cosine import CosineAnnealingLR
from functorch_optim.stateful.lr_scheduler.cyclic import CyclicLR
from functorch_optim.stateful.lr_scheduler.exponential import ExponentialLR
from functorch_optim.stateful.lr_scheduler.from_schedule import from_schedule
from functorch_optim.stateful.lr_scheduler.lambda_lr import LambdaLR
from functorch_optim.stateful.lr_scheduler.linear import LinearLR
from functorch_optim.stateful.lr_scheduler.multi_step import MultiStepLR
from functorch_optim.stateful.lr_scheduler.multiplicative import MultiplicativeLR
from functorch_optim.stateful.lr_scheduler.one_cycle import OneCycleLR
from functorch_optim.stateful.lr_scheduler.plateau import ReduceLROnPlateau
from functorch_optim.stateful.lr_scheduler.polynomial import PolynomialLR
from functorch_optim.stateful.lr_scheduler.sequential import SequentialLR
from functorch_optim.stateful.lr_scheduler.step import StepLR
from functorch_optim.stateful.lr_scheduler.warm_restarts import CosineAnnealingWarmRestarts
from functorch_optim.stateful.lr_scheduler.warn import (
    EPOCH_DEPRECATION_WARNING as EPOCH_DEPRECATION_WARNING,
)

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "from_schedule",
]
