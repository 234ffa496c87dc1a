"""The classes of torch.optim: their arguments, and their `param_groups` keys in torch's order."""

import functorch_optim as _pure
from functorch_optim.algorithms.sparse_adam import sparse_adam
from functorch_optim.stateful.torch_class import torch_class

ASGD = torch_class(
    "ASGD",
    _pure.asgd,
    "lr lambd alpha t0 weight_decay foreach maximize differentiable capturable",
)
SGD = torch_class(
    "SGD",
    _pure.sgd,
    "lr momentum dampening weight_decay nesterov * maximize foreach differentiable fused",
)
Adadelta = torch_class(
    "Adadelta",
    _pure.adadelta,
    "lr rho eps weight_decay foreach * capturable maximize differentiable",
    keys="lr rho eps weight_decay maximize capturable foreach differentiable",
)
Adafactor = torch_class(
    "Adafactor",
    _pure.adafactor,
    "lr beta2_decay eps d weight_decay * foreach maximize",
)
Adagrad = torch_class(
    "Adagrad",
    _pure.adagrad,
    "lr lr_decay weight_decay initial_accumulator_value eps foreach * maximize "
    "differentiable fused",
    keys="lr lr_decay eps weight_decay initial_accumulator_value foreach maximize "
    "differentiable fused",
)
Adam = torch_class(
    "Adam",
    _pure.adam,
    "lr betas eps weight_decay amsgrad * foreach maximize capturable differentiable fused "
    "decoupled_weight_decay",
    keys="lr betas eps weight_decay amsgrad maximize foreach capturable differentiable fused "
    "decoupled_weight_decay",
)
AdamW = torch_class(
    "AdamW",
    _pure.adamw,
    "lr betas eps weight_decay amsgrad * maximize foreach capturable differentiable fused",
    keys="lr betas eps weight_decay amsgrad maximize foreach capturable differentiable fused "
    "decoupled_weight_decay",
)
Adamax = torch_class(
    "Adamax",
    _pure.adamax,
    "lr betas eps weight_decay foreach * maximize differentiable capturable",
)
Muon = torch_class(
    "Muon",
    _pure.muon,
    "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn",
)
NAdam = torch_class(
    "NAdam",
    _pure.nadam,
    "lr betas eps weight_decay momentum_decay decoupled_weight_decay * foreach maximize "
    "capturable differentiable",
    keys="lr betas eps weight_decay momentum_decay decoupled_weight_decay maximize foreach "
    "capturable differentiable",
)
RAdam = torch_class(
    "RAdam",
    _pure.radam,
    "lr betas eps weight_decay decoupled_weight_decay * foreach maximize capturable differentiable",
    keys="lr betas eps weight_decay maximize foreach capturable decoupled_weight_decay "
    "differentiable",
)
RMSprop = torch_class(
    "RMSprop",
    _pure.rmsprop,
    "lr alpha eps weight_decay momentum centered capturable foreach maximize differentiable",
    keys="lr momentum alpha eps centered weight_decay capturable foreach maximize differentiable",
)
Rprop = torch_class(
    "Rprop",
    _pure.rprop,
    "lr etas step_sizes * capturable foreach maximize differentiable",
    keys="lr etas step_sizes foreach maximize differentiable capturable",
)
SparseAdam = torch_class("SparseAdam", sparse_adam, "lr betas eps maximize")
