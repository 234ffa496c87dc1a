"""torch's face of the library: `import functorch_optim.stateful as optim`."""

import functorch_optim as _pure
from functorch_optim.stateful import lr_scheduler
from functorch_optim.stateful.backward import backward
from functorch_optim.stateful.model import named_parameters, parameters, values
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.torch_class import torch_class

ASGD = torch_class(_pure.asgd)
SGD = torch_class(_pure.sgd)
Adadelta = torch_class(_pure.adadelta)
Adafactor = torch_class(_pure.adafactor)
Adagrad = torch_class(_pure.adagrad)
Adam = torch_class(_pure.adam)
AdamW = torch_class(_pure.adamw)
Adamax = torch_class(_pure.adamax)
Muon = torch_class(_pure.muon)
NAdam = torch_class(_pure.nadam)
RAdam = torch_class(_pure.radam)
RMSprop = torch_class(_pure.rmsprop)
Rprop = torch_class(_pure.rprop)

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "Optimizer",
    "Parameter",
    "RAdam",
    "RMSprop",
    "Rprop",
    "backward",
    "lr_scheduler",
    "named_parameters",
    "parameters",
    "values",
]
