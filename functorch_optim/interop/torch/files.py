"""`.pt` files: `load` and `save`."""

from __future__ import annotations

import collections
import os
from typing import Any

import numpy as np
import torch

from functorch_optim.interop import whole_files
from functorch_optim.interop.torch import archives, checkpoints
from functorch_optim.interop.torch.footprints import bytes_needed
from functorch_optim.interop.torch.nested import map_leaves
from functorch_optim.interop.torch.pickles import Storage, StoredTensor
from functorch_optim.interop.torch.tensors import check_dense, numpy_dtype, own_array
from functorch_optim.interop.untrusted import ByteLimit, ClippedReader, check_max_bytes, told_as

_PLAIN = (bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype)


def load(path: whole_files.FilePath, max_bytes: int | None = None) -> Any:
    """What torch saved in a file, with arrays for its tensors. No code of the file is ever run.

    A file may come from anybody. Its arrays (and the lists that it mentions more than once) may
    take four times the size of the file, or 64 MiB if that is more; nothing is taken before that is
    checked. It may be nested 100 levels deep.

    Args:
      path: a file of `torch.save` or `save`.
      max_bytes: another limit, for a file that is trusted to hold expanded tensors or many views,
        or is not trusted so far.

    Returns:
      The nested containers; dtypes as in `from_torch`.

    Raises:
      ValueError: it holds objects besides tensors, numbers, strings and containers of them; a
        tensor that is no array (sparse, quantized, nested, meta); more than the limits allow; or it
        is damaged. Nothing was executed then.
      OSError: the system's, as FileNotFoundError.
    """
    check_max_bytes(max_bytes)
    with ClippedReader(os.fspath(path)) as file, told_as(f"{os.fsdecode(path)} was not loaded"):
        limit = ByteLimit.of(file.size, max_bytes)
        archive = archives.opened(file, limit)
        limit.check(bytes_needed(archive.value), "what it holds")
        limit.check(sum(x.nbytes for x in archive.storages.values()), "its storages")
        memory = {key: _memory(archive, x) for key, x in archive.storages.items()}
        return map_leaves(
            archive.value, lambda x: _array(x, memory) if isinstance(x, StoredTensor) else x
        )


def _memory(archive: archives.Archive, storage: Storage) -> np.ndarray:
    """A storage's bytes, in the order of this machine, which is little-endian as all of JAX's."""
    data = np.frombuffer(archive.data(storage.key), np.uint8)
    dtype = numpy_dtype(storage.dtype)
    size = dtype.itemsize // (2 if storage.dtype.is_complex else 1)
    if archive.big_endian and size > 1:
        return data.view(f"u{size}").byteswap().view(np.uint8)
    return data


def _array(tensor: StoredTensor, memory: dict[str, np.ndarray]) -> Any:
    x = np.ndarray(
        tensor.shape, tensor.dtype, memory[tensor.storage.key], tensor.offset, tensor.strides
    )
    x = np.conjugate(x) if tensor.conjugate else x
    return own_array(np.negative(x) if tensor.negative else x)


def save(path: whole_files.FilePath, state_dict: Any) -> None:
    """Saves nested containers of arrays and numbers as a `.pt` file, which torch reads.

    The file is written beside `path` and then put in its place: whatever happens, a whole file is
    there, the old or the new. It keeps the old one's mode.

    Args:
      path: the file. Where it is a symbolic link, the file it points to is replaced.
      state_dict: arrays become tensors (`to_torch`); tensors, numbers, strings, `None`, dicts,
        lists and tuples are saved as they are.

    Raises:
      TypeError: something else, which `load` would refuse; it is named and nothing is written.
      ValueError: it is nested deeper than 100 levels, or contains itself.
      OSError: the file cannot be written: its path, and why. The old one is still there.
    """
    tensors = checkpoints.to_torch(state_dict)
    _check_plain(tensors, "the state_dict")
    whole_files.write_atomically(path, lambda file: _torch_save(tensors, file))


def _torch_save(tensors: Any, file: Any) -> None:
    try:
        torch.save(tensors, file)
    except RuntimeError as error:
        # torch's writer tells of a file that it could not close, over why it could not write it.
        cause: BaseException | None = error
        while isinstance(cause, RuntimeError):
            cause = cause.__context__
        raise error if cause is None else cause from None


def _check_plain(x: Any, where: str) -> None:
    if type(x) in (dict, collections.OrderedDict, collections.Counter):
        for key, value in x.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(value, f"{where}[{key!r}]")
    elif type(x) in (list, tuple, set):
        for i, item in enumerate(x):
            _check_plain(item, f"{where}[{i}]")
    elif isinstance(x, torch.Tensor):
        try:
            check_dense(x)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from None
    elif x is not None and type(x) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(x).__module__}.{type(x).__qualname__}, which a file can hold as a "
            "pickled object only; `load` would refuse it. Save the numbers that it is made of"
        )
