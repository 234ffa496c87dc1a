"""Where torch's files keep their parts: the zip archives of `torch.save`, and its older format.

Both give the unpickled value at once, and the bytes of a storage when they are asked for.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any, BinaryIO, Protocol

from functorch_optim.interop.torch.pickles import Storage, read_pickle
from functorch_optim.interop.untrusted import ByteLimit

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# What Python's objects take at most for a byte of a pickle that makes them: an empty dict for one.
_BYTES_OF_A_CODE = 64


class Archive(Protocol):
    """A file of torch that is open.

    Attributes:
      value: what was saved, with a `StoredTensor` for every tensor.
      storages: what the tensors are made of, by key.
      big_endian: the order of the bytes in its storages.
    """

    value: Any
    storages: dict[str, Storage]
    big_endian: bool

    def data(self, key: str) -> bytes:
        """The memory of this name."""


def opened(file: BinaryIO, limit: ByteLimit) -> Archive:
    """A file of either format.

    Raises:
      ValueError: it is neither, or its value is refused. Damage may raise any other error.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        return ZipArchive(file, limit)
    if start[:1] != b"\x80":
        raise ValueError("it is no file of torch.save, or cut off at its beginning")
    return OldArchive(file, limit)


class ZipArchive:
    """A zip archive: `data.pkl`, and a record `data/KEY` for each storage, in one folder."""

    def __init__(self, file: BinaryIO, limit: ByteLimit):
        self._zip = zipfile.ZipFile(file)
        self._limit = limit
        self._folder = self._zip.namelist()[0].split("/", 1)[0]
        self._names = set(self._zip.namelist())
        if self._has("constants.pkl"):
            raise ValueError("it is a TorchScript archive, which is a program: save a state_dict")
        if not self._has("data.pkl"):
            raise ValueError("it is a zip archive, but not of torch.save: data.pkl is missing")
        self.big_endian = self._has("byteorder") and self._record("byteorder") == b"big"
        size = self._zip.getinfo(self._path("data.pkl")).file_size
        if size > limit.file_size:
            limit.check(size * _BYTES_OF_A_CODE, "what its pickle could make")
        self.storages: dict[str, Storage] = {}
        self.value = read_pickle(io.BytesIO(self._record("data.pkl")), limit, self.storages)
        for key, storage in self.storages.items():
            if not self._has(f"data/{key}"):
                raise ValueError(f"it is damaged: storage {key!r} is missing")
            found = self._zip.getinfo(self._path(f"data/{key}")).file_size
            if found != storage.nbytes:
                raise ValueError(
                    f"it is damaged: storage {key!r} has {found} bytes, its tensors tell of "
                    f"{storage.nbytes}"
                )

    def data(self, key: str) -> bytes:
        """The memory of this name."""
        return self._record(f"data/{key}")

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _has(self, name: str) -> bool:
        return self._path(name) in self._names

    def _record(self, name: str) -> bytes:
        info = self._zip.getinfo(self._path(name))
        self._limit.check(info.file_size, f"its record {name!r}")
        # Other methods unpack more than is asked for.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its record {name!r} is compressed by a method that torch has not")
        if info.CRC == 0:  # torch was told to compute none
            del info.CRC
        with self._zip.open(info) as record:
            data = record.read(info.file_size)
        if len(data) != info.file_size:
            raise ValueError(f"it is damaged: its record {name!r} is cut")
        return data


class OldArchive:
    """What torch saved before 1.6: pickles one behind the other, then the storages."""

    big_endian = False

    def __init__(self, file: BinaryIO, limit: ByteLimit):
        self._file = file
        if read_pickle(file, limit) != _MAGIC:
            raise ValueError("it is no file of torch.save")
        if read_pickle(file, limit) != _VERSION:
            raise ValueError("it has another version of the old format")
        read_pickle(file, limit)  # about the machine that wrote it
        self.storages: dict[str, Storage] = {}
        self.value = read_pickle(file, limit, self.storages)
        self._starts = self._found(read_pickle(file, limit), limit.file_size)

    def data(self, key: str) -> bytes:
        """The memory of this name."""
        self._file.seek(self._starts[key])
        return self._file.read(self.storages[key].nbytes)

    def _found(self, keys: Any, file_size: int) -> dict[str, int]:
        """Where in the file each storage begins: in this order, each behind its size."""
        if not isinstance(keys, list) or any(type(key) is not str for key in keys):
            raise ValueError("it is damaged: its list of storages is none")
        if sorted(keys) != sorted(self.storages):
            raise ValueError("it is damaged: it lists other storages than its tensors need")
        starts = {}
        start = self._file.tell()
        for key in keys:
            storage = self.storages[key]
            self._file.seek(start)
            size = int.from_bytes(self._file.read(8), "little")
            starts[key] = start + 8
            start += 8 + storage.nbytes
            if size != storage.whole or start > file_size:
                raise ValueError(f"it is damaged: storage {key!r} is cut, or has another size")
        return starts
