"""Files made to harm: a ValueError refuses them, in little memory, and nothing is executed."""

from __future__ import annotations

import collections
import importlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.files import (
    integer,
    little_memory,
    numbers,
    pickle_of,
    tensor_code,
    text,
    zip_of,
)
from tests.support.stateful import exactly

torch = pytest.importorskip("torch")
interop = importlib.import_module("functorch_optim.interop.torch")

GIANT = 10**10
ONE = b"\x00\x00\x80?"  # a float32


def refused(path: Path, words: str, **limits: Any) -> None:
    """A file is not loaded, for this reason, and takes no memory."""
    with little_memory(), pytest.raises(ValueError) as error:
        interop.load(path, **limits)
    assert str(error.value).startswith(f"{path} was not loaded: ")
    assert words in str(error.value)


def saved(path: Path, value: Any, legacy: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    assert path.stat().st_size < 100_000
    return path


def written(path: Path, code: bytes, *storages: bytes) -> Path:
    """A zip archive with this code for its value, and these storages."""
    records = {"data.pkl": pickle_of(code), "byteorder": b"little"}
    path.write_bytes(zip_of(records | {f"data/{i}": x for i, x in enumerate(storages)}))
    return path


def old_header() -> bytes:
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    return data[: data.rindex(b"\x80\x02}")]  # before the pickle of the value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hostile.pt"


# Memory.


@pytest.mark.parametrize("legacy", [False, True])
def test_an_expanded_tensor_is_refused_and_may_be_asked_for(path: Path, legacy: bool) -> None:
    saved(path, {"x": torch.ones(1).expand(400_000_000)}, legacy)
    refused(path, "what it holds would take 1.5 GiB of memory, but the limit for this file of ")
    refused(path, "is 64.0 MiB. If you trust it, give more as `max_bytes`")
    saved(path, {"x": torch.ones(3, 1).expand(3, 8_000_000)}, legacy)
    refused(path, "91.6 MiB")
    assert interop.load(path, max_bytes=10**8)["x"].shape == (3, 8_000_000)
    refused(path, "the limit for this file", max_bytes=10**6)


@pytest.mark.parametrize("legacy", [False, True])
def test_one_tensor_many_times_is_refused(path: Path, legacy: bool) -> None:
    x = torch.ones(20_000)
    torch.save([x] * 2000, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "154.5 MiB")
    torch.save([x[i % 2 :] for i in range(2000)], path, _use_new_zipfile_serialization=not legacy)
    refused(path, "of memory")


@pytest.mark.parametrize("kind", [list, tuple, dict, collections.OrderedDict])
@pytest.mark.parametrize("shape", [(10, 6), (2, 90), (1000, 3)])
def test_lists_of_the_same_lists_are_refused(path: Path, kind: Any, shape: Any) -> None:
    width, levels = shape
    value: Any = 1
    for _ in range(levels):
        items = [value] * width
        value = kind(enumerate(items)) if issubclass(kind, dict) else kind(items)
    refused(saved(path, value), "what it holds would take")


def test_what_a_file_holds_itself_is_no_repetition(path: Path) -> None:
    value = [list(range(i, i + 30)) for i in range(20)]
    torch.save(value, path)
    assert interop.load(path, max_bytes=10_000) == value
    torch.save(value + value, path)
    refused(path, "what it holds would take", max_bytes=10_000)


def test_tied_weights_of_a_large_file_are_loaded(path: Path) -> None:
    x = torch.ones(6_000_000)
    torch.save({"a": x, "b": x, "c": x[1:]}, path)
    assert {k: v.shape for k, v in interop.load(path).items()} == {
        "a": (6_000_000,),
        "b": (6_000_000,),
        "c": (5_999_999,),
    }


def test_a_large_file_may_take_four_times_its_size(path: Path) -> None:
    x = torch.zeros(5_000_000)
    torch.save([x] * 3, path)
    assert len(interop.load(path)) == 3
    torch.save([x] * 5, path)
    refused(path, "the limit for this file of 19.1 MiB is 76.3 MiB")


@pytest.mark.parametrize(
    ("shape", "strides", "words"),
    [
        ((GIANT,), (1,), "reaches beyond its storage of 1 numbers"),
        ((GIANT,), (0,), "37.3 GiB"),
        ((2**31, 2**31, 2**31), (0, 0, 0), "more than an EiB"),
        ((2**62,) * 60, (0,) * 60, "more than an EiB"),
        ((1, 2), (0, 1), "reaches beyond its storage"),
        ((2,), (-1,), "whose offset, shape or stride is none"),
        ((-1,), (1,), "whose offset, shape or stride is none"),
        ((1, 1), (1,), "whose shape and stride do not fit"),
        ((1,) * 80, (1,) * 80, "whose shape and stride do not fit"),
        ((0, 2**62), (1, 1), ""),
        ((2**40, 0, 2**40), (1, 1, 1), ""),
        ((0, 2**70), (0, 0), ""),
    ],
)
def test_shapes_that_the_file_cannot_fill_are_refused(
    path: Path, shape: Any, strides: Any, words: str
) -> None:
    refused(written(path, tensor_code(shape, strides, 1), ONE), words)


def test_tensors_outside_their_storage_are_refused(path: Path) -> None:
    refused(written(path, tensor_code((1,), (1,), 1, offset=1), ONE), "beyond its storage")
    refused(written(path, tensor_code((1,), (1,), 1, offset=-1), ONE), "whose offset")
    refused(written(path, tensor_code((1,), (1,), GIANT), ONE), "storage '0' has 4 bytes")
    refused(written(path, tensor_code((1,), (1,), -1), ONE), "whose size or view is none")
    refused(written(path, tensor_code((1,), (1,), 1)), "storage '0' is missing")
    refused(written(path, tensor_code((1,), (1,), 1, key="../0"), ONE), "'../0' is missing")
    assert interop.load(written(path, tensor_code((), (), 1), ONE)) == 1


@pytest.mark.parametrize(
    "call",
    [
        b"ctorch\nTensor\n(" + integer(GIANT) + b"tR",
        b"ctorch\nFloatStorage\n(" + integer(GIANT) + b"tR",
        b"ctorch.storage\nUntypedStorage\n(" + integer(GIANT) + b"tR",
        b"c__builtin__\nbytearray\n(" + integer(GIANT) + b"tR",
        b"c__builtin__\nbytes\n(" + integer(GIANT) + b"tR",
        b"cbuiltins\nrange\n(" + integer(GIANT) + b"tR",
        b"ctorch\nSize\n(" + text("x") + b"tR",
        b"ccollections\nCounter\n(" + text("x" * 100) + b"tR",
        b"c_codecs\nencode\n(" + text("x") + text("zip") + b"tR",
        b"cos\nsystem\n(" + text("true") + b"tR",
        b"cposix\nsystem\n" + text("true") + b"\x85R",
        b"c__builtin__\neval\n" + text("1") + b"\x85R",
        b"ctorch\nload\n" + text("x") + b"\x85R",
        b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n",
        text("os") + text("system") + b"\x93",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"(cos\nsystem\n" + text("true") + b"o",
        b"(" + text("true") + b"ios\nsystem\n",
        b"ctorch\nTensor\n)\x81",
        b"\x82\x01",  # an extension
        b"P0\n",  # a persistent id that is text
    ],
)
def test_calls_that_take_memory_or_run_code_are_refused(path: Path, call: bytes) -> None:
    refused(written(path, call), "")
    path.write_bytes(old_header() + pickle_of(call) + pickle_of(b"]"))
    refused(path, "")


@pytest.mark.parametrize(
    ("large", "call"),
    [
        (text("x" * 10**5), b"c__builtin__\nbytearray\nh\x00" + text("latin1") + b"\x86R"),
        (text("x" * 10**5) + b"\x85", b"c__builtin__\nbytearray\nh\x00R"),
        (text("x" * 10**5), b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"),
        (b"](" + b"K\x01" * 10**5 + b"e", b"c__builtin__\nset\nh\x00\x85R"),
        (b"}(" + b"K\x01K\x02" * 10**5 + b"u", b"ccollections\nOrderedDict\nh\x00\x85R"),
        (b"(" + b"K\x01" * 10**5 + b"t", b"ctorch\nSize\nh\x00\x85R"),
    ],
)
def test_copies_of_the_same_are_limited(path: Path, large: bytes, call: bytes) -> None:
    refused(written(path, large + b"q\x00](" + call * 20_000 + b"e"), "")


def test_a_number_in_the_memo_takes_no_memory(path: Path) -> None:
    code = b"]r\xff\xff\xff\x7f"  # remembers an empty list as the last of 2**31
    with little_memory():
        assert interop.load(written(path, code)) == []


@pytest.mark.parametrize("legacy", [False, True])
def test_storages_that_the_old_format_lacks_are_refused(path: Path, legacy: bool) -> None:
    view = tensor_code((GIANT,), (1,), GIANT).replace(b"tQ", b"NtQ")
    keys = pickle_of(b"](" + text("0") + b"e")
    for data in (b"", struct.pack("<q", GIANT), struct.pack("<q", GIANT) + ONE):
        path.write_bytes(old_header() + pickle_of(view) + keys + data)
        refused(path, "is cut, or has another size" if legacy else "")
    path.write_bytes(old_header() + pickle_of(view) + pickle_of(b"]"))
    refused(path, "lists other storages")


def test_a_zip_bomb_is_refused(path: Path) -> None:
    size = 20_000_000
    records = {"data.pkl": pickle_of(tensor_code((size,), (1,), size)), "data/0": bytes(4 * size)}
    path.write_bytes(zip_of(records, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 500_000
    refused(path, "what it holds would take 76.3 MiB")
    records["data.pkl"] = pickle_of(tensor_code((1,), (1,), size))
    path.write_bytes(zip_of(records, zipfile.ZIP_DEFLATED))
    refused(path, "its storages would take 76.3 MiB")
    assert interop.load(path, max_bytes=10**8).shape == (1,)


@pytest.mark.parametrize(
    ("record", "told"), [("data.pkl", None), ("byteorder", None), ("data.pkl", 10), ("data/0", 4)]
)
def test_a_compressed_record_takes_no_more_than_it_may(
    path: Path, record: str, told: int | None
) -> None:
    """Also where the directory tells a size that it has not."""
    size = 70_000_000
    records = {"data.pkl": pickle_of(tensor_code((1,), (1,), 1)), "data/0": ONE}
    data = zip_of(records | {record: b"}" * size}, zipfile.ZIP_DEFLATED)
    if told is not None:
        data = data.replace(struct.pack("<L", size), struct.pack("<L", told))
    path.write_bytes(data)
    refused(path, "" if told else "would take")


def test_a_small_compressed_file_is_loaded(path: Path) -> None:
    records = {"data.pkl": pickle_of(tensor_code((1000,), (1,), 1000)), "data/0": ONE * 1000}
    path.write_bytes(zip_of(records, zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(interop.load(path), np.ones(1000))


def test_a_compression_that_torch_has_not_is_refused(path: Path) -> None:
    records = {"data.pkl": pickle_of(b"]")}
    for method in zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA:
        path.write_bytes(zip_of(records, method))
        refused(path, "is compressed by a method that torch has not")


@pytest.mark.parametrize("bad", [True, 1.5, "1", -1])
def test_a_limit_is_a_number_of_bytes(path: Path, bad: Any) -> None:
    saved(path, {"x": 1})
    with pytest.raises((TypeError, ValueError), match="max_bytes is "):
        interop.load(path, max_bytes=bad)


# Depth.

DEEP = 20_000


@pytest.mark.parametrize(
    "code",
    [
        b"]" * DEEP + b"a" * (DEEP - 1),
        b")" + b"\x85" * DEEP,
        b"}" + b"K\x00}" * DEEP + b"s" * DEEP,
        b"]q\x00h\x00a",  # a list that contains itself
        b"}q\x00K\x01h\x00s",
        b"]q\x00]q\x01h\x00ah\x01a",
    ],
)
def test_what_is_nested_without_end_is_refused(path: Path, code: bytes) -> None:
    refused(written(path, code), "nested deeper than 100 levels, or contains itself")


def test_a_shared_list_counts_its_levels_wherever_it_is(path: Path) -> None:
    inner = b"]" * 60 + b"a" * 59 + b"q\x00"  # 60 levels, seen first at the top
    outer = b"]" * 60 + b"h\x00a" + b"a" * 59
    refused(written(path, b"](" + inner + outer + b"e"), "nested deeper")


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * DEEP,
        b")" + b"q\x00h\x00\x86" * 90,  # 2**90 items to hash
        numbers(*range(200)),
        b"]",
        b"}",
        b"]\x85",
        b"ctorch\nTensor\n",
    ],
)
def test_keys_whose_hash_takes_long_or_fails_are_refused(path: Path, key: bytes) -> None:
    refused(written(path, b"}" + key + b"K\x01s"), "a key is a number")
    refused(written(path, b"c__builtin__\nset\n]" + key + b"a\x85R"), "a key is a number")
    refused(written(path, b"}(" + key + b"K\x01u"), "a key is a number")


def test_keys_that_are_tuples_are_loaded(path: Path) -> None:
    value = {(1, ("x", None)): 1, 2.5: 2, b"x": 3, True: 4, None: 5}
    assert interop.load(saved(path, value)) == value


# Tensors that are no arrays, and others that are.


def no_arrays() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse": torch.eye(3).to_sparse(),
            "sparse ": torch.eye(3).to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "meta": torch.empty(10**6, 10**6, device="meta"),
        }


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_are_no_arrays_are_refused_in_words(path: Path, legacy: bool) -> None:
    for name, tensor in no_arrays().items():
        refused(saved(path, {"x": tensor}, legacy), f"it holds a {name.strip()} tensor")


def test_tensors_that_are_no_arrays_are_not_saved_nor_converted(path: Path) -> None:
    for name, tensor in no_arrays().items():
        for call in (
            lambda x: interop.save(path, {"a": [x]}),
            lambda x: interop.from_torch({"a": [x]}),
            interop.as_array,
        ):
            with pytest.raises(TypeError, match=f"{name.strip()}.* tensor .*is no array"):
                call(tensor)
    with pytest.raises(TypeError, match=r"the state_dict\['a'\]\[0\]: a meta tensor"):
        interop.save(path, {"a": [torch.empty(2, device="meta")]})
    assert not path.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex32, torch.quint8])
@pytest.mark.filterwarnings("ignore")
def test_a_dtype_that_no_array_has_is_refused(path: Path, legacy: bool, dtype: Any) -> None:
    x = torch.zeros(2, dtype=dtype) if dtype.is_complex else torch.zeros(2).untyped_storage()
    refused(saved(path, {"x": x}, legacy), "")


class Named(torch.Tensor):
    pass


def test_a_tensor_of_a_class_of_ones_own_is_refused(path: Path) -> None:
    refused(saved(path, torch.ones(2).as_subclass(Named)), "Named, which is none of tensors")


def views() -> Any:
    base = torch.arange(24.0).reshape(4, 6)
    z = torch.tensor([1 + 2j, 3 - 1j])
    marked = torch.ones(2)
    marked.note = "kept by torch"
    return {
        "whole": base,
        "transposed": base.T,
        "columns": base[:, 1::2],
        "rows": base[2:],
        "expanded": base[0, :1].expand(5),
        "scalar": base[1, 1],
        "empty": base[:0],
        "conj": z.conj(),
        "neg": z.clone().conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(2, 1)),
        "marked": marked,
        "wide": torch.arange(3),
        "float8": torch.ones(3).to(torch.float8_e5m2)[1:],
        "uint16": torch.arange(5).to(torch.uint16)[2:],
        "bfloat16": torch.arange(6).bfloat16()[::2],
        "bool": torch.tensor([True, False]),
    }


