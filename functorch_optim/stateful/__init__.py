"""torch's face of the library: `import functorch_optim.stateful as optim`."""

from functorch_optim.stateful import lr_scheduler, swa_utils
from functorch_optim.stateful.backward import backward
from functorch_optim.stateful.classes import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from functorch_optim.stateful.clipping import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from functorch_optim.stateful.grad_scaler import GradScaler
from functorch_optim.stateful.grouping import group_by_path
from functorch_optim.stateful.lbfgs import LBFGS
from functorch_optim.stateful.model import (
    load_values,
    named_parameters,
    parameters,
    requires_grad_,
    values,
)
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.torch_class import from_transformation
from functorch_optim.stateful.vectors import parameters_to_vector, vector_to_parameters

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GradScaler",
    "Muon",
    "NAdam",
    "Optimizer",
    "Parameter",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "backward",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "from_transformation",
    "get_total_norm",
    "group_by_path",
    "load_values",
    "lr_scheduler",
    "named_parameters",
    "parameters",
    "parameters_to_vector",
    "requires_grad_",
    "swa_utils",
    "values",
    "vector_to_parameters",
]
