"""torch.optim for JAX: pure pairs over pytrees, schedules as functions, a stateful layer."""

import typing as _typing
from collections.abc import Mapping as _Mapping
from types import ModuleType as _Module

from .algorithms.adabelief import AdaBeliefState as AdaBeliefState, adabelief as adabelief
from .algorithms.adadelta import AdadeltaState as AdadeltaState, adadelta as adadelta
from .algorithms.adafactor import AdafactorState as AdafactorState, adafactor as adafactor
from .algorithms.adagrad import AdagradState as AdagradState, adagrad as adagrad
from .algorithms.adam import AdamState as AdamState, adam as adam, adamw as adamw
from .algorithms.adamax import AdamaxState as AdamaxState, adamax as adamax
from .algorithms.adan import AdanState as AdanState, adan as adan
from .algorithms.adopt import AdoptState as AdoptState, adopt as adopt
from .algorithms.asgd import ASGDState as ASGDState, asgd as asgd
from .algorithms.lamb import LambState as LambState, lamb as lamb
from .algorithms.lars import LarsState as LarsState, lars as lars
from .algorithms.lbfgs import LBFGSState as LBFGSState, lbfgs as lbfgs
from .algorithms.lion import LionState as LionState, lion as lion
from .algorithms.muon import MuonState as MuonState, muon as muon
from .algorithms.nadam import NAdamState as NAdamState, nadam as nadam
from .algorithms.prodigy import ProdigyState as ProdigyState, prodigy as prodigy
from .algorithms.radam import RAdamState as RAdamState, radam as radam
from .algorithms.rmsprop import RMSpropState as RMSpropState, rmsprop as rmsprop
from .algorithms.rprop import RpropState as RpropState, rprop as rprop
from .algorithms.sgd import SGDState as SGDState, sgd as sgd
from .algorithms.sparse_adam import SparseAdamState as SparseAdamState, sparse_adam as sparse_adam
from .averages.batch_norm import update_bn as update_bn
from .averages.weights import (
    AverageState as AverageState,
    WeightAverage as WeightAverage,
    average as average,
    ema_average as ema_average,
    joint_average as joint_average,
    swa_average as swa_average,
)
from .compose.chain import NamedChain as NamedChain, chain as chain, named_chain as named_chain
from .compose.leaf_labels import by_path as by_path
from .compose.partition import freeze as freeze, masked as masked, partition as partition
from .core.pair import (
    EmptyState as EmptyState,
    GradientTransformation as GradientTransformation,
    Schedule as Schedule,
)
from .core.slips import NAMES as _NAMES, absent as _absent
from .core.updating import apply_updates as apply_updates
from .embeddings import sparse_value_and_grad as sparse_value_and_grad, take as take
from .schedules import (
    PlateauState as PlateauState,
    chained as chained,
    constant_lr as constant_lr,
    cosine_annealing_lr as cosine_annealing_lr,
    cosine_annealing_warm_restarts as cosine_annealing_warm_restarts,
    cyclic_lr as cyclic_lr,
    cyclic_momentum as cyclic_momentum,
    exponential_lr as exponential_lr,
    lambda_lr as lambda_lr,
    linear_lr as linear_lr,
    multi_step_lr as multi_step_lr,
    multiplicative_lr as multiplicative_lr,
    one_cycle_lr as one_cycle_lr,
    one_cycle_momentum as one_cycle_momentum,
    per_epoch as per_epoch,
    plot_schedule as plot_schedule,
    polynomial_lr as polynomial_lr,
    reduce_lr_on_plateau as reduce_lr_on_plateau,
    sequential_lr as sequential_lr,
    step_lr as step_lr,
    swa_lr as swa_lr,
    warmup as warmup,
)
from .transforms.accumulation import AccumulateState as AccumulateState, accumulate as accumulate
from .transforms.adaptive_clipping import adaptive_grad_clip as adaptive_grad_clip
from .transforms.cautious import cautious as cautious
from .transforms.centralize import centralize as centralize
from .transforms.clipping import (
    clip_by_global_norm as clip_by_global_norm,
    clip_by_leaf_norm as clip_by_leaf_norm,
    clip_by_value as clip_by_value,
    global_norm as global_norm,
)
from .transforms.inject import (
    InjectState as InjectState,
    inject_hyperparams as inject_hyperparams,
    set_hyperparams as set_hyperparams,
)
from .transforms.lookahead import LookaheadState as LookaheadState, lookahead as lookahead
from .transforms.loss_scale import (
    LossScaleState as LossScaleState,
    dynamic_loss_scale as dynamic_loss_scale,
)
from .transforms.master_weights import (
    MasterWeightsState as MasterWeightsState,
    master_weights as master_weights,
)
from .transforms.momentum import (
    EmaState as EmaState,
    TraceState as TraceState,
    ema as ema,
    trace as trace,
)
from .transforms.noise import AddNoiseState as AddNoiseState, add_noise as add_noise
from .transforms.nonfinite import (
    SkipNonfiniteState as SkipNonfiniteState,
    all_finite as all_finite,
    skip_nonfinite as skip_nonfinite,
)
from .transforms.plateau import (
    ScaleByPlateauState as ScaleByPlateauState,
    scale_by_plateau as scale_by_plateau,
)
from .transforms.precision import float32_state as float32_state
from .transforms.scaling import scale as scale, scale_by_schedule as scale_by_schedule
from .transforms.schedule_free import (
    ScheduleFreeState as ScheduleFreeState,
    schedule_free as schedule_free,
    schedule_free_eval_params as schedule_free_eval_params,
)
from .transforms.sign import sign as sign
from .transforms.stochastic_rounding import (
    StochasticRoundingState as StochasticRoundingState,
    stochastic_rounding as stochastic_rounding,
)
from .transforms.trust_ratio import trust_ratio as trust_ratio
from .transforms.weight_decay import add_decayed_weights as add_decayed_weights

# What is imported above is public, and named nowhere else: a type checker sees it by its `as`,
# Python and the site by this list. It is no statement `__all__ = ...` since mypy, which cannot
# compute the list, would then take it for empty.
globals()["__all__"] = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_") and not isinstance(value, _Module)
)

if _typing.TYPE_CHECKING:
    __version__: str


def _torch_names() -> _Mapping[str, str]:
    from functorch_optim import stateful  # which imports this package, and is not always needed

    return {name: f"functorch_optim.stateful.{name}" for name in stateful.__all__}


_explained = _absent(__name__, globals()["__all__"], _torch_names, _NAMES)


def _attribute(name: str) -> object:
    """`__version__`, that of the installed package; of any other name, what to write instead."""
    if name != "__version__":
        return _explained(name)
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:
        return "0+unknown"  # a checkout that nobody installed


# By the same token: a type checker would take a `def __getattr__` for a module with any name.
globals()["__getattr__"] = _attribute
