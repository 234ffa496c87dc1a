"""The classes of torch.optim: their arguments and `param_groups` keys in torch's order."""

from __future__ import annotations

from typing import Any

import functorch_optim as fo
from functorch_optim.core.pair import Hyperparameter
from functorch_optim.stateful.optimizer import Optimizer
from functorch_optim.stateful.torch_class import torch_class


@torch_class(fo.asgd)
class ASGD(Optimizer):
    """torch.optim.ASGD: the stateful face of `functorch_optim.asgd`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      lambd: decay of the parameters.
      alpha: exponent with which the step size falls.
      t0: the step after which `ax` averages; before, it follows the parameters.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-2,
        lambd: Hyperparameter = 1e-4,
        alpha: Hyperparameter = 0.75,
        t0: Hyperparameter = 1e6,
        weight_decay: Hyperparameter = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None: ...


@torch_class(fo.sgd)
class SGD(Optimizer):
    """torch.optim.SGD: the stateful face of `functorch_optim.sgd`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      momentum: coefficient of the momentum buffer; the number 0 means no buffer.
      dampening: share of the gradient that is kept out of the buffer.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      nesterov: look ahead by one momentum step. Needs momentum and no dampening.
      maximize: ascend instead of descend.
      foreach, differentiable, fused: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        momentum: Hyperparameter = 0,
        dampening: Hyperparameter = 0,
        weight_decay: Hyperparameter = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...


