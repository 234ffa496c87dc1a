"""State in the safetensors format, which many libraries read. Needs `functorch_optim[safetensors]`.

The arrays are the file's tensors, named by their paths ("state.0.exp_avg"); everything else is a
JSON text in the file's metadata. Nothing in a file is ever executed.
"""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from functorch_optim.core.arithmetic import float_dtype
from functorch_optim.interop import whole_files
from functorch_optim.interop.untrusted import ClippedReader, check_level, check_max_bytes, told_as
from functorch_optim.stateful.parameter import Parameter

try:
    import safetensors
    import safetensors.numpy
except ImportError as error:
    raise ImportError(
        "functorch_optim.interop.safetensors needs safetensors: "
        'pip install "functorch_optim[safetensors]"'
    ) from error

__all__ = ["load_state", "save_state"]

VERSION = "1"
_VERSION_KEY = "functorch_optim.layout"
_STRUCTURE_KEY = "functorch_optim.structure"

# The format's names of the dtypes that every reader knows. Other arrays are saved by their bits.
_FORMAT_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_DICTS = {"dict": dict, "OrderedDict": collections.OrderedDict, "Counter": collections.Counter}
_ANYTHING: Any = object()  # no `like` was given


def save_state(path: whole_files.FilePath, state_dict: Any) -> None:
    """Saves any nested value of arrays, numbers, strings, `None`, dicts, lists and tuples.

    Also a pure pair's state, or any other pytree: see `load_state(path, like=state)`. The file is
    written beside `path` and then put in its place: whatever happens, a whole file is there. It
    keeps the mode of an old one.

    Args:
      path: the file. Where it is a symbolic link, the file it points to is replaced.
      state_dict: jax and numpy arrays of any dtype, and random keys. Keys of dicts are strings,
        numbers, `None`, or tuples of them.

    Raises:
      TypeError: something else; the message says where. Nothing is written then.
      ValueError: it is nested deeper than 100 levels, or contains itself.
      OSError: the file cannot be written: its path, and why. The old one is still there.
    """
    writer = _Writer()
    structure = writer.node(state_dict, ())
    metadata = {_VERSION_KEY: VERSION, _STRUCTURE_KEY: json.dumps(structure, allow_nan=False)}
    data = safetensors.numpy.save(writer.arrays, metadata)
    whole_files.write_atomically(path, lambda file: file.write(data))


def load_state(
    path: whole_files.FilePath, like: Any = _ANYTHING, max_bytes: int | None = None
) -> Any:
    """What `save_state` saved: the same containers, numbers and dtypes.

    Arrays come back as jax arrays (numpy arrays as numpy arrays). A 64-bit jax array is a numpy
    array where JAX's 64-bit types are off.

    A file may come from anybody. The format has no way to hold more numbers than bytes, or to
    mention a tensor twice, so its memory is in proportion; it may be nested 100 levels deep.

    Args:
      path: the file.
      like: a value of the same structure, as a fresh `tx.init(params)`. Needed for named tuples and
        other pytrees, whose classes are taken from it. Structure, shapes and dtypes must be its.
      max_bytes: how large the file may be, and so its arrays together; any size if not given.

    Raises:
      ValueError: the file is damaged, was not written by `save_state` or by a newer release, is
        larger than `max_bytes`, or does not fit `like`; the message says where.
      OSError: the system's, as FileNotFoundError.
    """
    check_max_bytes(max_bytes)
    name = os.fsdecode(path)
    with ClippedReader(os.fspath(path)) as file:
        if max_bytes is not None and file.size > max_bytes:
            raise ValueError(f"{name} has {file.size} bytes, more than max_bytes={max_bytes}")
        data = file.read()
    with told_as(f"{name} is damaged, or no safetensors file"):
        tensors = dict(safetensors.deserialize(data))
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    version = metadata.get(_VERSION_KEY)
    if version is None or _STRUCTURE_KEY not in metadata:
        raise ValueError(f"{name} was not written by save_state: its metadata has no structure")
    if version != VERSION:
        raise ValueError(
            f"{name} has layout version {version!r}, this release reads {VERSION!r}: it was "
            "written by a newer one"
        )
    with told_as(f"{name}: its structure is damaged"):
        structure = json.loads(metadata[_STRUCTURE_KEY])
        try:
            return _Reader(tensors).value(structure, like, ())
        except _Misfit as error:
            misfit = str(error)
    raise ValueError(f"{name}: {misfit}")


class _Misfit(Exception):
    """A file that does not fit `like`, or needs one."""


Path = tuple[Any, ...]


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "value"


