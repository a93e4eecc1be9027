"""The manifest: read back as written, and refused whole when anything in it is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adexport_runtime import BundleError, Code, Manifest
from adexport_runtime.manifest import parse_manifest

from .spoiled_manifests import (
    BAD_QUANTIZATIONS,
    INCONSISTENT,
    INCONSISTENT_BANKS,
    INCONSISTENT_GENERATION,
    INCONSISTENT_SLOTS,
    JSON,
    LAX,
    ONE_WRONG,
    QUANTIZATION,
    Data,
    make_generating,
    narrow,
    put,
    whole_manifest,
)
from .support import subjects


@pytest.fixture(scope="module")
def text(tiny_bundle: Path) -> str:
    return (tiny_bundle / "manifest.json").read_text()


@pytest.fixture
def data(text: str) -> Data:
    return json.loads(text)


def refused(given: Any) -> BundleError:
    """The error for a manifest: its text, its bytes, or its data."""
    content = given if isinstance(given, str | bytes) else json.dumps(given)
    with pytest.raises(BundleError) as caught:
        parse_manifest(content, "here/manifest.json")
    assert "here/manifest.json" in str(caught.value)
    return caught.value


def test_round_trip(text: str) -> None:
    manifest = parse_manifest(text)
    assert manifest.to_json() == text
    assert parse_manifest(manifest.to_json().encode()) == manifest


def test_round_trip_without_slots(plain_bundle: Path) -> None:
    text = (plain_bundle / "manifest.json").read_text()
    manifest = parse_manifest(text)
    assert (manifest.sites, manifest.slots, manifest.adapter_ids) == ((), (), None)
    assert manifest.to_json() == text


def test_what_the_manifest_says(text: str) -> None:
    manifest = parse_manifest(text)
    assert len(manifest.sites) == 2 * 6
    assert len(manifest.slot_inputs) == 2 * len(manifest.sites) + 1  # and the guard
    site = manifest.site_by_path["encoder.layer.1.intermediate.dense"]
    assert (site.in_features, site.out_features) == (32, 48)
    assert manifest.limits.max_rank == 16


def test_frozen(text: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_manifest(text).opset = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ONE_WRONG)
def test_one_thing_wrong(data: Data, name: str) -> None:
    edit, where = ONE_WRONG[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    found = subjects(error, Code.BAD_MANIFEST)
    assert where in found
    assert all(subject.startswith(where.rpartition(".")[0]) for subject in found)


def test_everything_wrong_is_named_at_once(data: Data) -> None:
    for edit, _ in (wrong := [ONE_WRONG[name] for name in (
        "unknown key", "missing key", "missing nested key", "string for number", "short hash", "zero",
        "unknown slot", "path up",
    )]):  # fmt: skip
        edit(data)
    error = refused(data)
    assert subjects(error, Code.BAD_MANIFEST) == {where for _, where in wrong}
    assert all(where in str(error) for _, where in wrong)


@pytest.mark.parametrize("name", LAX)
def test_values_of_a_type_that_converts(every_slot: Path, name: str) -> None:
    """No value of any field, whatever it could be taken for."""
    data = whole_manifest(json.loads((every_slot / "manifest.json").read_text()))
    parse_manifest(json.dumps(data))
    edits = LAX[name](data)
    assert edits
    for path, value in edits:
        spoiled = copy.deepcopy(data)
        put(*path, value=value)(spoiled)
        error = refused(spoiled)
        assert error.codes == {Code.VERSION if path == ("format_version",) else Code.BAD_MANIFEST}, path
        where = ".".join(map(str, path))
        assert all(problem.subject.startswith(where) for problem in error.problems), path


def test_a_nul_where_nobody_cuts_it(data: Data) -> None:
    whole_manifest(data)["tokenizer"]["pad_token"] = "\0"
    assert parse_manifest(json.dumps(data)).tokenizer.pad_token == "\0"  # type: ignore[union-attr]


def test_a_nul_in_a_key(data: Data) -> None:
    data["tools"]["a\0b"] = "1"
    error = refused(data)
    assert subjects(error, Code.BAD_MANIFEST) == {r"tools.a\x00b.[key]"}
    assert "\0" not in str(error)


@pytest.mark.parametrize(("change", "where"), BAD_QUANTIZATIONS)
def test_quantization(data: Data, change: Data, where: str) -> None:
    data["base"]["quantization"] = QUANTIZATION
    assert parse_manifest(json.dumps(data)).base.quantization is not None
    data["base"]["quantization"] = {**QUANTIZATION, **change}
    error = refused(data)
    assert {problem.subject for problem in error.problems} == {where}


@pytest.mark.parametrize("version", [0, 5, 99, "1", "4", None, True, [1], {}, 1.5, 1.0, 4.0, 2**70])
def test_version(data: Data, version: object) -> None:
    error = refused({**data, "format_version": version, "surprise": 1})
    assert error.codes == {Code.VERSION}  # and not what a reader of version 1 thinks of the rest
    assert error.problems[0].got == repr(version)
    assert error.problems[0].expected == "1 or 2 or 3 or 4"


def test_no_version(data: Data) -> None:
    del data["format_version"]
    assert refused(data).codes == {Code.VERSION}


@pytest.mark.parametrize("given", ["[]", "1", "null", '"text"'])
def test_no_object(given: str) -> None:
    assert refused(given).codes == {Code.VERSION}


@pytest.mark.parametrize(
    "given", ["", " ", "{", "{'a': 1}", "{}{}", b"\xff\xfe", b"\x80\x04", b"PK\x03\x04", "[" * 100_000]
)
def test_no_json(given: str | bytes) -> None:
    assert refused(given).codes == {Code.BAD_MANIFEST}


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ('"opset": 23', '"opset": 23, "opset": 22', "opset"),
        ('"max_rank": 16', '"max_rank": 16, "max_rank": 16', "max_rank"),
        ('"weight":', '"weight": "x", "weight":', "weight"),
    ],
)
def test_duplicate_keys(text: str, old: str, new: str, culprit: str) -> None:
    assert old in text
    error = refused(text.replace(old, new))
    assert error.codes == {Code.DUPLICATE_KEY}
    assert subjects(error, Code.DUPLICATE_KEY) == {f"key {culprit}"}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent(data: Data, name: str) -> None:
    edit, said = INCONSISTENT[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


@pytest.mark.parametrize("name", INCONSISTENT_SLOTS)
def test_inconsistent_slots(every_slot: Path, name: str) -> None:
    data = json.loads((every_slot / "manifest.json").read_text())
    edit, said = INCONSISTENT_SLOTS[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


@pytest.mark.parametrize("name", INCONSISTENT_GENERATION)
def test_inconsistent_generation(data: Data, name: str) -> None:
    make_generating(data)
    parse_manifest(json.dumps(data))
    edit, said = INCONSISTENT_GENERATION[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


def test_a_copy_forgets_what_was_cached(text: str) -> None:
    manifest = parse_manifest(text)
    assert manifest.slot_inputs
    assert manifest.model_copy(update={"sites": (), "guards": None}).slot_inputs == ()


@pytest.mark.parametrize("name", INCONSISTENT_BANKS)
def test_inconsistent_banks(data: Data, name: str) -> None:
    narrow(data)
    assert parse_manifest(json.dumps(data)).bank_dtype == "bf16"
    edit, said = INCONSISTENT_BANKS[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


def test_the_head_has_the_type_of_the_base(every_slot: Path) -> None:
    data = json.loads((every_slot / "manifest.json").read_text())
    data["head"]["slot"]["out"]["dtype"] = "fp16"
    assert "the head's slot inputs" in str(refused(data))


def test_inconsistencies_are_named_together(data: Data) -> None:
    put("adapter_ids", value=None)(data)
    put("sites", 0, "in_features", value=33)(data)
    put("sites", 1, "out_features", value=34)(data)
    message = str(refused(data))
    assert "adapter_ids" in message
    assert "[rows, 33, rank]" in message
    assert "[rows, rank, 34]" in message


def check_any(content: str | bytes) -> None:
    """Whatever it is: a manifest, or a BundleError."""
    try:
        manifest = parse_manifest(content)
    except BundleError as error:
        assert error.problems
        return
    assert isinstance(manifest, Manifest)
    assert parse_manifest(manifest.to_json()) == manifest


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_any_json(value: Any) -> None:
    check_any(json.dumps(value))
    check_any(json.dumps({"format_version": 1, "base": value}))
    check_any(json.dumps({"format_version": value}))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | st.text(st.characters(), max_size=60))
def test_any_bytes(content: bytes | str) -> None:
    check_any(content)


@settings(max_examples=200, deadline=None)
@given(source=st.data())
def test_any_value_at_any_place(text: str, every_slot: Path, source: st.DataObject) -> None:
    given = source.draw(st.sampled_from([text, (every_slot / "manifest.json").read_text()]))
    data: Any = json.loads(given)
    inner, parent, key = data, None, None
    while isinstance(inner, dict | list) and inner:
        if parent is not None and source.draw(st.integers(0, 5)) == 0:
            break
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        parent, key = inner, source.draw(st.sampled_from(keys))
        inner = parent[key]
    if source.draw(st.booleans()):
        parent[key] = source.draw(JSON)
    else:
        del parent[key]
    check_any(json.dumps(data))
