"""What one runtime refuses of a bundle, the other refuses: kind, codes and culprits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from adexport_runtime import Bundle, Engine
from adexport_runtime.bundle import MANIFEST_FILE
from tests.runtime.spoiled_manifests import (
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

from .capi import needs_native
from .native import NativeEngine
from .refusals import Found, found, open_both, open_native, same

pytestmark = needs_native


def _is_json(value: Any) -> bool:
    """Python also takes infinities and halves of surrogate pairs; C++ does not."""
    if isinstance(value, dict):
        return all(_is_json(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(_is_json(part) for part in value)
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return not isinstance(value, float) or np.isfinite(value)


class TestManifests:
    """A folder with nothing but a manifest: the C++ runtime sees the manifest first, as Python does."""

    @pytest.fixture
    def refuse(self, tmp_path: Path) -> Callable[[Any], Found]:
        def check(content: Any) -> Found:
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            (tmp_path / MANIFEST_FILE).write_bytes(data)
            error = open_both(tmp_path)
            assert error is not None
            assert error[0] == "BundleError"
            return error

        return check

    @pytest.fixture
    def data(self, tiny_bundle: Path) -> Data:
        return json.loads((tiny_bundle / MANIFEST_FILE).read_text())

    @pytest.mark.parametrize("name", ONE_WRONG)
    def test_one_thing_wrong(self, refuse: Callable[[Any], Found], data: Data, name: str) -> None:
        ONE_WRONG[name][0](data)
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("name", INCONSISTENT)
    def test_inconsistent(self, refuse: Callable[[Any], Found], data: Data, name: str) -> None:
        INCONSISTENT[name][0](data)
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("name", INCONSISTENT_SLOTS)
    def test_inconsistent_slots(self, refuse: Callable[[Any], Found], every_slot: Path, name: str) -> None:
        data = json.loads((every_slot / MANIFEST_FILE).read_text())
        INCONSISTENT_SLOTS[name][0](data)
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("name", INCONSISTENT_GENERATION)
    def test_inconsistent_generation(self, refuse: Callable[[Any], Found], data: Data, name: str) -> None:
        make_generating(data)
        INCONSISTENT_GENERATION[name][0](data)
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("name", INCONSISTENT_BANKS)
    def test_inconsistent_banks(self, refuse: Callable[[Any], Found], data: Data, name: str) -> None:
        narrow(data)
        INCONSISTENT_BANKS[name][0](data)
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("name", LAX)
    def test_values_of_a_type_that_converts(
        self, refuse: Callable[[Any], Found], every_slot: Path, name: str
    ) -> None:
        data = whole_manifest(json.loads((every_slot / MANIFEST_FILE).read_text()))
        for place, value in LAX[name](data):
            spoiled = copy.deepcopy(data)
            put(*place, value=value)(spoiled)
            version = place == ("format_version",)
            assert set(refuse(spoiled)[1]) == {"version" if version else "bad-manifest"}, place

    def test_a_nul_where_nobody_cuts_it(self, bundle_copy: Path) -> None:
        data = json.loads((bundle_copy / MANIFEST_FILE).read_text())
        data["tokenizer"] = {"file": "tokenizer.json", "pad_id": 0, "pad_token": "\0", "max_length": None}
        (bundle_copy / MANIFEST_FILE).write_text(json.dumps(data))
        assert open_both(bundle_copy) is None

    def test_a_nul_in_a_key(self, refuse: Callable[[Any], Found], data: Data) -> None:
        data["tools"]["a\0b"] = "1"
        assert refuse(data)[1] == {"bad-manifest": {r"tools.a\x00b.[key]"}}

    @pytest.mark.parametrize("change", [change for change, _ in BAD_QUANTIZATIONS], ids=str)
    def test_quantization(self, refuse: Callable[[Any], Found], data: Data, change: Data) -> None:
        data["base"]["quantization"] = {**QUANTIZATION, **change}
        assert set(refuse(data)[1]) == {"bad-manifest"}

    @pytest.mark.parametrize("version", [0, 5, 99, "1", "4", None, True, [1], {}, 1.5, 1.0, 4.0, 2**70])
    def test_version(self, refuse: Callable[[Any], Found], data: Data, version: object) -> None:
        assert set(refuse({**data, "format_version": version, "surprise": 1})[1]) == {"version"}

    @pytest.mark.parametrize("content", ["[]", "1", "null", '"text"'])
    def test_no_object(self, refuse: Callable[[Any], Found], content: str) -> None:
        refuse(content)

    @pytest.mark.parametrize(
        "content",
        ["", " ", "{", "{'a': 1}", "{}{}", b"\xff\xfe", b"\x80\x04", b"PK\x03\x04", "[" * 100_000],
        ids=range(9),
    )
    def test_no_json(self, refuse: Callable[[Any], Found], content: str | bytes) -> None:
        assert set(refuse(content)[1]) == {"bad-manifest"}

    def test_duplicate_keys(self, refuse: Callable[[Any], Found], data: Data) -> None:
        text = json.dumps(data).replace('"max_rank": 16', '"max_rank": 16, "max_rank": 16')
        assert refuse(text)[1] == {"duplicate-key": {"key max_rank"}}

    def test_no_folder(self, tmp_path: Path) -> None:
        assert open_both(tmp_path / "absent") is not None
        (tmp_path / "file").touch()
        assert open_both(tmp_path / "file") is not None

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(source=st.data())
    def test_any_value_at_any_place(
        self, tiny_bundle: Path, every_slot: Path, tmp_path: Path, source: st.DataObject
    ) -> None:
        given = source.draw(st.sampled_from([tiny_bundle, every_slot]))
        data: Any = json.loads((given / MANIFEST_FILE).read_text())
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
        assume(_is_json(data))
        (tmp_path / MANIFEST_FILE).write_text(json.dumps(data))
        ours, theirs = found(lambda: Bundle.open(tmp_path)), found(lambda: open_native(tmp_path))
        assert ours is not None  # there are no files
        assert theirs is not None
        assert (theirs[0], set(theirs[1])) == (ours[0], set(ours[1]))


class TestFiles:
    @pytest.mark.parametrize("edit", ["gone", "short", "long", "folder"])
    def test_a_file_of_the_bundle(self, bundle_copy: Path, edit: str) -> None:
        path = bundle_copy / "model.onnx"
        content = path.read_bytes()
        path.unlink()
        if edit == "folder":
            path.mkdir()
        elif edit != "gone":
            path.write_bytes(content[:-1] if edit == "short" else content + b"\0")
        assert open_both(bundle_copy) == ("BundleError", {"damaged": {"model.onnx"}})

    def test_a_graph_of_other_bytes(self, bundle_copy: Path) -> None:
        path = bundle_copy / "model.onnx"
        path.write_bytes(b"\xff" * path.stat().st_size)
        same(lambda: Engine.open(bundle_copy).close(), lambda: open_native(bundle_copy))

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x03\x04", b"\x80\x04", b"version https://git-lfs", b"{}"]
    )
    def test_an_adapter_in_the_folder(self, bundle_copy: Path, content: bytes) -> None:
        """It is refused when a run first asks for it; others serve."""
        (bundle_copy / "adapters").mkdir()
        (bundle_copy / "adapters" / "acme.safetensors").write_bytes(content)
        ids = {"input_ids": np.array([[1, 2, 3]])}
        with Engine.open(bundle_copy) as python, NativeEngine(bundle_copy) as native:
            assert native.adapters() == python.adapters() == ["acme"]
            assert same(lambda: python.run(ids, "acme"), lambda: native.run(ids, "acme")) is not None
            native.run(ids)
