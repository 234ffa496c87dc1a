"""torch.optim for JAX: pure pairs over pytrees, schedules as functions, a stateful layer."""

from functorch_optim.algorithms.adabelief import AdaBeliefState, adabelief
from functorch_optim.algorithms.adadelta import AdadeltaState, adadelta
from functorch_optim.algorithms.adafactor import AdafactorState, adafactor
from functorch_optim.algorithms.adagrad import AdagradState, adagrad
from functorch_optim.algorithms.adam import AdamState, adam, adamw
from functorch_optim.algorithms.adamax import AdamaxState, adamax
from functorch_optim.algorithms.adan import AdanState, adan
from functorch_optim.algorithms.adopt import AdoptState, adopt
from functorch_optim.algorithms.asgd import ASGDState, asgd
from functorch_optim.algorithms.lamb import LambState, lamb
from functorch_optim.algorithms.lars import LarsState, lars
from functorch_optim.algorithms.lbfgs import LBFGSState, lbfgs
from functorch_optim.algorithms.lion import LionState, lion
from functorch_optim.algorithms.muon import MuonState, muon
from functorch_optim.algorithms.nadam import NAdamState, nadam
from functorch_optim.algorithms.prodigy import ProdigyState, prodigy
from functorch_optim.algorithms.radam import RAdamState, radam
from functorch_optim.algorithms.rmsprop import RMSpropState, rmsprop
from functorch_optim.algorithms.rprop import RpropState, rprop
from functorch_optim.algorithms.sgd import SGDState, sgd
from functorch_optim.algorithms.sparse_adam import SparseAdamState, sparse_adam
from functorch_optim.averages.batch_norm import update_bn
from functorch_optim.averages.weights import (
    AverageState,
    WeightAverage,
    average,
    ema_average,
    joint_average,
    swa_average,
)
from functorch_optim.compose.chain import NamedChain, chain, named_chain
from functorch_optim.compose.leaf_labels import by_path
from functorch_optim.compose.partition import freeze, masked, partition
from functorch_optim.core.pair import EmptyState, GradientTransformation, Schedule
from functorch_optim.core.updating import apply_updates
from functorch_optim.embeddings import sparse_value_and_grad, take
from functorch_optim.schedules import (
    PlateauState,
    chained,
    constant_lr,
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    cyclic_lr,
    cyclic_momentum,
    exponential_lr,
    lambda_lr,
    linear_lr,
    multi_step_lr,
    multiplicative_lr,
    one_cycle_lr,
    one_cycle_momentum,
    per_epoch,
    plot_schedule,
    polynomial_lr,
    reduce_lr_on_plateau,
    sequential_lr,
    step_lr,
    swa_lr,
    warmup,
)
from functorch_optim.transforms.accumulation import AccumulateState, accumulate
from functorch_optim.transforms.adaptive_clipping import adaptive_grad_clip
from functorch_optim.transforms.cautious import cautious
from functorch_optim.transforms.centralize import centralize
from functorch_optim.transforms.clipping import (
    clip_by_global_norm,
    clip_by_leaf_norm,
    clip_by_value,
    global_norm,
)
from functorch_optim.transforms.inject import (
    InjectState,
    inject_hyperparams,
    set_hyperparams,
)
from functorch_optim.transforms.lookahead import LookaheadState, lookahead
from functorch_optim.transforms.loss_scale import LossScaleState, dynamic_loss_scale
from functorch_optim.transforms.master_weights import MasterWeightsState, master_weights
from functorch_optim.transforms.momentum import EmaState, TraceState, ema, trace
from functorch_optim.transforms.noise import AddNoiseState, add_noise
from functorch_optim.transforms.nonfinite import (
    SkipNonfiniteState,
    all_finite,
    skip_nonfinite,
)
from functorch_optim.transforms.plateau import ScaleByPlateauState, scale_by_plateau
from functorch_optim.transforms.precision import float32_state
from functorch_optim.transforms.scaling import scale, scale_by_schedule
from functorch_optim.transforms.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_eval_params,
)
from functorch_optim.transforms.sign import sign
from functorch_optim.transforms.stochastic_rounding import (
    StochasticRoundingState,
    stochastic_rounding,
)
from functorch_optim.transforms.trust_ratio import trust_ratio
from functorch_optim.transforms.weight_decay import add_decayed_weights

__all__ = [
    "ASGDState",
    "AccumulateState",
    "AdaBeliefState",
    "AdadeltaState",
    "AdafactorState",
    "AdagradState",
    "AdamState",
    "AdamaxState",
    "AdanState",
    "AddNoiseState",
    "AdoptState",
    "AverageState",
    "EmaState",
    "EmptyState",
    "GradientTransformation",
    "InjectState",
    "LBFGSState",
    "LambState",
    "LarsState",
    "LionState",
    "LookaheadState",
    "LossScaleState",
    "MasterWeightsState",
    "MuonState",
    "NAdamState",
    "NamedChain",
    "PlateauState",
    "ProdigyState",
    "RAdamState",
    "RMSpropState",
    "RpropState",
    "SGDState",
    "ScaleByPlateauState",
    "Schedule",
    "ScheduleFreeState",
    "SkipNonfiniteState",
    "SparseAdamState",
    "StochasticRoundingState",
    "TraceState",
    "WeightAverage",
    "accumulate",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "adopt",
    "all_finite",
    "apply_updates",
    "asgd",
    "average",
    "by_path",
    "cautious",
    "centralize",
    "chain",
    "chained",
    "clip_by_global_norm",
    "clip_by_leaf_norm",
    "clip_by_value",
    "constant_lr",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cyclic_lr",
    "cyclic_momentum",
    "dynamic_loss_scale",
    "ema",
    "ema_average",
    "exponential_lr",
    "float32_state",
    "freeze",
    "global_norm",
    "inject_hyperparams",
    "joint_average",
    "lamb",
    "lambda_lr",
    "lars",
    "lbfgs",
    "linear_lr",
    "lion",
    "lookahead",
    "masked",
    "master_weights",
    "multi_step_lr",
    "multiplicative_lr",
    "muon",
    "nadam",
    "named_chain",
    "one_cycle_lr",
    "one_cycle_momentum",
    "partition",
    "per_epoch",
    "plot_schedule",
    "polynomial_lr",
    "prodigy",
    "radam",
    "reduce_lr_on_plateau",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_plateau",
    "scale_by_schedule",
    "schedule_free",
    "schedule_free_eval_params",
    "sequential_lr",
    "set_hyperparams",
    "sgd",
    "sign",
    "skip_nonfinite",
    "sparse_adam",
    "sparse_value_and_grad",
    "step_lr",
    "stochastic_rounding",
    "swa_average",
    "swa_lr",
    "take",
    "trace",
    "trust_ratio",
    "update_bn",
    "warmup",
]