@torch_class(fo.adadelta, keys="lr rho eps weight_decay maximize capturable foreach differentiable")
class Adadelta(Optimizer):
    """torch.optim.Adadelta: the stateful face of `functorch_optim.adadelta`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: factor of the step. Every numeric argument may be a number, an array or a schedule.
      rho: coefficient of the running averages, in [0, 1].
      eps: added inside both roots.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1.0,
        rho: Hyperparameter = 0.9,
        eps: Hyperparameter = 1e-6,
        weight_decay: Hyperparameter = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None: ...


@torch_class(fo.adafactor)
class Adafactor(Optimizer):
    """torch.optim.Adafactor: the stateful face of `functorch_optim.adafactor`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: upper bound of the relative step size. Every numeric argument may be a number, an array or
        a schedule.
      beta2_decay: exponent with which the weight of a new square falls; at most 0.
      eps: floor of the second moment (`None`: the machine epsilon of the parameter's dtype), and
        floor of the parameter's root mean square.
      d: clipping threshold of the update's root mean square, at least 1.
      weight_decay: decoupled decay, times lr.
      maximize: ascend instead of descend.
      foreach: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-2,
        beta2_decay: Hyperparameter = -0.8,
        eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
        d: Hyperparameter = 1.0,
        weight_decay: Hyperparameter = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None: ...


@torch_class(
    fo.adagrad,
    keys="lr lr_decay eps weight_decay initial_accumulator_value foreach maximize "
    "differentiable fused",
)
class Adagrad(Optimizer):
    """torch.optim.Adagrad: the stateful face of `functorch_optim.adagrad`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      lr_decay: how fast the learning rate falls: it is divided by `1 + (t - 1) * lr_decay`.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      initial_accumulator_value: where the sums start.
      eps: added to the root in the denominator; at least 0.
      maximize: ascend instead of descend.
      foreach, differentiable, fused: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-2,
        lr_decay: Hyperparameter = 0,
        weight_decay: Hyperparameter = 0,
        initial_accumulator_value: Hyperparameter = 0,
        eps: Hyperparameter = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...


@torch_class(
    fo.adam,
    keys="lr betas eps weight_decay amsgrad maximize foreach capturable differentiable "
    "fused decoupled_weight_decay",
)
class Adam(Optimizer):
    """torch.optim.Adam: the stateful face of `functorch_optim.adam`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running averages of the gradient and of its square, in [0, 1).
      eps: added to the root in the denominator; at least 0.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      amsgrad: divide by the largest second moment so far.
      maximize: ascend instead of descend.
      decoupled_weight_decay: decay the parameters directly, by `lr * weight_decay * p`, instead of
        through the gradient.
      foreach, capturable, differentiable, fused: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None: ...


@torch_class(
    fo.adamw,
    keys="lr betas eps weight_decay amsgrad maximize foreach capturable differentiable "
    "fused decoupled_weight_decay",
)
class AdamW(Optimizer):
    """torch.optim.AdamW: the stateful face of `functorch_optim.adamw`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running averages of the gradient and of its square, in [0, 1).
      eps: added to the root in the denominator; at least 0.
      weight_decay: the parameters lose `lr * weight_decay * p` at each step; at least 0.
      amsgrad: divide by the largest second moment so far.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable, fused: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None: ...


@torch_class(fo.adamax)
class Adamax(Optimizer):
    """torch.optim.Adamax: the stateful face of `functorch_optim.adamax`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running average and of the decaying maximum, in [0, 1).
      eps: added to the size of the gradient.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 2e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None: ...


@torch_class(fo.muon)
class Muon(Optimizer):
    """torch.optim.Muon: the stateful face of `functorch_optim.muon`.

    For matrices: give other parameters to another optimizer.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument but ns_steps may be a number, an array or a
        schedule.
      weight_decay: decoupled decay, times lr.
      momentum: coefficient of the running average of the gradient.
      nesterov: look ahead by one momentum step.
      ns_coefficients: a, b, c of the Newton-Schulz iteration.
      eps: floor of the norm.
      ns_steps: iterations, less than 100.
      adjust_lr_fn: how lr depends on the shape: `None` or "original", or "match_rms_adamw".
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        weight_decay: Hyperparameter = 0.1,
        momentum: Hyperparameter = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[Hyperparameter, Hyperparameter, Hyperparameter] = (
            3.4445,
            -4.775,
            2.0315,
        ),
        eps: Hyperparameter = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None: ...


@torch_class(
    fo.nadam,
    keys="lr betas eps weight_decay momentum_decay decoupled_weight_decay maximize foreach "
    "capturable differentiable",
)
class NAdam(Optimizer):
    """torch.optim.NAdam: the stateful face of `functorch_optim.nadam`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running averages of the gradient and of its square, in [0, 1).
      eps: added to the root in the denominator; at least 0.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      momentum_decay: how fast the momentum rises from beta1 / 2 to beta1.
      decoupled_weight_decay: decay the parameters directly, by `lr * weight_decay * p`, instead of
        through the gradient.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 2e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0,
        momentum_decay: Hyperparameter = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...


@torch_class(
    fo.radam,
    keys="lr betas eps weight_decay maximize foreach capturable decoupled_weight_decay "
    "differentiable",
)
class RAdam(Optimizer):
    """torch.optim.RAdam: the stateful face of `functorch_optim.radam`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running averages of the gradient and of its square, in [0, 1).
      eps: added to the root in the denominator; at least 0.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      decoupled_weight_decay: decay the parameters directly, by `lr * weight_decay * p`, instead of
        through the gradient.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...


@torch_class(
    fo.rmsprop,
    keys="lr momentum alpha eps centered weight_decay capturable foreach maximize differentiable",
)
class RMSprop(Optimizer):
    """torch.optim.RMSprop: the stateful face of `functorch_optim.rmsprop`.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate. Every numeric argument may be a number, an array or a schedule.
      alpha: coefficient of the running averages.
      eps: added to the root in the denominator; at least 0.
      weight_decay: L2 penalty: `weight_decay * p` is added to the gradient; at least 0.
      momentum: coefficient of the momentum buffer; the number 0 means no buffer.
      centered: divide by the standard deviation instead of the root mean square.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-2,
        alpha: Hyperparameter = 0.99,
        eps: Hyperparameter = 1e-8,
        weight_decay: Hyperparameter = 0,
        momentum: Hyperparameter = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None: ...


@torch_class(fo.rprop, keys="lr etas step_sizes foreach maximize differentiable capturable")
class Rprop(Optimizer):
    """torch.optim.Rprop: the stateful face of `functorch_optim.rprop`.

    For full batches.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: the first step size. Every numeric argument may be a number, an array or a schedule.
      etas: factors of the step size where the gradient turns, and where it keeps its sign.
      step_sizes: the smallest and the largest step size.
      maximize: ascend instead of descend.
      foreach, capturable, differentiable: kept in `param_groups` so that checkpoints travel;
        they select nothing, since XLA always fuses.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-2,
        etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2),
        step_sizes: tuple[Hyperparameter, Hyperparameter] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None: ...


@torch_class(fo.sparse_adam)
class SparseAdam(Optimizer):
    """torch.optim.SparseAdam: the stateful face of `functorch_optim.sparse_adam`.

    Gradients are BCOO arrays of `jax.experimental.sparse`, as `sparse_value_and_grad` makes them.
    Rows without a gradient keep their averages and their values. Parameters with dense gradients
    belong to another optimizer.

    Args:
      params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a
        list, or any tree of Parameters or of arrays.
      lr: learning rate, above 0. Every numeric argument may be a number, an array or a schedule.
      betas: coefficients of the running averages of the gradient and of its square, in [0, 1).
      eps: added to the root in the denominator; above 0.
      maximize: ascend instead of descend.
    """

    def __init__(
        self,
        params: Any,
        lr: Hyperparameter = 1e-3,
        betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
        eps: Hyperparameter = 1e-8,
        maximize: bool = False,
    ) -> None: ...
