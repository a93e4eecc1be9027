"""What ONNX Runtime's GPU providers are told, and where they keep what they build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adexport_runtime import Bundle, Engine, ProviderError, RequestError
from adexport_runtime.backends.ort_gpu import opener
from adexport_runtime.backends.ort_gpu.options import (
    ENGINE_PREFIXES,
    TF32_OVERRIDE,
    cache_folder,
    engine_profiles,
    provider_options,
)
from adexport_runtime.graph_io import graph_inputs
from adexport_runtime.manifest import Manifest
from adexport_runtime.profiles import Profile, Range, default_profiles, kinds_of_sizes, parse_profiles

Shapes = dict[str, list[list[int]]]


def parsed(text: str) -> Shapes:
    """The shapes by input, as ONNX Runtime reads them: an input again is its next profile."""
    found: Shapes = {}
    for part in text.split(","):
        name, shape = part.split(":")
        found.setdefault(name, []).append([int(size) for size in shape.split("x")])
    return found


def shapes(manifest: Manifest, profiles: tuple[Profile, ...], provider: str) -> tuple[Shapes, ...]:
    options = provider_options(provider, manifest, profiles)
    prefix = ENGINE_PREFIXES[provider]
    return tuple(parsed(options[f"{prefix}_profile_{at}_shapes"]) for at in ("min", "opt", "max"))


@pytest.fixture(params=["tiny_bundle", "every_slot", "classifier_bundle", "plain_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


@pytest.mark.parametrize("provider", ENGINE_PREFIXES)
def test_every_ragged_input_has_shapes(bundle: Bundle, provider: str) -> None:
    """The inputs of the graph itself, guards included: one that is left out makes TensorRT build anew."""
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    ragged = {
        one.name: one.shape for one in session.get_inputs() if any(isinstance(s, str) for s in one.shape)
    }
    profiles = default_profiles(bundle.manifest)
    for found in shapes(bundle.manifest, profiles, provider):
        assert found.keys() == ragged.keys()
        for name, each in found.items():
            assert len(each) == len(profiles)
            for shape in each:
                fixed = [
                    (s, size) for s, size in zip(ragged[name], shape, strict=True) if isinstance(s, int)
                ]
                assert all(s == size for s, size in fixed)


def test_sizes_that_share_a_name_in_the_graph_agree(bundle: Bundle) -> None:
    """TensorRT refuses a profile in which they differ."""
    manifest = bundle.manifest
    for found in shapes(manifest, default_profiles(manifest), "ort-tensorrt-rtx"):
        sizes: dict[tuple[int, str], int] = {}
        for tensor in graph_inputs(manifest):
            for index, shape in enumerate(found.get(tensor.name, [])):
                for symbol, size in zip(tensor.shape, shape, strict=True):
                    if isinstance(symbol, str):
                        assert sizes.setdefault((index, symbol), size) == size


def test_words() -> None:
    """As the libraries of ONNX Runtime 1.31 spell them."""
    assert provider_options("cpu", None) == {}  # type: ignore[arg-type]
    assert provider_options("cuda", None) == {"device_id": "0", "use_tf32": "0"}  # type: ignore[arg-type]


def test_what_is_kept(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    profiles = default_profiles(manifest)
    kept = provider_options("ort-tensorrt", manifest, profiles, Path("/some/where"))
    assert kept["trt_engine_cache_enable"] == kept["trt_timing_cache_enable"] == "True"
    assert kept["trt_engine_cache_path"] == kept["trt_timing_cache_path"] == "/some/where"
    assert not any("cache" in name for name in provider_options("ort-tensorrt", manifest, profiles))
    rtx = provider_options("ort-tensorrt-rtx", manifest, profiles, Path("/some/where"))
    assert rtx["nv_runtime_cache_path"] == "/some/where"
    assert rtx["nv_multi_profile_enable"] == "0"
    assert provider_options("ort-tensorrt-rtx", manifest, profiles * 2)["nv_multi_profile_enable"] == "1"
    assert not any("fp16" in name or "bf16" in name for name in kept | rtx)


@st.composite
def several(draw: st.DrawFn, kinds: tuple[str, ...] = ("batch", "seq", "rank")) -> tuple[Profile, ...]:
    def one() -> Range:
        low, usual, high = sorted(draw(st.lists(st.integers(1, 99), min_size=3, max_size=3)))
        return Range(min=low, opt=usual, max=high)

    count = draw(st.integers(1, 4))
    return tuple(Profile(sizes={kind: one() for kind in kinds}) for _ in range(count))


@settings(deadline=None)
@given(profiles=several())
def test_one_profile_for_ort_tensorrt_holds_all(profiles: tuple[Profile, ...]) -> None:
    (one,) = engine_profiles("ort-tensorrt", profiles)
    for kind, size in one.sizes.items():
        mins = [profile.sizes[kind].min for profile in profiles]
        maxes = [profile.sizes[kind].max for profile in profiles]
        assert (size.min, size.max) == (min(mins), max(maxes))
        assert size.opt == profiles[0].sizes[kind].opt
    assert engine_profiles("ort-tensorrt-rtx", profiles) == profiles
    assert engine_profiles("cuda", profiles) == engine_profiles("cpu", profiles) == ()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_shapes_are_the_profiles_own(tiny_bundle: Path, data: st.DataObject) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    profiles = data.draw(several(kinds_of_sizes(manifest)))
    low, usual, high = shapes(manifest, profiles, "ort-tensorrt-rtx")
    for tensor in graph_inputs(manifest):
        if tensor.name not in low:
            continue
        for index, profile in enumerate(profiles):
            found = (low[tensor.name][index], usual[tensor.name][index], high[tensor.name][index])
            assert [tuple(shape) for shape in found] == list(profile.shapes(tensor))
            for shape in found:
                assert not profile.misfits(tensor, shape)
            assert profile.misfits(tensor, np.add(found[2], 1))


class TestCache:
    def test_in_the_bundle(self, bundle_copy: Path) -> None:
        folder = cache_folder(bundle_copy, "ort-tensorrt", None)
        assert folder is not None
        assert folder.parent == bundle_copy / "engines" / "ort-tensorrt"
        assert folder.is_dir()
        assert not list(folder.iterdir())
        assert cache_folder(bundle_copy, "cuda", None) is None

    def test_a_bundle_that_is_lowered_again_has_another(
        self, bundle_copy: Path, narrow_bundle: Path
    ) -> None:
        before = cache_folder(bundle_copy, "ort-tensorrt", None)
        shutil.copy(narrow_bundle / "manifest.json", bundle_copy / "manifest.json")
        assert cache_folder(bundle_copy, "ort-tensorrt", None) != before

    def test_of_many_bundles(self, bundle_copy: Path, narrow_bundle: Path, tmp_path: Path) -> None:
        found = {
            cache_folder(root, provider, tmp_path / "kept")
            for root in (bundle_copy, narrow_bundle)
            for provider in ENGINE_PREFIXES
        }
        assert len(found) == 4
        assert not (bundle_copy / "engines").exists()

    def test_engines_with_tf32_are_kept_apart(
        self, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TF32_OVERRIDE, "0")
        exact = cache_folder(bundle_copy, "ort-tensorrt", None)
        monkeypatch.delenv(TF32_OVERRIDE)  # opening an engine sets it
        assert cache_folder(bundle_copy, "ort-tensorrt", None) == exact
        monkeypatch.setenv(TF32_OVERRIDE, "1")
        assert cache_folder(bundle_copy, "ort-tensorrt", None) != exact

    def test_where_nothing_can_be_written(self, bundle_copy: Path, tmp_path: Path) -> None:
        (bundle_copy / "engines").write_text("a file")
        assert cache_folder(bundle_copy, "ort-tensorrt", None) is None
        with pytest.raises(RequestError) as caught:
            cache_folder(bundle_copy, "ort-tensorrt", bundle_copy / "engines")
        assert [problem.subject for problem in caught.value.problems] == ["cache"]


def test_profiles_by_words(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    low, usual, high = shapes(
        manifest, parse_profiles(["batch=2:4:8,seq=1:16:32,rank=4"], manifest), "ort-tensorrt"
    )
    assert [found["input_ids"] for found in (low, usual, high)] == [[[2, 1]], [[4, 16]], [[8, 32]]]
    name = "encoder.layer.0.attention.self.query.lora_A"
    assert [found[name][0][1:] for found in (low, usual, high)] == [[32, 4]] * 3


@pytest.mark.parametrize("provider", ENGINE_PREFIXES)
def test_float32_stays_float32(tiny_bundle: Path, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT rounds to TF32 by itself, and ONNX Runtime has no option: the environment says it."""
    monkeypatch.setattr(opener, "available_provider", _not_here)
    for before, after in ((None, "0"), ("1", "1")):
        monkeypatch.setenv(TF32_OVERRIDE, before or "")
        if before is None:
            monkeypatch.delenv(TF32_OVERRIDE)
        with pytest.raises(ProviderError):
            Engine.open(tiny_bundle, provider)
        assert os.environ[TF32_OVERRIDE] == after


def _not_here(provider: str) -> str:
    raise ProviderError("not here", [])
