"""Engines on disk: a record is whole or refused, and an engine belongs to one bundle."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adexport_runtime import Bundle, BundleError, Code
from adexport_runtime.engine_file import (
    EngineFile,
    EngineRecord,
    bundle_digest,
    engine_folder,
    engine_targets,
    read_record,
)
from adexport_runtime.graph_io import engine_inputs, graph_outputs
from adexport_runtime.manifest import File
from adexport_runtime.profiles import default_profiles

from .spoiled_manifests import LAX, put

RTX = "tensorrt-rtx"
PLAN = b"not an engine, but as long as the record says"


def record_of(bundle: Bundle) -> EngineRecord:
    return EngineRecord(
        target="tensorrt-rtx",
        tool_version="1.7.1.116",
        bundle=bundle_digest(bundle.root),
        fingerprint=bundle.manifest.base.fingerprint,
        plan=File(path="model.plan", bytes=len(PLAN), sha256=hashlib.sha256(PLAN).hexdigest()),
        compute_capabilities=("sm86",),
        profiles=default_profiles(bundle.manifest),
        inputs=engine_inputs(bundle.manifest),
        outputs=graph_outputs(bundle.manifest),
        caches=None,
        tf32=False,
        layers=7,
        seconds=1.5,
        peak_bytes=10,
    )


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    """A bundle with what stands for an engine."""
    bundle = Bundle.open(bundle_copy)
    folder = engine_folder(bundle_copy, RTX)
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(PLAN)
    (folder / "engine.json").write_text(record_of(bundle).model_dump_json())
    return bundle


def change(bundle: Bundle, **changes: Any) -> None:
    path = engine_folder(bundle.root, RTX) / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(bundle: Bundle, target: str = RTX) -> BundleError:
    with pytest.raises(BundleError) as caught:
        EngineFile.open(bundle, target)
    return caught.value


class TestOpen:
    def test_what_was_written(self, bundle: Bundle) -> None:
        engine = EngineFile.open(bundle, RTX)
        assert engine.record == record_of(bundle)
        assert engine.plan_path.read_bytes() == PLAN
        engine.check_plan()

    def test_hidden_leftovers_are_no_engines(self, bundle: Bundle) -> None:
        folder = engine_folder(bundle.root, RTX)
        shutil.copytree(folder, folder.with_name(f".{RTX}.x.part"))
        (folder.parent / "tensorrt").mkdir()
        assert engine_targets(bundle.root) == (RTX,)

    def test_none(self, bundle: Bundle) -> None:
        error = refused(bundle, "tensorrt")
        assert error.codes == {Code.ABSENT}
        assert "adexport build BUNDLE --target tensorrt" in error.problems[0].mend

    def test_of_another_model(self, bundle: Bundle) -> None:
        change(bundle, fingerprint=f"sha256:{'0' * 64}")
        assert [problem.subject for problem in refused(bundle).problems] == ["fingerprint"]

    def test_of_another_graph(self, bundle: Bundle) -> None:
        manifest = bundle.root / "manifest.json"
        manifest.write_bytes(manifest.read_bytes() + b"\n")
        error = refused(Bundle.open(bundle.root))
        assert error.codes == {Code.WRONG_BASE}
        assert "lowered again" in error.problems[0].cause

    def test_everything_wrong_is_named(self, bundle: Bundle) -> None:
        change(bundle, fingerprint=f"sha256:{'0' * 64}", target="tensorrt")
        (engine_folder(bundle.root, RTX) / "model.plan").write_bytes(PLAN[:-1])
        subjects = [problem.subject for problem in refused(bundle).problems]
        assert subjects[:2] == ["fingerprint", "target"]
        assert subjects[2].endswith("model.plan")

    @pytest.mark.parametrize(
        ("changes", "subject"),
        [
            ({"inputs": []}, "inputs"),
            ({"outputs": [{"name": "logits", "dtype": "fp32", "shape": ["batch"]}]}, "outputs"),
            ({"caches": "copied"}, "caches"),
            ({"profiles": [{"sizes": {"rank": None}}]}, "profiles.0: rank"),
            (
                {"profiles": [{"sizes": {"rank": {"min": 1, "opt": 1, "max": 99}}}]},
                "profiles.0: rank=1:1:99",
            ),
            (
                {"profiles": [{"sizes": {"depth": {"min": 1, "opt": 1, "max": 9}}}]},
                "profiles.0: depth=1:1:9",
            ),
        ],
    )
    def test_a_record_that_contradicts_the_bundle(
        self, bundle: Bundle, changes: dict[str, Any], subject: str
    ) -> None:
        """A run would fail deep inside, or take sizes that the engine does not."""
        for profile in changes.get("profiles", ()):
            whole = default_profiles(bundle.manifest)[0].model_dump()["sizes"] | profile["sizes"]
            profile["sizes"] = {kind: size for kind, size in whole.items() if size is not None}
        change(bundle, **changes)
        error = refused(bundle)
        assert [problem.subject for problem in error.problems] == [subject]
        assert error.codes == {Code.BAD_MANIFEST}

    def test_a_plan_that_is_gone(self, bundle: Bundle) -> None:
        (engine_folder(bundle.root, RTX) / "model.plan").unlink()
        assert refused(bundle).problems[0].got == "no file"

    def test_a_plan_of_other_bytes(self, bundle: Bundle) -> None:
        engine = EngineFile.open(bundle, RTX)
        engine.plan_path.write_bytes(PLAN[:-1] + b"!")
        EngineFile.open(bundle, RTX)
        with pytest.raises(BundleError) as caught:
            engine.check_plan()
        assert caught.value.codes == {Code.DAMAGED}


class TestRecord:
    @pytest.mark.parametrize(
        ("changes", "code", "subject"),
        [
            ({"format_version": 2}, Code.VERSION, "format_version"),
            ({"format_version": True}, Code.VERSION, "format_version"),
            ({"format_version": None}, Code.VERSION, "format_version"),
            ({"more": 1}, Code.BAD_MANIFEST, "more"),
            ({"profiles": []}, Code.BAD_MANIFEST, "profiles"),
            ({"target": "openvino"}, Code.BAD_MANIFEST, "target"),
            ({"tf32": 0}, Code.BAD_MANIFEST, "tf32"),
            ({"seconds": float("nan")}, Code.BAD_MANIFEST, "seconds"),
            ({"seconds": float("inf")}, Code.BAD_MANIFEST, "seconds"),
            ({"seconds": -1.0}, Code.BAD_MANIFEST, "seconds"),
            ({"peak_bytes": 10**400}, Code.BAD_MANIFEST, "peak_bytes"),
            ({"caches": "paged"}, Code.BAD_MANIFEST, "caches"),
            (
                {"plan": {"path": "../model.plan", "bytes": 1, "sha256": "0" * 64}},
                Code.BAD_MANIFEST,
                "plan.path",
            ),
            (
                {"profiles": [{"sizes": {"batch": {"min": 2, "opt": 1, "max": 3}}}]},
                Code.BAD_MANIFEST,
                "profiles.0.sizes.batch",
            ),
        ],
    )
    def test_a_value_of_another_kind(
        self, bundle: Bundle, changes: dict[str, Any], code: Code, subject: str
    ) -> None:
        change(bundle, **changes)
        error = refused(bundle)
        assert (error.codes, error.problems[0].subject) == ({code}, subject)

    @pytest.mark.parametrize("name", LAX)
    def test_values_of_a_type_that_converts(self, bundle: Bundle, name: str) -> None:
        record = json.loads(record_of(bundle).model_dump_json())
        edits = LAX[name](record)
        assert edits
        for path, value in edits:
            spoiled = copy.deepcopy(record)
            put(*path, value=value)(spoiled)
            (engine_folder(bundle.root, RTX) / "engine.json").write_text(json.dumps(spoiled))
            error = refused(bundle)
            version = path == ("format_version",)
            assert error.codes == {Code.VERSION if version else Code.BAD_MANIFEST}, path
            where = ".".join(map(str, path))
            assert any(problem.subject.startswith(where) for problem in error.problems), path

    def test_every_violation_is_named(self, bundle: Bundle) -> None:
        change(bundle, tf32=0, layers=-1, seconds="long")
        assert {problem.subject for problem in refused(bundle).problems} == {"tf32", "layers", "seconds"}

    def test_a_key_twice(self, bundle: Bundle) -> None:
        path = engine_folder(bundle.root, RTX) / "engine.json"
        path.write_text(path.read_text().replace('"tf32":false', '"tf32":false,"tf32":true'))
        assert refused(bundle).codes == {Code.DUPLICATE_KEY}

    @given(data=st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_damaged_bytes_are_refused_or_read_whole(self, bundle: Bundle, data: st.DataObject) -> None:
        """Whatever a record's bytes become, nothing but an error of ours comes out."""
        folder = engine_folder(bundle.root, RTX)
        whole = record_of(bundle).model_dump_json().encode()
        cut = data.draw(st.integers(0, len(whole)))
        put = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"[" * 9000, b"1e999", b"NaN", b'"\\ud800"'])
        )
        (folder / "engine.json").write_bytes(whole[:cut] + put + whole[cut + len(put) :])
        try:
            record = read_record(folder)
        except BundleError as error:
            assert error.problems
        else:
            assert EngineRecord.model_validate_json(record.model_dump_json()) == record

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_any_json_is_refused(self, tmp_path: Path, value: Any) -> None:
        (tmp_path / "engine.json").write_text(json.dumps(value))
        with pytest.raises(BundleError):
            read_record(tmp_path)
