"""Functions that users register to run around an optimizer's methods, in torch's order."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

Hook = Callable[..., Any]


class Hooks:
    """Registered functions, in the order in which they run.

    Attributes:
      registered: the functions by key.
    """

    def __init__(self) -> None:
        self.registered: dict[int, Hook] = {}
        self._keys = itertools.count()

    def add(self, hook: Hook, prepend: bool = False) -> RemovableHandle:
        """Registers a function, behind the others or in front of them."""
        key = next(self._keys)
        if prepend:
            self.registered = {key: hook, **self.registered}
        else:
            self.registered[key] = hook
        return RemovableHandle(self, key)

    def remove(self, key: int) -> None:
        """Takes a function out, if it is there."""
        self.registered.pop(key, None)

    def __iter__(self) -> Iterator[Hook]:
        return iter(list(self.registered.values()))  # a hook may remove itself


class RemovableHandle:
    """What registering returns: `remove()` takes the function out again; so does leaving `with`."""

    def __init__(self, hooks: Hooks, key: int):
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Takes the function out. Doing it twice is no error."""
        self._hooks.remove(self._key)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


BEFORE_ANY_STEP = Hooks()
AFTER_ANY_STEP = Hooks()


def register_optimizer_step_pre_hook(hook: Hook) -> RemovableHandle:
    """Runs `hook(optimizer, args, kwargs)` before each step of every optimizer.

    It may return `(new_args, new_kwargs)`; args include the optimizer, as in torch.
    """
    return BEFORE_ANY_STEP.add(hook)


def register_optimizer_step_post_hook(hook: Hook) -> RemovableHandle:
    """Runs `hook(optimizer, args, kwargs)` after each step of every optimizer."""
    return AFTER_ANY_STEP.add(hook)


def hooked(step: Hook) -> Hook:
    """A class's `step` between an optimizer's hooks: global ones outermost.

    A step that calls that of a class above runs the hooks once, around all of it.
    """

    @functools.wraps(step)
    def around(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = optimizer._step_pre_hooks
        after = optimizer._step_post_hooks
        hooks = before, after, BEFORE_ANY_STEP, AFTER_ANY_STEP
        if not any([some.registered for some in hooks]) or type(optimizer).step is not around:
            return step(optimizer, *args, **kwargs)
        return around_step(optimizer, step, before, after, (optimizer, *args), kwargs)

    around._hooked = weakref.ref(around)  # type: ignore[attr-defined]
    return around


def hook_step(cls: Any) -> None:
    """Lets hooks run around a class's own step, as torch does when it makes an instance."""
    step = cls.step
    known = getattr(step, "_hooked", None)  # a user's wrapper may have taken it over
    if known is None or known() is not step:
        cls.step = hooked(step)


def around_step(
    optimizer: Any,
    step: Hook,
    before: Hooks,
    after: Hooks,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Calls `step(*args, **kwargs)` between the optimizer's hooks: global ones outermost.

    Raises:
      RuntimeError: a hook returned something that is not new arguments.
    """
    for hook in (*BEFORE_ANY_STEP, *before):
        result = hook(optimizer, args, kwargs)
        if result is None:
            continue
        if not (isinstance(result, tuple) and len(result) == 2):
            raise RuntimeError(
                f"{step} must return None or a tuple of (new_args, new_kwargs), but got {result}."
            )
        args, kwargs = result
    returned = step(*args, **kwargs)
    for hook in (*after, *AFTER_ANY_STEP):
        hook(optimizer, args, kwargs)
    return returned


def replaced(hooks: Hooks, optimizer: Any, value: Any) -> Any:
    """The value after each hook had the chance to return another in its place."""
    for hook in hooks:
        result = hook(optimizer, value)
        value = value if result is None else result
    return value
