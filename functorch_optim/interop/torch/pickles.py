"""The pickles of torch's files, read without running anything and before any tensor is made.

A pickle is a program for a stack machine, which may call whatever it names. The machine here knows
the few names that a state_dict needs, and for each of them a function of its own. A tensor becomes
a description (`StoredTensor`), so that its size is known before its memory is taken.
"""

from __future__ import annotations

import collections
import pickletools
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch

from functorch_optim.interop.torch.tensors import numpy_dtype
from functorch_optim.interop.untrusted import BYTES_OF_AN_ITEM, ByteLimit

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_STORAGE = "a storage: "  # no module has such a name
_DTYPES = {name: x for name, x in vars(torch).items() if isinstance(x, torch.dtype)}
_NO_ARRAYS = {
    "_rebuild_sparse_tensor": "a sparse tensor, which is no array: make it dense",
    "_rebuild_qtensor": "a quantized tensor, which is no array: make it dense",
    "_rebuild_nested_tensor": "a nested tensor, which is no array: save its parts",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_wrapper_subclass": "a tensor of a subclass without data of its own",
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_SIZED = (str, bytes, list, tuple, dict)
_MOST_DIMENSIONS = 64  # numpy's limit, and torch's
# Of a tuple that is a key: hashing takes time for every item, at every level.
_MOST_ITEMS_OF_A_KEY = 100


class Storage(NamedTuple):
    """Memory in the file that tensors are made of.

    Attributes:
      key: its name in the file.
      dtype: of its numbers; bytes where torch does not say.
      start: where it begins in the memory of this name, in numbers.
      size: how many numbers it has.
      whole: how many numbers the memory of this name has.
    """

    key: str
    dtype: torch.dtype
    start: int
    size: int
    whole: int

    @property
    def nbytes(self) -> int:
        """Of the memory of this name."""
        return self.whole * self.dtype.itemsize


class StoredTensor:
    """A tensor that is still in the file.

    Attributes:
      storage: what it is made of.
      dtype: numpy's.
      offset: where it begins in the storage, in bytes.
      shape: its shape.
      strides: in bytes.
      conjugate: its numbers are those of the storage, conjugated.
      negative: or with the other sign.
    """

    def __init__(
        self,
        storage: Storage,
        dtype: torch.dtype,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        metadata: Any,
    ):
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            raise ValueError("it is damaged: a tensor without a storage or a dtype")
        if not len(shape) == len(strides) <= _MOST_DIMENSIONS:
            raise ValueError("it is damaged: a tensor whose shape and stride do not fit")
        numbers = (offset, *shape, *strides)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("it is damaged: a tensor whose offset, shape or stride is none")
        self.dtype = numpy_dtype(dtype)
        size = self.dtype.itemsize
        end = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and end * size > storage.size * storage.dtype.itemsize:
            raise ValueError(
                f"it is damaged: a tensor of shape {tuple(shape)} and stride {tuple(strides)} "
                f"reaches beyond its storage of {storage.size} numbers"
            )
        self.storage = storage
        self.offset = storage.start * storage.dtype.itemsize + offset * size
        self.shape = tuple(shape)
        self.strides = tuple(step * size for step in strides)
        self.conjugate = bool(metadata and metadata.get("conj"))
        self.negative = bool(metadata and metadata.get("neg"))

    @property
    def nbytes(self) -> int:
        """What it takes in memory of its own, in Python's numbers, which do not overflow."""
        count = self.dtype.itemsize
        for n in self.shape:
            count *= n
        return count


class _GlobalName(str):
    """A function or class that the pickle names, as "module.name"."""


def read_pickle(
    file: BinaryIO, limit: ByteLimit, storages: dict[str, Storage] | None = None
) -> Any:
    """The value of one pickle, with a `StoredTensor` for every tensor.

    Args:
      file: is left behind the pickle.
      limit: for what it copies again and again.
      storages: gets those that the tensors are made of, by key; `None` where there are no tensors.

    Raises:
      ValueError: it holds anything besides tensors, numbers, strings and containers of them. Damage
        may raise any other error.
    """
    machine = _Machine(limit, storages)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        machine.run(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    def __init__(self, limit: ByteLimit, storages: dict[str, Storage] | None):
        self.stack: list[Any] = []
        self._limit = limit
        self._mentioned_again: set[int] = set()
        self._copied = 0
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages = storages

    def run(self, opcode: str, argument: Any) -> None:
        """One instruction, by pickletools' name for it."""
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _MADE:
            self.stack.append(_MADE[opcode]())
        elif opcode in _PUT:
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif opcode in _GET:
            self.stack.append(self._memo[argument])
            self._mentioned_again.add(id(self.stack[-1]))
        elif opcode not in ("PROTO", "FRAME"):
            step = getattr(self, f"op_{opcode.lower()}", None)
            if step is None:
                raise ValueError(f"it is no file of torch.save: its pickle has the code {opcode}")
            step() if argument is None else step(argument)

    def _popped(self, count: int) -> list[Any]:
        """The last items of the stack, which lose their places."""
        if count > len(self.stack):
            raise ValueError("it is damaged: its pickle takes what was not there")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _since_mark(self) -> list[Any]:
        return self._popped(len(self.stack) - self._marks.pop())

    def op_mark(self) -> None:
        self._marks.append(len(self.stack))

    # Strings of Python 2.
    def op_short_binstring(self, text: str) -> None:
        self.stack.append(text.encode("latin-1").decode("utf-8"))

    op_binstring = op_short_binstring

    def op_tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def op_tuple1(self) -> None:
        self.stack.append(tuple(self._popped(1)))

    def op_tuple2(self) -> None:
        self.stack.append(tuple(self._popped(2)))

    def op_tuple3(self) -> None:
        self.stack.append(tuple(self._popped(3)))

    def op_append(self) -> None:
        self._extend(self._popped(1))

    def op_appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        _checked(self.stack[-1], list).extend(items)

    def op_setitem(self) -> None:
        self._set(self._popped(2))

    def op_setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = _checked(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def op_additems(self) -> None:
        items = self._since_mark()
        _checked(self.stack[-1], set).update(map(_key, items))

    def op_global(self, argument: str) -> None:
        self.stack.append(_named(*argument.split(" ", 1)))

    def op_stack_global(self) -> None:
        self.stack.append(_named(*self._popped(2)))

    def op_reduce(self) -> None:
        name, arguments = self._popped(2)
        if type(name) is not _GlobalName or name not in _MAKERS:
            _refuse(name if type(name) is _GlobalName else f"a call of a {type(name).__name__}")
        self._check_copies(_checked(arguments, tuple))
        self.stack.append(_MAKERS[name](*arguments))

    def _check_copies(self, arguments: tuple[Any, ...]) -> None:
        """A call copies what it gets, which may be something large that is mentioned often."""
        known = self._mentioned_again
        for x in arguments:
            if isinstance(x, _SIZED) and (id(x) in known or id(arguments) in known):
                self._copied += len(x) * (1 if isinstance(x, str | bytes) else BYTES_OF_AN_ITEM)
        self._limit.check(self._copied, "what its pickle copies")

    def op_build(self) -> None:
        """The attributes of an object: `_metadata` of a module's state_dict, which is left out."""
        self._popped(1)
        _checked(self.stack[-1], collections.OrderedDict)

    def op_binpersid(self) -> None:
        if self._storages is None:
            raise ValueError("it is damaged: a tensor where none can be")
        storage = _storage_of(*self._popped(1))
        known = self._storages.setdefault(storage.key, storage)
        if (known.dtype, known.whole) != (storage.dtype, storage.whole):
            raise ValueError(f"it is damaged: storage {storage.key!r} has two types or sizes")
        self.stack.append(storage)


_VALUES = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_PUT = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("BINGET", "LONG_BINGET"))


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise ValueError(
            f"it is damaged: a {type(value).__name__} in the place of a {kinds[0].__name__}"
        )
    return value


def _key(key: Any) -> Any:
    """A key of a dict or an item of a set, whose hash takes little time and stack."""
    waiting = [key]
    count = 0
    while waiting:
        item = waiting.pop()
        count += 1
        if type(item) is tuple and len(item) + count <= _MOST_ITEMS_OF_A_KEY:
            waiting.extend(item)
        elif type(item) not in _PLAIN or count > _MOST_ITEMS_OF_A_KEY:
            raise ValueError(
                f"a {type(item).__name__} in a key: a key is a number, a string, `None` or a tuple "
                f"of at most {_MOST_ITEMS_OF_A_KEY} of them"
            )
    return key


def _named(module: Any, name: Any) -> Any:
    """What a global stands for: a dtype, or a name that `op_reduce` knows."""
    full = f"{_checked(module, str)}.{_checked(name, str)}".replace("__builtin__.", "builtins.", 1)
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    if module == "torch._utils" and name in _NO_ARRAYS:
        raise ValueError(f"it holds {_NO_ARRAYS[name]}")
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return _GlobalName(_STORAGE + name)
    if full not in _MAKERS and full not in _TENSOR_CLASSES:
        _refuse(full)
    return _GlobalName(full)


def _refuse(name: str) -> NoReturn:
    raise ValueError(
        f"it holds {name[:200]}, which is none of tensors, numbers, strings and containers of "
        "them, and whose loading could run code"
    )


# What the names of a pickle make here.


def _tensor(
    storage: Storage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:
    return StoredTensor(storage, storage.dtype, offset, shape, strides, metadata)


def _tensor_of_dtype(
    storage: Storage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> StoredTensor:
    return StoredTensor(storage, dtype, offset, shape, strides, metadata)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    return _checked(data, StoredTensor)


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, _: Any) -> StoredTensor:
    make = _TENSORS.get(_checked(function, _GlobalName))
    if make is None or _checked(kind, _GlobalName) not in _TENSOR_CLASSES:
        _refuse(kind)
    return make(*_checked(arguments, tuple))


def _ordered(items: Any = ()) -> Any:
    return collections.OrderedDict(
        (_key(key), value) for key, value in (_checked(item, list, tuple) for item in items)
    )


def _counter(counts: Any = None) -> Any:
    counter: collections.Counter[Any] = collections.Counter()
    counter.update({} if counts is None else _checked(counts, dict))
    return counter


def _set(items: Any = ()) -> set[Any]:
    return set(map(_key, _checked(items, list, tuple)))


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it is damaged: bytes in the encoding {encoding!r}")
    return _checked(text, str).encode(encoding)


def _bytearray(value: Any = "", encoding: str = "latin1") -> bytearray:
    return bytearray(value if isinstance(value, bytes) else _bytes(value, encoding))


def _complex(real: float, imaginary: float) -> complex:
    return complex(_checked(real, float), _checked(imaginary, float))


def _size(sizes: Any = ()) -> torch.Size:
    if len(sizes) > _MOST_DIMENSIONS or any(
        type(n) is not int for n in _checked(sizes, list, tuple)
    ):
        raise ValueError("it is damaged: a torch.Size that is none")
    return torch.Size(sizes)


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(_checked(kind, str)) if index is None else torch.device(kind, index)


_TENSORS: dict[str, Callable[..., StoredTensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
_MAKERS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _device,
}


def _storage_of(data: Any) -> Storage:
    """A storage from its persistent id: ("storage", type, key, location, size, view or None).

    A view, which old files have, is (its key, where it begins, its size).
    """
    data = _checked(data, tuple)
    if data[:1] != ("storage",) or not 5 <= len(data) <= 6:
        raise ValueError("it is damaged, or holds a pickled module: save its state_dict")
    _, kind, key, _, size, view = (*data, None)[:6]
    dtype = _STORAGES.get(_checked(kind, _GlobalName).removeprefix(_STORAGE))
    if dtype is None or type(key) is not str:
        raise ValueError("it is damaged: a storage without a type or a name")
    start, count = (0, size) if view is None else _checked(view, tuple)[1:]
    if any(type(n) is not int or n < 0 for n in (size, start, count)) or start + count > size:
        raise ValueError("it is damaged: a storage whose size or view is none")
    return Storage(key, dtype, start, count, size)
