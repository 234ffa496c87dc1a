"""A torch.optim class: a class statement with a signature, and a factory that agrees with it."""

import inspect
from typing import Any

import jax.numpy as jnp
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.stateful.torch_class import torch_class


def test_a_class_keeps_its_hyperparameters_in_the_order_of_its_keys() -> None:
    @torch_class(fo.lion, keys="weight_decay lr betas maximize foreach")
    class Lion(optim.Optimizer):
        """Lion.

        Args:
          params: the parameters.
        """

        def __init__(
            self,
            params: Any,
            lr: float = 1e-4,
            betas: tuple[float, float] = (0.9, 0.99),
            weight_decay: float = 0.0,
            *,
            foreach: bool | None = None,
            maximize: bool = False,
        ) -> None: ...

    opt = Lion({"w": jnp.ones(2)}, 0.5)
    assert [*opt.param_groups[0]][1:] == ["weight_decay", "lr", "betas", "maximize", "foreach"]
    opt.step({"w": jnp.array([2.0, -3.0])})
    assert opt.params["w"].tolist() == [0.5, 1.5]
    assert (Lion.__doc__ or "").startswith("Lion.\n\nLion: ")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        Lion({"w": jnp.ones(2)}, lr=-1)


@pytest.mark.parametrize(
    "arguments",
    [
        "lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, maximize=False",
        "lr, betas=(0.9, 0.99), weight_decay=0.0, maximize=False",
        "rate=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False",
        "lr=1e-4, betas=(0.9, 0.99), maximize=False",
        "lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False, foreach=False",
    ],
)
def test_a_class_that_disagrees_with_its_factory_is_refused(arguments: str) -> None:
    names: dict = {"Optimizer": optim.Optimizer}
    body = f"def __init__(self, params, {arguments}): ..."
    exec(f"class Lion(Optimizer):\n  {body}", names)
    message = "^Lion: its arguments and their defaults should be those of lion and some of torch's"
    with pytest.raises(TypeError, match=message):
        torch_class(fo.lion)(names["Lion"])


def test_a_subclass_may_have_arguments_of_its_own() -> None:
    class Slow(optim.AdamW):
        """AdamW at a hundredth of the learning rate."""

        def __init__(self, params: Any, lr: float):
            super().__init__(params, lr=lr / 100, amsgrad=True)

    opt = Slow([optim.Parameter(jnp.ones(2))], 1.0)
    group = opt.param_groups[0]
    assert (group["lr"], group["amsgrad"], group["decoupled_weight_decay"]) == (0.01, True, True)
    assert [*inspect.signature(Slow).parameters] == ["params", "lr"]


@pytest.mark.parametrize("cls", [optim.AdamW, optim.from_transformation(fo.adamw, "AdamW")])
def test_a_wrong_argument_is_refused_by_the_class(cls: Any) -> None:
    parameters = [optim.Parameter(jnp.ones(2))]
    message = r"^AdamW.__init__\(\) got an unexpected keyword argument 'learning_rate'"
    with pytest.raises(TypeError, match=message):
        cls(parameters, learning_rate=1e-3)
    with pytest.raises(TypeError, match=r"^AdamW.__init__\(\) "):
        cls(parameters, 1e-3, (0.9, 0.99), 1e-8, 0.0, False, True)
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument"):
        cls()
