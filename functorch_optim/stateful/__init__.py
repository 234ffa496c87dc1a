"""torch's face of the library: `import functorch_optim.stateful as optim`."""

from functorch_optim.algorithms.adam import adam, adamw
from functorch_optim.algorithms.sgd import sgd
from functorch_optim.stateful import lr_scheduler
from functorch_optim.stateful.backward import backward
from functorch_optim.stateful.model import named_parameters, parameters, values
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.torch_class import torch_class

Adam = torch_class(adam)
AdamW = torch_class(adamw)
SGD = torch_class(sgd)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Parameter",
    "backward",
    "lr_scheduler",
    "named_parameters",
    "parameters",
    "values",
]