def others() -> Any:
    return {
        "bytes": [b"", b"ab\xff", bytearray(), bytearray(b"x")],
        "set": {1, "x"},
        "complex": 1 - 2j,
        "size": torch.Size([2, 3]),
        "types": [torch.float32, torch.float8_e5m2, torch.device("cpu"), torch.device("cuda", 1)],
        "integers": [0, -1, 255, 2**31, -(2**63), 2**3000],
        "text": ["", "\u00e4\U0001f600", "\ud800", "x" * 300],
        "floats": [0.1, float("inf")],
        "counter": collections.Counter({3: 2}),
        "ordered": collections.OrderedDict(b=1, a=()),
        "no": [None, True, False],
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_everything_that_can_be_saved_is_loaded(path: Path, legacy: bool, protocol: int) -> None:
    value = {"views": views(), "others": others(), "model": torch.nn.BatchNorm1d(2).state_dict()}
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert exactly(interop.load(path)) == exactly(interop.from_torch(value))


def test_a_file_of_a_big_endian_machine_is_loaded(path: Path) -> None:
    value = {k: x for k, x in views().items() if k not in ("float8", "uint16")}
    torch.save(value, path)
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    records["byteorder"] = b"big"
    storages = {x.untyped_storage()._cdata: x for x in value.values()}
    for i, x in enumerate(storages.values()):
        size = x.element_size() // (2 if x.is_complex() else 1)
        data = np.frombuffer(records[f"data/{i}"], f"u{size}")
        records[f"data/{i}"] = data.byteswap().tobytes()
    path.write_bytes(zip_of(records))
    assert exactly(interop.load(path)) == exactly(interop.from_torch(value))


def test_a_file_without_checksums_is_loaded(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(interop.load(path)["x"], np.ones(3))


def test_a_changed_number_is_found_by_its_checksum(path: Path) -> None:
    saved(path, {"x": torch.full((100,), 3.0)})
    data = bytearray(path.read_bytes())
    data[data.index(b"\x00\x00\x40\x40" * 10)] ^= 1
    path.write_bytes(data)
    refused(path, "Bad CRC-32")


def test_views_of_storages_in_old_files_are_loaded(path: Path) -> None:
    """As releases before 1.0 wrote them: a storage, and where in it the tensor's begins."""
    view = b"(" + text("v") + integer(1) + integer(2) + b"t"
    code = tensor_code((2,), (1,), 4).replace(b"tQ", view + b"tQ")
    data = np.arange(4, dtype="<f4").tobytes()
    keys = pickle_of(b"](" + text("0") + b"e")
    path.write_bytes(old_header() + pickle_of(code) + keys + struct.pack("<q", 4) + data)
    np.testing.assert_array_equal(interop.load(path), [1.0, 2.0])
    code = code.replace(integer(1) + integer(2) + b"t", integer(3) + integer(2) + b"t")
    path.write_bytes(old_header() + pickle_of(code) + keys + struct.pack("<q", 4) + data)
    refused(path, "whose size or view is none")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x80",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        zip_of({}),
        zip_of({"data": b"x"}),
        zip_of({"data.pkl": b""}),
        zip_of({"data.pkl": b"\x80\x02."}),
        zip_of({"data.pkl": b"\x80\x02]", "constants.pkl": b""}),
        zip_of({"data.pkl": b"h\x00."}),
        zip_of({"data.pkl": b"t."}),
        zip_of({"data.pkl": b"N\x86."}),
        zip_of({"data.pkl": b"NNs."}),
        zip_of({"data.pkl": b"NNb."}),
        zip_of({"data.pkl": b"(((e."}),
        pickle_of(b"K\x01") * 5,
        pickle_of(integer(0x1950A86A20F9469CFC6C)) + pickle_of(b"K\x01"),
    ],
)
def test_what_is_no_file_of_torch_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    refused(path, "")


