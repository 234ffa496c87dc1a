"""Learning-rate schedules: pure functions of the step count.

Each takes a count of updates made so far (0 at the first) as a Python number or an array, and
returns the value in kind: a Python float in double, or an array. One file per schedule.
"""

from functorch_optim.schedules.constant import constant_lr
from functorch_optim.schedules.cosine import cosine_annealing_lr
from functorch_optim.schedules.linear import linear_lr
from functorch_optim.schedules.sequential import sequential_lr

__all__ = ["constant_lr", "cosine_annealing_lr", "linear_lr", "sequential_lr"]
