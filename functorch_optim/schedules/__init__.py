"""Learning-rate schedules: pure functions of the step count.

Each takes a count of updates made so far (0 at the first) as a Python number or an array, and
returns the value in kind: a Python float in double, or an array. One file per schedule.
"""

from functorch_optim.schedules.chained import chained
from functorch_optim.schedules.constant import constant_lr
from functorch_optim.schedules.cosine import cosine_annealing_lr
from functorch_optim.schedules.cyclic import cyclic_lr, cyclic_momentum
from functorch_optim.schedules.exponential import exponential_lr
from functorch_optim.schedules.lambda_lr import lambda_lr
from functorch_optim.schedules.linear import linear_lr
from functorch_optim.schedules.multi_step import multi_step_lr
from functorch_optim.schedules.multiplicative import multiplicative_lr
from functorch_optim.schedules.one_cycle import one_cycle_lr, one_cycle_momentum
from functorch_optim.schedules.per_epoch import per_epoch
from functorch_optim.schedules.plateau import PlateauState, reduce_lr_on_plateau
from functorch_optim.schedules.plot import plot_schedule
from functorch_optim.schedules.polynomial import polynomial_lr
from functorch_optim.schedules.sequential import sequential_lr
from functorch_optim.schedules.step import step_lr
from functorch_optim.schedules.swa import swa_lr
from functorch_optim.schedules.warm_restarts import cosine_annealing_warm_restarts
from functorch_optim.schedules.warmup import warmup

__all__ = [
    "PlateauState",
    "chained",
    "constant_lr",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cyclic_lr",
    "cyclic_momentum",
    "exponential_lr",
    "lambda_lr",
    "linear_lr",
    "multi_step_lr",
    "multiplicative_lr",
    "one_cycle_lr",
    "one_cycle_momentum",
    "per_epoch",
    "plot_schedule",
    "polynomial_lr",
    "reduce_lr_on_plateau",
    "sequential_lr",
    "step_lr",
    "swa_lr",
    "warmup",
]
