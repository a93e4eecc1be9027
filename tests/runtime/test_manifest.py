"""The manifest: read back as written, and refused whole when anything in it is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from adexport_runtime import BundleError, Code, Manifest
from adexport_runtime.manifest import parse_manifest

from .support import subjects

Data = dict[str, Any]


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


def put(*path: str | int, value: Any) -> Callable[[Data], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return edit


def drop(*path: str | int) -> Callable[[Data], None]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return edit


#: an edit, and where the error must say that it is
ONE_WRONG = {
    "unknown key": (put("surprise", value=1), "surprise"),
    "unknown nested key": (put("sites", 0, "linear", "g_out", value={}), "sites.0.linear.g_out"),
    "missing key": (drop("tools"), "tools"),
    "missing nullable key": (drop("adapter_ids"), "adapter_ids"),
    "missing nested key": (drop("base", "fingerprint"), "base.fingerprint"),
    "string for number": (put("opset", value="23"), "opset"),
    "float for integer": (put("limits", "max_rank", value=16.0), "limits.max_rank"),
    "bool for integer": (put("limits", "max_rank", value=True), "limits.max_rank"),
    "zero": (put("sites", 0, "in_features", value=0), "sites.0.in_features"),
    "negative size": (put("outputs", 0, "shape", 2, value=-32), "outputs.0.shape.2.constrained-int"),
    "null": (put("files", value=None), "files"),
    "list for object": (put("base", value=[]), "base"),
    "object for list": (put("inputs", value={}), "inputs"),
    "unknown dtype": (put("base", "dtype", value="fp8"), "base.dtype"),
    "unknown task": (put("base", "task", value="generation"), "base.task"),
    "unknown slot": (put("slots", 0, value="prefix"), "slots.0"),
    "quantized": (put("base", "quantization", value="int8"), "base.quantization"),
    "no fingerprint": (put("base", "fingerprint", value="sha256:" + "g" * 64), "base.fingerprint"),
    "short hash": (put("files", 0, "sha256", value="0" * 63), "files.0.sha256"),
    "hash and newline": (put("files", 0, "sha256", value="0" * 64 + "\n"), "files.0.sha256"),
    "negative bytes": (put("files", 0, "bytes", value=-1), "files.0.bytes"),
    "path up": (put("files", 0, "path", value="../x"), "files.0.path"),
    "path up inside": (put("files", 0, "path", value="a/../../x"), "files.0.path"),
    "absolute path": (put("files", 0, "path", value="/etc/passwd"), "files.0.path"),
    "path and newline": (put("files", 0, "path", value="a\n"), "files.0.path"),
    "path with a backslash": (put("files", 0, "path", value="a\\b"), "files.0.path"),
    "tool without version": (put("tools", "torch", value=None), "tools.torch"),
}


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


QUANTIZATION = {
    "method": "weight-only",
    "bits": 8,
    "block_size": 32,
    "accuracy_level": 4,
    "embeddings": False,
    "lm_head": True,
}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"method": "static"}, "base.quantization.method"),
        ({"bits": 2}, "base.quantization.bits"),
        ({"zero_points": True}, "base.quantization.zero_points"),
        ({"accuracy_level": None}, "manifest"),
        ({"block_size": None}, "manifest"),
        ({"method": "dynamic"}, "manifest"),
        ({"method": "dynamic", "accuracy_level": None}, "manifest"),
        ({"method": "dynamic", "accuracy_level": None, "block_size": None, "bits": 4}, "manifest"),
        ({"method": "dynamic", "accuracy_level": None, "block_size": None, "embeddings": True}, "manifest"),
    ],
)
def test_quantization(data: Data, change: Data, where: str) -> None:
    data["base"]["quantization"] = QUANTIZATION
    assert parse_manifest(json.dumps(data)).base.quantization is not None
    data["base"]["quantization"] = {**QUANTIZATION, **change}
    error = refused(data)
    assert {problem.subject for problem in error.problems} == {where}


@pytest.mark.parametrize("version", [0, 4, 99, "1", None, True, [1], {}, 1.5])
def test_version(data: Data, version: object) -> None:
    error = refused({**data, "format_version": version, "surprise": 1})
    assert error.codes == {Code.VERSION}  # and not what a reader of version 1 thinks of the rest
    assert error.problems[0].got == repr(version)
    assert error.problems[0].expected == "1 or 2 or 3"


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


#: edits that keep every value's type and contradict one another
INCONSISTENT: dict[str, tuple[Callable[[Data], None], str]] = {
    "sites without adapter_ids": (put("adapter_ids", value=None), "adapter_ids"),
    "adapter_ids without sites": (put("sites", value=[]), "adapter_ids"),
    "sites without slots": (put("slots", value=[]), "slots"),
    "a site twice": (
        lambda data: data["sites"].append(copy.deepcopy(data["sites"][0])),
        "site is listed twice",
    ),
    "an input twice": (lambda data: data["inputs"].append(data["inputs"][0]), "input is listed twice"),
    "a slot input twice": (
        lambda data: put("sites", 1, "linear", "lora_A", value=data["sites"][0]["linear"]["lora_A"])(data),
        "input is listed twice",
    ),
    "a slot input named like an input": (
        put("sites", 0, "linear", "lora_A", "name", value="input_ids"),
        "input is listed twice",
    ),
    "adapter_ids named like an input": (put("adapter_ids", value="input_ids"), "input is listed twice"),
    "A of other features": (
        put("sites", 0, "in_features", value=33),
        "query.lora_A must be [rows, 33, rank]",
    ),
    "B of other features": (
        put("sites", 0, "out_features", value=9),
        "query.lora_B must be [rows, rank, 9]",
    ),
    "A of two dimensions": (
        put("sites", 0, "linear", "lora_A", "shape", value=["rows", 32]),
        "query.lora_A",
    ),
    "A and B of different ranks": (
        put("sites", 0, "linear", "lora_A", "shape", 2, value="another.rank"),
        "query.lora_",
    ),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent(data: Data, name: str) -> None:
    edit, said = INCONSISTENT[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


#: the same where there is every kind of slot
INCONSISTENT_SLOTS: dict[str, tuple[Callable[[Data], None], str]] = {
    "bottlenecks that no slots name": (
        put("slots", value=["lora", "bias", "scale", "head"]),
        "name bottleneck",
    ),
    "a head that is not there": (put("head", value=None), "name head"),
    "a code of floats": (
        put("bottlenecks", "sites", 0, "slot", "code", "dtype", value="float"),
        "bottleneck.code must be int64",
    ),
    "a guard of floats": (
        put("guards", "linear", "dtype", value="float"),
        "adapter_uses.linear must be int64",
    ),
    "weights of integers": (
        put("bottlenecks", "sites", 0, "slot", "up", "dtype", value="int64"),
        "bottleneck.up must be float",
    ),
    "scales that erase": (
        put("sites", 0, "linear", "scale_out", "identity", value="zeros"),
        "query.scale_out must be float with ones",
    ),
    "a bias of ones": (
        put("head", "slot", "out_bias", "identity", value="ones"),
        "out_bias must be float with zeros",
    ),
    "a form twice": (
        lambda data: data["bottlenecks"]["forms"].append(data["bottlenecks"]["forms"][0]),
        "listed twice",
    ),
    "two bottlenecks at one place": (
        put("bottlenecks", "sites", 1, "location", value="mh"),
        "listed twice",
    ),
    "no neutral form first": (
        lambda data: data["bottlenecks"]["forms"].sort(key=lambda form: form["norm_after"] == "none"),
        "first form of the bottlenecks must be neutral",
    ),
    "nothing to pick by": (put("bottlenecks", "sites", 0, "slot", "code", value=None), "must have a code"),
    "a form without its norm": (
        put("bottlenecks", "sites", 0, "slot", "norm_after_bias", value=None),
        "must have the norms",
    ),
    "labels of another size": (
        put("head", "slot", "out_bias", "shape", 1, value="other"),
        "adapter_head.out_bias must be",
    ),
}


@pytest.mark.parametrize("name", INCONSISTENT_SLOTS)
def test_inconsistent_slots(every_slot: Path, name: str) -> None:
    data = json.loads((every_slot / "manifest.json").read_text())
    edit, said = INCONSISTENT_SLOTS[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


def make_generating(data: Data) -> None:
    """Let the manifest be that of a graph with one cache, whose slots have the batch's rows."""
    cache = {"past_key": "pk", "past_value": "pv", "present_key": "k", "present_value": "v"}
    names = {"lengths": "lengths", "past_lengths": "past", "logits_at": "at"}
    data["base"]["task"] = "text-generation"
    data["inputs"] = [spec for spec in data["inputs"] if spec["name"] != "token_type_ids"]
    data["outputs"] = [{"name": "logits", "dtype": "fp32", "shape": ["batch", "seq", 9]}]
    data["generation"] = {
        **names,
        "caches": [{**cache, "kv_heads": 2, "size": 8, "window": None}],
        "eos_ids": [2],
    }
    data["adapter_ids"], data["slot_rows"] = None, "batch"