# safetensors.

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors")
    return tmp_path / "hostile.safetensors"


def tampered(path: Path, change: Change, value: Any = None) -> None:
    """A file of `save_state` whose header is changed."""
    safe = importlib.import_module("functorch_optim.interop.safetensors")
    safe.save_state(path, {"x": jnp.ones(2)} if value is None else value)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    head = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + length :])


def with_structure(structure: str) -> Change:
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"]["functorch_optim.structure"] = structure

    return change


X = '{"array": ["x", "float32"]}'
HEADERS: dict[str, Change] = {
    "no metadata": lambda header: header.pop("__metadata__") and None,
    "metadata is null": lambda header: header.update(__metadata__=None),
    "metadata is a list": lambda header: header.update(__metadata__=[]),
    "metadata of numbers": lambda header: header["__metadata__"].update(x=1),
    "a list": lambda header: [1],
    "a huge shape": lambda header: header["x"].update(shape=[GIANT, GIANT]),
    "a huge shape of nothing": lambda header: header["x"].update(
        shape=[0, 2**62], data_offsets=[0, 0]
    ),
    "a negative shape": lambda header: header["x"].update(shape=[-1, -2]),
    "a dtype that is none": lambda header: header["x"].update(dtype="F99"),
    "no dtype": lambda header: header["x"].pop("dtype") and None,
    "offsets beyond": lambda header: header["x"].update(data_offsets=[0, GIANT]),
    "offsets turned": lambda header: header["x"].update(data_offsets=[8, 0]),
}
STRUCTURES = {
    "deep": "[" * DEEP + "]" * DEEP,
    "rather deep": "[" * 150 + "1" + "]" * 150,
    "deep tuples": '{"tuple": [' * 150 + "1" + "]}" * 150,
    "a tensor mentioned often": "[" + ", ".join([X] * 1000) + "]",
    "an object": '{"array": ["x", "object"]}',
    "another notation": '{"array": ["x", "f4"]}',
    "many fields": '{"array": ["x", "f4,f4"]}',
    "dates": '{"array": ["x", "M8[s]"]}',
    "a dtype that is a number": '{"array": ["x", 4]}',
    "a dtype that is a list": '{"array": ["x", [["a", "f4"]]]}',
    "too wide": '{"array": ["x", "complex128"]}',
    "a scalar that is none": '{"scalar": ["x", "float32"]}',
    "a name that is a list": '{"array": [["x"], "float32"]}',
    "a key of nothing": '{"key": ["threefry2x32", ' + X + "]}",
    "a key of what": '{"key": ["what", ' + X + "]}",
    "a key of a key": '{"key": ["threefry2x32", {"key": ["rbg", ' + X + "]}]}",
    "two kinds": '{"array": ["x", "float32"], "tuple": []}',
    "no kind": "{}",
    "numbers": '{"float": []}',
    "words": '{"float": "much"}',
    "a long number": "1" * 5000,
    "complex": '{"complex": [{"complex": [1, 2]}, 1]}',
    "one number": '{"complex": [1]}',
    "a dict of numbers": '{"dict": [1]}',
    "a dict of lists": '{"dict": [[[], 1]]}',
    "a counter": '{"Counter": 5}',
    "text": '"',
    "no class": '{"namedtuple": ["A", [["x", 1]]]}',
    "fields": '{"namedtuple": 1}',
    "a pytree": '{"pytree": ["A"]}',
}


