"""torch.amp.GradScaler: a loss is scaled up, so that small gradients in float16 do not become 0.

    unscale:  g <- g * (1 / scale);  a gradient that is not finite was found, or none was
    step:     skipped if one was
    update:   one was:      scale <- scale * backoff_factor
              none was:     after growth_interval of them in a row  scale <- scale * growth_factor

Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks, trees
from functorch_optim.stateful.memory.cell import Changes
from functorch_optim.stateful.step.scaling import reciprocal, refuse_float16, scaled, unscaled

if TYPE_CHECKING:
    from functorch_optim.stateful.optimizer import Optimizer


class _Stage(enum.Enum):
    UNSCALED = 1
    STEPPED = 2


class _Progress(NamedTuple):
    """What was done for an optimizer since the last update.

    Attributes:
      stage: how far it is.
      found: whether a gradient was not finite: a number of the device, or a bool that was fetched;
        `None` where there was no gradient.
    """

    stage: _Stage
    found: Any


class GradScaler:
    """Scales losses, unscales gradients, and skips steps whose gradients are not finite.

    The scale is an input of whatever `jax.jit` compiles: it may change without a recompile::

        def scaled_loss(params, batch):
            return scaler.scale(loss_fn(params, batch))

        loss = optim.backward(scaled_loss, model, batch)  # the scaled one, as in torch
        scaler.unscale_(opt)  # where gradients are looked at, or clipped
        optim.clip_grad_norm_(model, 1.0)
        scaler.step(opt)
        scaler.update()

    `opt.make_step(loss_fn, model, scaler=scaler)` does all of this in one compiled program.

    `step` waits for the device, to know whether to skip; so does `update` where `step` was not
    called. The scale is kept on the host too: to ask for it waits for nothing.

    Args:
      device: a device or sharding of `jax`, for the scale in compiled programs: that of parameters
        which are not on the default device (`NamedSharding(mesh, PartitionSpec())` on a mesh).
        torch's names of devices are accepted and select nothing.
      init_scale: the first scale.
      growth_factor: what the scale is multiplied by after `growth_interval` steps in a row with
        finite gradients; above 1.
      backoff_factor: what it is multiplied by after a step without; below 1.
      growth_interval: steps.
      enabled: False turns everything off: `step` is the optimizer's.

    Raises:
      AssertionError: a factor that torch refuses, in its words.
      TypeError: an argument is of another kind. ValueError: a number is out of range.
    """

    def __init__(
        self,
        device: Any = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        if not (device is None or isinstance(device, str | jax.Device | jax.sharding.Sharding)):
            raise TypeError(
                f"device should be a device or a sharding of jax, or a name, but got {device!r} of "
                f"type {type(device).__name__}"
            )
        checks.flag("enabled", enabled)
        self._device = None if isinstance(device, str) else device
        self._enabled = bool(enabled)
        if self._enabled and not growth_factor > 1.0:
            raise AssertionError("The growth factor must be > 1.0.")
        if self._enabled and not backoff_factor < 1.0:
            raise AssertionError("The backoff factor must be < 1.0.")
        self._begin(_checked_numbers(init_scale, growth_factor, backoff_factor, growth_interval, 0))

    def _begin(self, numbers: _Numbers) -> None:
        self._numbers = numbers
        self._live = jax.new_ref(jax.device_put(np.float32(numbers.scale), self._device))
        self._has_scaled = False
        self._progress: dict[Optimizer, _Progress] = {}

    def scale(self, outputs: Any) -> Any:
        """A loss, or a tree or iterator of them, times the scale.

        As in torch, a product of 0-d arrays is float32 at least; other shapes keep their dtype.

        Raises:
          ValueError: there is something else than arrays.
        """
        if not self._enabled:
            return outputs
        if isinstance(outputs, Iterator):
            return map(self.scale, outputs)
        return jax.tree.map(self._scaled, outputs, is_leaf=trees.is_leaf)

    def _scaled(self, x: Any) -> jax.Array:
        if not isinstance(x, jax.Array | np.ndarray | np.generic):
            raise ValueError(
                f"outputs must be a Tensor or an iterable of Tensors, but there is {x!r} of type "
                f"{type(x).__name__}"
            )
        self._has_scaled = True
        # A tracer's program may run again: it reads the scale each time.
        scale = self._live[...] if isinstance(x, jax.core.Tracer) else self._numbers.scale
        return scaled(jnp.asarray(x), scale)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divides the gradients of an optimizer by the scale, and looks for any that is not finite.

        Optional: `step` does it if it was not done. Waits for nothing.

        Raises:
          RuntimeError: it was done since the last `update`, or `step` was. AssertionError: nothing
            was scaled. ValueError: a gradient is float16. Nothing is changed by any of these.
        """
        if not self._enabled:
            return
        self._check_scaled("unscale_")
        known = self._progress.get(optimizer)
        if known is not None and known.stage is _Stage.UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if known is not None:
            raise RuntimeError("unscale_() is being called after step().")
        members = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
        cells = [p for p in members if p.grad is not None]
        refuse_float16([p.grad for p in cells])
        changes, found = Changes(), None
        if cells:
            inverse = reciprocal(self._numbers.scale)
            grads, found = _unscaled(tuple(p.grad for p in cells), inverse)
            changes.set(cells, "_grad", grads)
        changes.update(self._progress, {optimizer: _Progress(_Stage.UNSCALED, found)})
        changes.make()

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Unscales the gradients if `unscale_` did not, and steps if all of them are finite.

        Waits for the device.

        Args:
          optimizer: whose step it is.
          *args: none: gradients are those in `.grad`.
          **kwargs: for the optimizer's `step`.

        Returns:
          What the optimizer's `step` returned; `None` if it was skipped.

        Raises:
          RuntimeError: there is a closure; `step` was called since the last `update`.
          AssertionError: nothing was scaled; no Parameter of the optimizer has a gradient.
          ValueError: a gradient is float16. TypeError: gradients were given.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs or any(callable(x) for x in args):
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if args:
            raise TypeError(
                "GradScaler.step takes no gradients: it unscales and steps with those in .grad"
            )
        self._check_scaled("step")
        known = self._progress.get(optimizer)
        if known is not None and known.stage is _Stage.STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if known is None:
            self.unscale_(optimizer)
        found = self._progress[optimizer].found
        if found is None:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        skip = bool(found)
        result = None if skip else optimizer.step(**kwargs)
        self._progress[optimizer] = _Progress(_Stage.STEPPED, skip)
        return result

    def update(self, new_scale: Any = None) -> None:
        """Adapts the scale after the steps of an iteration, or sets it.

        Args:
          new_scale: a number, or an array of one element, whose value is taken over.

        Raises:
          AssertionError: nothing was scaled; `unscale_` and `step` found no gradient; new_scale is
            no such number.
        """
        if not self._enabled:
            return
        self._check_scaled("update")
        if new_scale is not None:
            self._set(self._numbers._replace(scale=_number(new_scale)), _progress={})
            return
        found = [x.found for x in self._progress.values() if x.found is not None]
        if not found:
            raise AssertionError("No inf checks were recorded prior to update.")
        self._set(self._numbers.after(any([bool(x) for x in found])), _progress={})

    def _set(self, numbers: _Numbers, **others: Any) -> None:
        changes = Changes()
        changes.update(self.__dict__, {"_numbers": numbers, **others})
        try:
            changes.make()
            self._live[...] = jnp.asarray(numbers.scale)
        except BaseException:  # an interrupt: programs scale by what gradients are unscaled by
            self._live[...] = jnp.asarray(self._numbers.scale)
            raise

    def for_program(self) -> np.ndarray:
        """What a training step takes: the scale, and its reciprocal as two factors."""
        self._has_scaled = True
        scale = self._numbers.scale
        return np.array([scale, *reciprocal(scale)])

    def after_program(self, found: bool) -> None:
        """Adapts the scale after a training step whose gradients were not finite, or were."""
        self._set(self._numbers.after(found))

    def get_scale(self) -> float:
        """The scale; 1 if scaling is turned off."""
        return float(self._numbers.scale) if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """What the scale is multiplied by when it grows."""
        return self._numbers.growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Sets what the scale is multiplied by when it grows."""
        checks.number("new_factor", new_factor)
        self._numbers = self._numbers._replace(growth_factor=float(new_factor))

    def get_backoff_factor(self) -> float:
        """What the scale is multiplied by after gradients that were not finite."""
        return self._numbers.backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Sets what the scale is multiplied by after gradients that were not finite."""
        checks.number("new_factor", new_factor)
        self._numbers = self._numbers._replace(backoff_factor=float(new_factor))

    def get_growth_interval(self) -> int:
        """How many steps in a row with finite gradients let the scale grow."""
        return self._numbers.growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Sets how many steps in a row with finite gradients let the scale grow."""
        checks.length("new_interval", new_interval)
        self._numbers = self._numbers._replace(growth_interval=int(new_interval))

    def _get_growth_tracker(self) -> int:
        return self._numbers.growth_tracker if self._enabled else 0

    def is_enabled(self) -> bool:
        """Whether scaling is turned on."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """torch's dict of five numbers, to be saved after `update`; empty if turned off."""
        if not self._enabled:
            return {}
        numbers = self._numbers
        return {
            "scale": float(numbers.scale),
            "growth_factor": numbers.growth_factor,
            "backoff_factor": numbers.backoff_factor,
            "growth_interval": numbers.growth_interval,
            "_growth_tracker": numbers.growth_tracker,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, here or in torch; nothing if turned off.

        Raises:
          RuntimeError: it is empty. KeyError: an entry is missing. TypeError, ValueError: an entry
            is no such number. Nothing is changed then.
        """
        if not self._enabled:
            return
        if len(state_dict) == 0:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled "
                "instance of GradScaler."
            )
        names = "scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"
        self._set(_checked_numbers(*[state_dict[name] for name in names]))

    def _check_scaled(self, called: str) -> None:
        if not self._has_scaled:
            raise AssertionError(
                f"Attempted {called} but _scale is None.  This may indicate your script did not "
                "use scaler.scale(loss or outputs) earlier in the iteration."
            )

    def __getstate__(self) -> dict[str, Any]:
        if self._progress:
            raise AssertionError(
                "A GradScaler instance may only be pickled at the beginning of an iteration, or "
                "at the end after scaler.update()."
            )
        return {name: self.__dict__[name] for name in ("_device", "_enabled", "_numbers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._device, self._enabled = state["_device"], state["_enabled"]
        self._begin(state["_numbers"])


class _Numbers(NamedTuple):
    """A scaler's numbers, all of the host: the scale is float32, the factors are double."""

    scale: np.float32
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    growth_tracker: int

    def after(self, found: bool) -> _Numbers:
        """Those of the next iteration. A scale that is not finite is not taken, as in torch."""
        if found:
            return self._replace(scale=_float32(self.scale, self.backoff_factor), growth_tracker=0)
        steps = self.growth_tracker + 1
        if steps != self.growth_interval:
            return self._replace(growth_tracker=steps)
        larger = _float32(self.scale, self.growth_factor)
        scale = larger if math.isfinite(larger) else self.scale
        return self._replace(scale=scale, growth_tracker=0)


def _float32(scale: Any, factor: Any = 1.0) -> np.float32:
    """A product in double, rounded once."""
    with np.errstate(all="ignore"):
        return np.float32(np.float64(scale) * np.float64(factor))


def _checked_numbers(
    scale: Any, growth_factor: Any, backoff_factor: Any, growth_interval: Any, growth_tracker: Any
) -> _Numbers:
    numbers = {"scale": scale, "growth_factor": growth_factor, "backoff_factor": backoff_factor}
    for name, value in numbers.items():
        checks.number(name, value)
    checks.length("growth_interval", growth_interval)
    checks.length("growth_tracker", growth_tracker, least=0)
    return _Numbers(
        _float32(scale),
        float(growth_factor),
        float(backoff_factor),
        int(growth_interval),
        int(growth_tracker),
    )


def _number(new_scale: Any) -> np.float32:
    is_array = isinstance(new_scale, jax.Array | np.ndarray) and new_scale.dtype.kind in "fV"
    if not (isinstance(new_scale, int | float | np.floating) or is_array) or (
        isinstance(new_scale, bool) or np.size(new_scale) != 1
    ):
        raise AssertionError(
            "new_scale should be a float or a 1-element torch.cuda.FloatTensor or "
            f"torch.FloatTensor with requires_grad=False, here an array, but is {new_scale!r}"
        )
    return _float32(np.asarray(new_scale).astype(np.float64).reshape(()))


_unscaled = jax.jit(unscaled)
