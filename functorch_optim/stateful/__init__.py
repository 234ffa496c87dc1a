"""torch's face of the library: `import functorch_optim.stateful as optim`."""

from collections.abc import Mapping as _Mapping

import functorch_optim as _pure
from functorch_optim.core.slips import absent as _absent
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


def _other_names() -> _Mapping[str, str]:
    names = {name: f"functorch_optim.{name}" for name in vars(_pure)["__all__"]}
    classes = {name.lower() for name in __all__}
    for name, pure in names.items():
        if hasattr(getattr(_pure, name), "rule") and name.replace("_", "") not in classes:
            names[name] = f"from_transformation({pure}), which makes a class of {pure}"
    for module in lr_scheduler, swa_utils:
        names |= {name: f"{module.__name__}.{name}" for name in module.__all__}
    return names


# Not by `def`: a type checker would take it for a module with any name.
globals()["__getattr__"] = _absent(__name__, __all__, _other_names, {})