def refused_state(path: Path, words: str, **kwargs: Any) -> None:
    safe = importlib.import_module("functorch_optim.interop.safetensors")
    with little_memory(), pytest.raises(ValueError) as error:
        safe.load_state(path, **kwargs)
    assert str(path) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none_is_refused(other: Path, name: str) -> None:
    tampered(other, HEADERS[name])
    refused_state(other, "")


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_that_is_none_is_refused(other: Path, name: str) -> None:
    tampered(other, with_structure(STRUCTURES[name]))
    refused_state(other, "")
    refused_state(other, "", like={"x": jnp.ones(2)})


def test_a_tensor_that_is_mentioned_twice_is_refused(other: Path) -> None:
    tampered(other, with_structure(f"[{X}, {X}]"))
    refused_state(other, "tensor 'x' is missing, or mentioned twice")


def test_a_header_longer_than_the_file_is_refused(other: Path) -> None:
    for length in 10, 10**6, 10**9, 2**63, 2**64 - 1:
        other.write_bytes(struct.pack("<Q", length) + b"{}")
        refused_state(other, "is damaged, or no safetensors file")


def test_a_file_of_safetensors_may_be_as_large_as_is_said(other: Path) -> None:
    safe = importlib.import_module("functorch_optim.interop.safetensors")
    safe.save_state(other, {"x": jnp.ones(1000)})
    assert safe.load_state(other, max_bytes=10_000)["x"].shape == (1000,)
    refused_state(other, "more than max_bytes=4000", max_bytes=4000)
    with pytest.raises(TypeError, match="max_bytes is an int or None"):
        safe.load_state(other, max_bytes=1.5)


def test_arrays_are_on_the_default_device(path: Path) -> None:
    x = interop.load(saved(path, torch.ones(2)))
    assert x.sharding.device_set == {jax.devices()[0]}
