"""How an algorithm is written: the math of one leaf, made into a pair over pytrees.

`Rule` says what an algorithm is, `per_leaf` makes a factory of pairs from it, and
`functorch_optim.stateful.from_transformation` a class in torch's way. The page on extending the
library has an example of each. What a rule's functions compute with (`sqrt`, `one_minus_power` and
others, exact on the host and accurate when traced) is in `functorch_optim.core.arithmetic`.
"""

from functorch_optim.rules.numbers import Decay, StepNumbers
from functorch_optim.rules.pair import Factory, per_leaf
from functorch_optim.rules.rule import (
    Buffers,
    Carried,
    Rule,
    SparseGradients,
    TorchFacts,
    WholeTree,
    zeros,
)

__all__ = [
    "Buffers",
    "Carried",
    "Decay",
    "Factory",
    "Rule",
    "SparseGradients",
    "StepNumbers",
    "TorchFacts",
    "WholeTree",
    "per_leaf",
    "zeros",
]