#: the same where there are caches
INCONSISTENT_GENERATION: dict[str, tuple[Callable[[Data], None], str]] = {
    "no caches": (put("generation", "caches", value=[]), "needs caches"),
    "a cache twice": (put("generation", "caches", 0, "past_key", value="pv"), "pv is listed twice"),
    "a cache named like an input": (
        put("generation", "caches", 0, "past_key", value="input_ids"),
        "input is listed twice",
    ),
    "another task": (put("base", "task", value="feature-extraction"), "text-generation alone"),
    "an older version": (put("format_version", value=2), "not known to version 2"),
    "no end of positions": (put("base", "max_positions", value=None), "needs max_positions"),
    "no inputs": (put("inputs", value=[]), "input_ids and attention_mask alone"),
    "no end of ids": (put("inputs", 0, "high", value=None), "the high of input_ids"),
    "no logits": (put("outputs", value=[]), "the output logits alone"),
    "rows of the batch without caches": (put("generation", value=None), "slot_rows must be batch"),
    "rows of the bank with caches": (
        lambda data: data.update(slot_rows="bank", adapter_ids="ids"),
        "slot_rows must be batch",
    ),
}


@pytest.mark.parametrize("name", INCONSISTENT_GENERATION)
def test_inconsistent_generation(data: Data, name: str) -> None:
    make_generating(data)
    parse_manifest(json.dumps(data))
    edit, said = INCONSISTENT_GENERATION[name]
    edit(data)
    error = refused(data)
    assert error.codes == {Code.BAD_MANIFEST}
    assert said in str(error)


def test_inconsistencies_are_named_together(data: Data) -> None:
    put("adapter_ids", value=None)(data)
    put("sites", 0, "in_features", value=33)(data)
    put("sites", 1, "out_features", value=34)(data)
    message = str(refused(data))
    assert "adapter_ids" in message
    assert "[rows, 33, rank]" in message
    assert "[rows, rank, 34]" in message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["fp32", "rows", "input_ids", "encoder.layer.0.attention.self.query.lora_A"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


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
