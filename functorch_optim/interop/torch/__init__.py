"""torch's tensors and checkpoints. Needs `functorch_optim[torch]`.

`from_torch` and `to_torch` turn the state_dict of any optimizer or scheduler into the other
library's; given names and transforms, also for a model that changed names and layout on the way.
`load` and `save` do so for `.pt` files, and never run code of a file. `as_array` and `as_tensor`
are for single tensors, by a copy or by sharing memory.
"""

try:
    import torch as _torch  # noqa: F401  # so that its absence is told once, here
except ImportError as error:
    raise ImportError(
        'functorch_optim.interop.torch needs torch: pip install "functorch_optim[torch]"'
    ) from error

from functorch_optim.interop.torch.checkpoints import (
    from_torch,
    preview,
    to_torch,
    weights_from_torch,
    weights_to_torch,
)
from functorch_optim.interop.torch.files import load, save
from functorch_optim.interop.torch.layouts import (
    LayoutChange,
    conv,
    conv_transpose,
    flattened_linear,
    identity,
    linear,
)
from functorch_optim.interop.torch.plan import Preview
from functorch_optim.interop.torch.tensors import as_array, as_tensor

Transform = LayoutChange  # its former name

__all__ = [
    "LayoutChange",
    "Preview",
    "Transform",
    "as_array",
    "as_tensor",
    "conv",
    "conv_transpose",
    "flattened_linear",
    "from_torch",
    "identity",
    "linear",
    "load",
    "preview",
    "save",
    "to_torch",
    "weights_from_torch",
    "weights_to_torch",
]