class _Writer:
    """From a value to JSON and arrays by name.

    None, booleans, integers, strings, finite floats and lists are JSON's own. Everything else is an
    object with one key that says what it is.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def node(self, x: Any, path: Path) -> Any:
        check_level(len(path), "the value")
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            return self._array(x, path)
        kind = type(x)
        if x is None or kind in (bool, int, str):
            return x
        if kind is float:
            return x if math.isfinite(x) else {"float": str(x)}
        if kind is complex:
            return {"complex": [self.node(x.real, path), self.node(x.imag, path)]}
        if kind is list:
            return self._items(x, path)
        if kind is tuple:
            return {"tuple": self._items(x, path)}
        if kind in _DICTS.values():
            pairs = [[self._key(k, path), self.node(v, (*path, k))] for k, v in x.items()]
            return {kind.__name__: pairs}
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            fields = [[f, self.node(getattr(x, f), (*path, f))] for f in x._fields]
            return {"namedtuple": [kind.__name__, fields]}
        if isinstance(x, Parameter) or jax.tree_util.all_leaves([x]):
            raise TypeError(
                f"{_dotted(path)} is a {kind.__module__}.{kind.__qualname__}, which cannot be "
                "saved: "
                + (
                    "save its value"
                    if isinstance(x, Parameter)
                    else "it is no array, number, string or container"
                )
            )
        children, _ = _one_level(x)
        return {"pytree": [kind.__name__, self._items(children, path)]}

    def _items(self, items: Any, path: Path) -> list[Any]:
        return [self.node(item, (*path, i)) for i, item in enumerate(items)]

    def _key(self, key: Any, path: Path) -> Any:
        if isinstance(key, list | dict | np.generic):
            raise TypeError(f"the key {key!r} of {_dotted(path)} cannot be saved")
        return self.node(key, path)

    def _array(self, x: Any, path: Path) -> Any:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            impl = str(jax.random.key_impl(x))
            return {"key": [impl, self._array(jax.random.key_data(x), path)]}
        kind = "array" if isinstance(x, jax.Array) else "numpy"
        kind = "scalar" if isinstance(x, np.generic) else kind
        array = np.array(x, order="C")
        if not _is_saved(array.dtype):
            raise TypeError(f"{_dotted(path)}: an array of {array.dtype} cannot be saved")
        array = array.astype(array.dtype.newbyteorder("="))
        dtype = array.dtype.name
        if np.iscomplexobj(array):
            real = np.float32 if array.dtype.itemsize == 8 else np.float64
            array = array.reshape(*array.shape, 1).view(real)
        elif dtype not in _FORMAT_DTYPES.values():
            array = array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])
        name = _dotted(path).encode("utf-8", "replace").decode()
        while name in self.arrays or name == "__metadata__":
            name += "'"
        self.arrays[name] = array
        return {kind: [name, dtype]}


def _is_saved(dtype: np.dtype) -> bool:
    """Whether arrays of this dtype can be saved: what jax has, of at most 64 bits a number."""
    if dtype.kind not in "biufc":
        return hasattr(ml_dtypes, dtype.name)
    return dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def _one_level(x: Any) -> tuple[list[Any], Any]:
    """The children of a pytree node, and what makes a node like it of others."""
    children, treedef = jax.tree.flatten(x, is_leaf=lambda y: y is not x)
    return children, treedef


class _Reader:
    """From JSON and arrays to the value."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Any]]):
        self._unused = dict(tensors)

    def value(self, node: Any, like: Any, path: Path) -> Any:
        check_level(len(path), "it")
        if not isinstance(node, dict):
            if not isinstance(node, list):
                _check_leaf(node, like, path)
                return node
            return self._items(node, like, list, path)
        ((kind, content),) = node.items()
        if kind in ("array", "numpy", "scalar", "key"):
            array = self._array(kind, content)
            _check_array(array, like, path)
            return array
        if kind == "tuple":
            return tuple(self._items(content, like, tuple, path))
        if kind in _DICTS:
            return self._dict(_DICTS[kind], content, like, path)
        if kind in ("namedtuple", "pytree"):
            name, parts = content
            return (self._named if kind == "namedtuple" else self._pytree)(name, parts, like, path)
        number = self._number(kind, content)
        _check_leaf(number, like, path)
        return number

    def _number(self, kind: str, content: Any) -> Any:
        if kind == "float":
            return float(content)
        if kind == "complex":
            real, imaginary = (float(x["float"] if isinstance(x, dict) else x) for x in content)
            return complex(real, imaginary)
        raise ValueError(f"it has the unknown kind {kind!r}")

    def _items(self, items: list[Any], like: Any, kind: Any, path: Path) -> list[Any]:
        likes = [_ANYTHING] * len(items)
        if like is not _ANYTHING:
            if type(like) is not kind or len(like) != len(items):
                raise _Misfit(
                    f"{_dotted(path)} is a {kind.__name__} of {len(items)}, but `like` has "
                    f"{_described(like)}"
                )
            likes = list(like)
        return [
            self.value(item, other, (*path, i))
            for i, (item, other) in enumerate(zip(items, likes, strict=True))
        ]

    def _dict(self, kind: type, pairs: list[Any], like: Any, path: Path) -> Any:
        values = {self.value(key, _ANYTHING, path): content for key, content in pairs}
        if like is not _ANYTHING and not (
            type(like).__name__ == kind.__name__ and like.keys() == values.keys()
        ):
            raise _Misfit(
                f"{_dotted(path)} is a {kind.__name__} with the keys {[*values]}, but `like` has "
                f"{_described(like)}"
            )
        return kind(
            {
                key: self.value(node, like if like is _ANYTHING else like[key], (*path, key))
                for key, node in values.items()
            }
        )

    def _named(self, name: str, fields: list[Any], like: Any, path: Path) -> Any:
        _check_class(name, like, path)
        if getattr(like, "_fields", None) != tuple(field for field, _ in fields):
            raise _Misfit(
                f"{_dotted(path)} has the fields {[field for field, _ in fields]}, but `like` has "
                f"{_described(like)}"
            )
        return type(like)(
            **{field: self.value(x, getattr(like, field), (*path, field)) for field, x in fields}
        )

    def _pytree(self, name: str, children: list[Any], like: Any, path: Path) -> Any:
        _check_class(name, like, path)
        likes, treedef = _one_level(like)
        return jax.tree.unflatten(treedef, self._items(children, likes, list, path))

    def _array(self, kind: str, content: list[Any]) -> Any:
        if kind == "key":
            impl, ((data_kind, data),) = content[0], content[1].items()
            return jax.random.wrap_key_data(jnp.asarray(self._array(data_kind, data)), impl=impl)
        name, dtype = content
        # Once only: a small file could mention a large tensor often.
        entry = self._unused.pop(name, None)
        if entry is None:
            raise ValueError(f"tensor {name!r} is missing, or mentioned twice")
        stored = np.dtype(_FORMAT_DTYPES[entry["dtype"]])
        array = np.frombuffer(entry["data"], stored).reshape(entry["shape"]).copy()
        if array.dtype.name != dtype:
            wanted = _dtype(dtype)
            is_complex = np.issubdtype(wanted, np.complexfloating)
            array = array.view(wanted)[..., 0] if is_complex else array.view(wanted)
        if kind == "scalar" and array.ndim:
            raise ValueError(f"the scalar {name!r} has the shape {array.shape}")
        if kind == "scalar":
            return array[()]
        wide = array.dtype.itemsize >= (16 if np.iscomplexobj(array) else 8)
        if kind == "numpy" or (wide and float_dtype().itemsize < 8):
            return array
        return jnp.array(array)


