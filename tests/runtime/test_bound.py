"""Bound adapters: what is written is read back, and an edited file is refused whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from adexport_runtime import AdapterError, BoundAdapter, Bundle, Code, bind_into_bundle
from adexport_runtime.tensors import read_tensors
from tests.conftest import MakeLora

from .conftest import Refuse
from .support import QUERY, VALUE, Tensors, edit_tensors, subjects


@pytest.fixture
def bound(tiny_bundle: Path, tmp_path: Path, make_lora: MakeLora) -> Path:
    """A bound adapter's file, bound in a bundle that was since removed."""
    shutil.copytree(tiny_bundle, tmp_path / "x.bundle")
    bundle = Bundle.open(tmp_path / "x.bundle")
    bind_into_bundle(bundle, make_lora("acme", r=3, seed=5), "acme")
    path = tmp_path / "acme.safetensors"
    bundle.adapter_path("acme").rename(path)
    shutil.rmtree(bundle.root)
    return path


def test_round_trip(bound: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    adapter = BoundAdapter.read(bound)
    adapter.save(tmp_path / "again.safetensors")
    again, file = read_tensors(tmp_path / "again.safetensors"), read_tensors(bound)
    assert again.metadata == file.metadata
    assert again.tensors.keys() == file.tensors.keys()
    assert all(np.array_equal(again.tensors[key], tensor) for key, tensor in file.tensors.items())
    assert adapter.rank == 3
    assert adapter.ranks == {form.format(n): 3 for form in (QUERY, VALUE) for n in (0, 1)}
    assert adapter.name == "acme"
    assert adapter.source_type == "peft:LORA"
    assert adapter.base_fingerprint == Bundle.open(tiny_bundle).manifest.base.fingerprint


def test_metadata(bound: Path, make_lora: MakeLora) -> None:
    metadata = read_tensors(bound).metadata
    assert set(metadata) == {
        "format",
        "format_version",
        "name",
        "source_type",
        "source_sha256",
        "base_fingerprint",
        "rank",
    }
    assert metadata["format"] == "adexport-adapter"


def test_fits_every_bundle_of_its_base(
    bound: Path, bundle_copy: Path, fp16_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(fp16_bundle, tmp_path / "half.bundle")
    for root in (bundle_copy, tmp_path / "half.bundle"):
        bind_into_bundle(Bundle.open(root), bound, "moved")
        moved = BoundAdapter.read(Bundle.open(root).adapter_path("moved"))
        assert moved.name == "moved"
        for key, tensor in BoundAdapter.read(bound).tensors.items():
            np.testing.assert_array_equal(moved.tensors[key], tensor, strict=True)


class TestRefused:
    def test_no_bound_adapter(self, make_lora: MakeLora) -> None:
        with pytest.raises(AdapterError) as caught:
            BoundAdapter.read(make_lora() / "adapter_model.safetensors")
        assert caught.value.codes == {Code.VERSION}

    @pytest.mark.parametrize(
        "metadata",
        [
            {"format_version": "3"},
            {"format_version": None},
            {"name": None},
            {"base_fingerprint": None},
            {"rank": None},
        ],
        ids=str,
    )
    def test_metadata(self, bound: Path, refuse: Refuse, metadata: dict[str, str | None]) -> None:
        refuse(edit_tensors(bound, lambda _: None, metadata), {Code.VERSION: {str(bound)}})

    @pytest.mark.parametrize("key", ["name", "source_type", "source_sha256", "base_fingerprint", "rank"])
    def test_a_nul_in_the_metadata(self, bound: Path, refuse: Refuse, key: str) -> None:
        edited = edit_tensors(bound, lambda _: None, {key: "a\0b"})
        refuse(edited, {Code.BAD_CONFIG: {key}})

    def test_a_path_for_a_name(self, bound: Path, refuse: Refuse) -> None:
        edited = edit_tensors(bound, lambda _: None, {"name": "../x"})
        refuse(edited, {Code.BAD_NAME: {"'../x'"}})

    def test_another_base(self, bound: Path, refuse: Refuse) -> None:
        edited = edit_tensors(bound, lambda _: None, {"base_fingerprint": "sha256:" + "0" * 64})
        error = refuse(edited, {Code.WRONG_BASE: {"acme"}})
        assert "sha256:0000" in str(error)

    def test_everything_wrong_is_named_at_once(self, bound: Path, refuse: Refuse) -> None:
        def spoil(tensors: Tensors) -> None:
            del tensors[QUERY.format(0) + ".lora_A"]
            tensors[QUERY.format(1) + ".lora_B"][0, 0] = np.nan
            tensors[VALUE.format(0) + ".lora_A"] = np.ones((31, 3), np.float32)
            tensors["strange"] = np.ones(1, np.float32)

        error = refuse(
            edit_tensors(bound, spoil),
            {
                Code.HALF_MISSING: {QUERY.format(0)},
                Code.NOT_FINITE: {QUERY.format(1) + ".lora_B"},
                Code.WRONG_SHAPE: {VALUE.format(0) + ".lora_A"},
                Code.UNKNOWN_SITE: {"strange"},
            },
        )
        assert "lora_B only" in str(error)

    def test_rank(self, bound: Path, refuse: Refuse) -> None:
        def widen(tensors: Tensors) -> None:
            tensors[QUERY.format(0) + ".lora_A"] = np.ones((32, 17), np.float32)
            tensors[QUERY.format(0) + ".lora_B"] = np.ones((17, 32), np.float32)

        refuse(edit_tensors(bound, widen), {Code.RANK_ABOVE_MAX: {QUERY.format(0)}})

    def test_halves_that_disagree(self, bound: Path, refuse: Refuse) -> None:
        def widen(tensors: Tensors) -> None:
            tensors[QUERY.format(0) + ".lora_A"] = np.ones((32, 4), np.float32)

        refuse(edit_tensors(bound, widen), {Code.WRONG_SHAPE: {QUERY.format(0)}})

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
    def test_dtype(self, bound: Path, refuse: Refuse, dtype: type) -> None:
        key = QUERY.format(0) + ".lora_A"

        def narrow(tensors: Tensors) -> None:
            tensors[key] = tensors[key].astype(dtype)

        refuse(edit_tensors(bound, narrow), {Code.WRONG_DTYPE: {key}})

    def test_what_the_precision_cannot_hold(self, bound: Path, fp16_bundle: Path) -> None:
        key = QUERY.format(0) + ".lora_B"

        def grow(tensors: Tensors) -> None:
            tensors[key][0, 0] = 70000

        edited = edit_tensors(bound, grow)
        with pytest.raises(AdapterError) as caught:
            BoundAdapter.from_file(read_tensors(edited), Bundle.open(fp16_bundle).manifest)
        assert subjects(caught.value, Code.OVERFLOW) == {key}
