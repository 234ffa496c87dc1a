"""`.pt` files: `load` and `save`."""

from __future__ import annotations

import collections
import os
import pickle
from typing import Any

import torch

from functorch_optim.interop import whole_files
from functorch_optim.interop.torch.checkpoints import from_torch, to_torch

_PLAIN = (bool, int, float, complex, str, bytes)


def load(path: whole_files.Path) -> Any:
    """What torch saved in a file, with arrays for its tensors. No code of the file is ever run.

    Args:
      path: a file of `torch.save` or `save`.

    Returns:
      The nested containers; dtypes as in `from_torch`.

    Raises:
      ValueError: it holds objects besides tensors, numbers, strings and containers of them, or it
        is damaged. Nothing was executed then.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{os.fspath(path)} was not loaded: it is no file of torch, or holds something besides "
            "tensors, numbers, strings and containers of them, whose loading could run code. "
            f"torch says: {str(error).strip()}"
        ) from error
    except (RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a file of torch: {error}") from error
    return from_torch(saved)


def save(path: whole_files.Path, state_dict: Any) -> None:
    """Saves nested containers of arrays and numbers as a `.pt` file, which torch reads.

    The file is written beside `path` and then put in its place: whatever happens, a whole file is
    there, the old or the new.

    Args:
      path: the file.
      state_dict: arrays become tensors (`to_torch`); tensors, numbers, strings, `None`, dicts,
        lists and tuples are saved as they are.

    Raises:
      TypeError: something else, which `load` would refuse; it is named and nothing is written.
    """
    tensors = to_torch(state_dict)
    _check_plain(tensors, "the state_dict")
    whole_files.write_atomically(path, lambda file: torch.save(tensors, file))


def _check_plain(x: Any, where: str) -> None:
    if type(x) in (dict, collections.OrderedDict, collections.Counter):
        for key, value in x.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(value, f"{where}[{key!r}]")
    elif type(x) in (list, tuple, set):
        for i, item in enumerate(x):
            _check_plain(item, f"{where}[{i}]")
    elif not (
        x is None or type(x) in (*_PLAIN, torch.Size, torch.dtype) or isinstance(x, torch.Tensor)
    ):
        raise TypeError(
            f"{where} is a {type(x).__module__}.{type(x).__qualname__}, which a file can hold as a "
            "pickled object only; `load` would refuse it. Save the numbers that it is made of"
        )