def _dtype(name: str) -> np.dtype:
    """numpy's dtype of this name; none of its other notations, which may hold anything."""
    dtype = np.dtype(name)
    if dtype.name != name or not _is_saved(dtype):
        raise ValueError(f"it has an array of {name!r}")
    return dtype


def _check_leaf(value: Any, like: Any, path: Path) -> None:
    if like is not _ANYTHING and type(like) is not type(value):
        raise _Misfit(f"{_dotted(path)} is {value!r}, but `like` has {_described(like)}")


def _check_array(array: Any, like: Any, path: Path) -> None:
    if like is _ANYTHING:
        return
    found = tuple(np.shape(array)), array.dtype
    if not hasattr(like, "shape") or (tuple(like.shape), like.dtype) != found:
        raise _Misfit(
            f"{_dotted(path)} is an array of shape {found[0]} and dtype {found[1]}, but `like` has "
            f"{_described(like)}"
        )


def _check_class(name: str, like: Any, path: Path) -> None:
    if like is _ANYTHING:
        raise _Misfit(
            f"{_dotted(path)} is a {name}, whose class is not in the file: give `like`, a value of "
            "the same structure, as `load_state(path, like=tx.init(params))`"
        )
    if type(like).__name__ != name:
        raise _Misfit(f"{_dotted(path)} is a {name}, but `like` has {_described(like)}")


def _described(x: Any) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"an array of shape {tuple(x.shape)} and dtype {x.dtype}"
    if isinstance(x, Mapping):
        return f"a {type(x).__name__} with the keys {[*x]}"
    if isinstance(x, list | tuple):
        return f"a {type(x).__name__} of {len(x)}"
    return f"{x!r} of type {type(x).__name__}"
