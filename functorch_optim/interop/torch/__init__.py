"""torch's tensors and checkpoints. Needs `functorch_optim[torch]`."""

from functorch_optim.interop.torch.checkpoints import (
    Preview,
    Transform,
    as_array,
    as_tensor,
    conv,
    conv_transpose,
    flattened_linear,
    from_torch,
    identity,
    linear,
    load,
    preview,
    save,
    to_torch,
    weights_from_torch,
    weights_to_torch,
)

__all__ = [
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
