"""safetensors files: what is read, and everything that is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save_file

from adexport_runtime import AdapterError, Code
from adexport_runtime.tensors import read_tensors, write_tensors

from .spoiled_headers import FAULTS, MANY_FAULTS, WRONG_TYPES
from .support import entry, raw_safetensors, subjects

TENSORS = {
    "x.lora_A": np.arange(6, dtype=np.float32).reshape(2, 3),
    "x.lora_B": np.ones((3, 2), np.float16),
}
VALID = save(TENSORS, {"format": "pt"})
HEADER_END = 8 + int.from_bytes(VALID[:8], "little")


def refused(path: Path, content: bytes) -> AdapterError:
    path.write_bytes(content)
    with pytest.raises(AdapterError) as caught:
        read_tensors(path)
    return caught.value


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"key": "value"})
    file = read_tensors(path)
    assert file.metadata == {"key": "value"}
    assert file.size == path.stat().st_size
    assert file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(file.tensors[name], tensor, strict=True)


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "a.safetensors"
    path.write_bytes(VALID)
    assert read_tensors(path).sha256 == hashlib.sha256(VALID).hexdigest()


@pytest.mark.parametrize(
    "cut",
    [0, 1, 7, 8, 9, HEADER_END - 1, HEADER_END, HEADER_END + 1, HEADER_END + 24, len(VALID) - 1],
    ids=[
        "empty",
        "length 1",
        "length 7",
        "no header",
        "header 1",
        "header",
        "no data",
        "data 1",
        "one",
        "last",
    ],
)
def test_truncated(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    error = refused(path, VALID[:cut])
    assert error.codes == {Code.DAMAGED}
    assert subjects(error, Code.DAMAGED) == {str(path)}


@pytest.mark.parametrize("extra", [b"\0", b"trailing", VALID])
def test_trailing_bytes(tmp_path: Path, extra: bytes) -> None:
    assert refused(tmp_path / "a.safetensors", VALID + extra).codes == {Code.DAMAGED}


def test_torch_zip(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "model.bin")
    error = refused(tmp_path / "a.safetensors", (tmp_path / "model.bin").read_bytes())
    assert error.codes == {Code.NOT_SAFETENSORS}
    assert "zip" in error.problems[0].got


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(tmp_path: Path, protocol: int) -> None:
    error = refused(tmp_path / "a.safetensors", pickle.dumps({"x": [1.0, 2.0]}, protocol))
    if protocol < 2:  # no mark at the start tells these from damage
        assert error.codes == {Code.DAMAGED}
    else:
        assert error.codes == {Code.NOT_SAFETENSORS}
        assert "pickle" in error.problems[0].got


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    refused(tmp_path / "a.safetensors", pickle.dumps(Harmful()))
    assert not (tmp_path / "ran").exists()


def test_git_lfs_pointer(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    error = refused(tmp_path / "a.safetensors", pointer)
    assert error.codes == {Code.NOT_SAFETENSORS}
    assert "Git LFS" in error.problems[0].got


def test_the_mend_of_a_git_lfs_pointer_is_git_lfs(tmp_path: Path) -> None:
    error = refused(tmp_path / "a.safetensors", b"version https://git-lfs.github.com/spec/v1\n")
    (problem,) = error.problems
    assert "torch.save" not in problem.cause
    assert "lfs" in problem.mend.lower()


@pytest.mark.parametrize("path", ["absent.safetensors", "folder"])
def test_no_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(AdapterError) as caught:
        read_tensors(tmp_path / path)
    assert subjects(caught.value, Code.ABSENT) == {str(tmp_path / path)}


@pytest.mark.parametrize(
    ("header", "culprit"),
    [
        ('{"x": %s, "x": %s}', "x"),
        ('{"__metadata__": {"name": "a", "name": "b"}, "x": %s}', "name"),
    ],
    ids=["tensor", "in the metadata"],
)
def test_duplicate_keys(tmp_path: Path, header: str, culprit: str) -> None:
    text = header.replace("%s", json.dumps(entry("F32", [1], 0, 4))).encode()
    error = refused(tmp_path / "a.safetensors", raw_safetensors(text, b"\0" * 4))
    assert subjects(error, Code.DUPLICATE_KEY) == {f"header key {culprit}"}


def test_two_metadata_objects(tmp_path: Path) -> None:
    tensor = json.dumps(entry("F32", [1], 0, 4))
    text = f'{{"__metadata__": {{}}, "__metadata__": {{}}, "x": {tensor}}}'
    error = refused(tmp_path / "a.safetensors", raw_safetensors(text.encode(), b"\0" * 4))
    assert error.codes == {Code.DAMAGED}  # the parser's own check


@pytest.mark.parametrize("shape", [[0], [0, 4], [4, 0]])
def test_empty_tensors_are_all_named(tmp_path: Path, shape: list[int]) -> None:
    header = {"a": entry("F32", shape, 0, 0), "b": entry("F32", shape, 0, 0), "c": entry("F32", [1], 0, 4)}
    error = refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * 4))
    assert error.codes == {Code.EMPTY_TENSOR}
    assert subjects(error, Code.EMPTY_TENSOR) == {"a", "b"}


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"format": "pt"}}])
def test_no_tensors(tmp_path: Path, header: dict[str, object]) -> None:
    assert refused(tmp_path / "a.safetensors", raw_safetensors(header)).codes == {Code.EMPTY_TENSOR}


@pytest.mark.parametrize("name", ["", "a/b", "../../x", "/etc/passwd", "a\\b", "a\0b", "a\nb", "\x1b[31m"])
def test_names_that_are_no_module_paths(tmp_path: Path, name: str) -> None:
    header = {name: entry("F32", [1], 0, 4), "good": entry("F32", [1], 4, 8)}
    error = refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * 8))
    assert error.codes == {Code.BAD_NAME}
    assert subjects(error, Code.BAD_NAME) == {f"tensor {name!r}"}


@pytest.mark.parametrize(
    ("dtype", "size"), [("U16", 2), ("U32", 4), ("U64", 8), ("F8_E8M0", 1), ("C64", 8)]
)
def test_dtypes_that_no_adapter_has(tmp_path: Path, dtype: str, size: int) -> None:
    header = {"a": entry(dtype, [1], 0, size), "b": entry("F32", [1], size, size + 4)}
    error = refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * (size + 4)))
    assert error.codes == {Code.WRONG_DTYPE}
    assert subjects(error, Code.WRONG_DTYPE) == {"a"}


def test_a_dtype_that_nobody_has(tmp_path: Path) -> None:
    header = {"a": entry("F99", [1], 0, 4)}
    assert refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * 4)).codes == {Code.DAMAGED}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [2], 0, 4)},
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)},
        {"a": entry("F32", [1], 4, 8)},
        {"a": entry("F32", [-1], 0, 4)},
        {"a": entry("F32", [2**62, 2**62], 0, 4)},
        {"__metadata__": {"rank": 4}, "a": entry("F32", [1], 0, 4)},
        {"a": {"dtype": "F32", "shape": [1]}},
        ["a"],
        b"\xff\xfe{}",
        b"{" * 5000,
    ],
    ids=[
        "size",
        "overlap",
        "hole",
        "negative",
        "overflow",
        "metadata",
        "no offsets",
        "list",
        "utf-16",
        "deep",
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object) -> None:
    assert refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * 8)).codes == {Code.DAMAGED}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_headers_with_values_of_other_types(tmp_path: Path, name: str) -> None:
    error = refused(tmp_path / "a.safetensors", WRONG_TYPES[name])
    assert subjects(error, Code.DAMAGED) == {str(tmp_path / "a.safetensors")}
    assert error.codes == {Code.DAMAGED}


def test_all_faults_of_a_header_are_named_together(tmp_path: Path) -> None:
    message = str(refused(tmp_path / "a.safetensors", MANY_FAULTS))
    assert all(fault in message for fault in FAULTS), message


def test_all_bad_entries_are_named_together(tmp_path: Path) -> None:
    header = {
        "a/b": entry("F32", [1], 0, 4),
        "empty": entry("F32", [0], 4, 4),
        "odd": entry("U32", [1], 4, 8),
    }
    error = refused(tmp_path / "a.safetensors", raw_safetensors(header, b"\0" * 8))
    assert error.codes == {Code.BAD_NAME, Code.EMPTY_TENSOR, Code.WRONG_DTYPE}
    assert len(error.problems) == 3


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (torch.float16, torch.int16),
        (torch.bfloat16, torch.int16),
        (torch.float8_e4m3fn, torch.int8),
        (torch.float8_e5m2, torch.int8),
    ],
    ids=str,
)
def test_every_value_decodes_as_torch_does(tmp_path: Path, dtype: torch.dtype, bits: torch.dtype) -> None:
    info = torch.iinfo(bits)
    every = torch.arange(info.min, info.max + 1, dtype=torch.int32).to(bits).view(dtype)
    save_file({"x": every}, tmp_path / "a.safetensors")
    read = read_tensors(tmp_path / "a.safetensors").tensors["x"]
    np.testing.assert_array_equal(read.astype(np.float32), every.float().numpy())


def test_doubles_keep_all_digits(tmp_path: Path) -> None:
    values = torch.randn(5, 7, dtype=torch.float64)
    save_file({"x": values}, tmp_path / "a.safetensors")
    read = read_tensors(tmp_path / "a.safetensors").tensors["x"]
    np.testing.assert_array_equal(read, values.numpy(), strict=True)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.safetensors"


def check_any(path: Path, content: bytes) -> None:
    """Whatever the bytes are: a sound file, or an AdapterError."""
    path.write_bytes(content)
    try:
        file = read_tensors(path)
    except AdapterError as error:
        assert error.problems
        return
    assert file.tensors
    for name, tensor in file.tensors.items():
        assert name
        assert "/" not in name
        assert tensor.size > 0
        assert tensor.nbytes <= len(content)


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, len(VALID))),
)
def test_mutated_bytes(scratch: Path, edits: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    check_any(scratch, bytes(content[:cut]))


#: a header's own words in any order parse more often than random bytes do
_WORDS = st.sampled_from(
    ['{', '}', '[', ']', ',', ':', '"a"', '"__metadata__"', '"dtype"', '"F32"', '"BOOL"', '"shape"',
     '"data_offsets"', '0', '1', '4', '1e3', '-1', 'null', '"\\ud800"', '"\\u0000"', ' ', '"F4"', '2']
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(_WORDS, max_size=20),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "F6_E2M3", "U64"]),
    data=st.binary(max_size=64),
)
def test_made_up_headers(
    scratch: Path, words: list[str], shape: list[int], dtype: str, data: bytes
) -> None:
    check_any(scratch, raw_safetensors("".join(words).encode(), data))
    check_any(scratch, raw_safetensors({"a": entry(dtype, shape, 0, len(data))}, data))
    check_any(scratch, raw_safetensors({"".join(words): entry(dtype, shape, 0, len(data))}, data))


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(VALID)
    return path


def check_untouched(old_file: Path) -> None:
    assert old_file.read_bytes() == VALID
    assert [path.name for path in old_file.parent.iterdir()] == [old_file.name]


def test_a_failed_write_leaves_nothing(old_file: Path) -> None:
    with pytest.raises(TypeError):
        write_tensors(old_file, TENSORS, {"rank": 4})  # type: ignore[dict-item]
    check_untouched(old_file)


def test_a_full_disk_leaves_nothing(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(old_file, {"new": np.ones(3, np.float32)}, {})
    check_untouched(old_file)


def test_strided_arrays_are_written_whole(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(tmp_path / "a.safetensors", {"t": matrix.T, "s": matrix[:, ::2]}, {})
    file = read_tensors(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(file.tensors["t"], matrix.T)
    np.testing.assert_array_equal(file.tensors["s"], matrix[:, ::2])
