"""Engines: what is built ahead of time, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adexport.build import build_model
from adexport.options import BuildOptions, EngineOptions
from adexport.tensorrt.builder import build_engine, check_tool
from adexport.tensorrt.child import order
from adexport.tensorrt.messages import Built
from adexport_runtime.bundle import Bundle
from adexport_runtime.engine_file import CacheForm, EngineFile, engine_targets
from adexport_runtime.errors import BuildError, Code, RequestError
from adexport_runtime.graph_io import Tensor, engine_inputs, graph_outputs
from adexport_runtime.profiles import Profile, Range, default_profiles
from adexport_runtime.tensors import peek_metadata

from .engine_support import MIDDLE, make_job, make_tensor, names
from .generators import GENERATORS, make_tenants


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny Llama; engines come and go in it."""
    folder = tmp_path_factory.mktemp("decoder")
    tenants = make_tenants(GENERATORS["Llama, wide"], folder, adapters=0)
    return build_model(str(tenants.model), folder / "d", options=BuildOptions(max_rank=8)).bundle


class TestBuilt:
    def test_the_record_says_what_was_built(self, with_engine: Path) -> None:
        bundle = Bundle.open(with_engine)
        assert engine_targets(with_engine) == ("tensorrt-rtx",)
        engine = EngineFile.open(bundle, "tensorrt-rtx")
        record = engine.record
        assert names(engine.folder) == ["engine.json", "model.plan"]
        assert record.inputs == engine_inputs(bundle.manifest)
        assert record.outputs == graph_outputs(bundle.manifest)
        assert record.profiles == default_profiles(bundle.manifest)
        assert (record.compute_capabilities, record.tf32, record.caches) == ((), False, None)
        assert record.layers > 100
        assert record.seconds > 0
        assert record.peak_bytes > record.plan.bytes
        engine.check_plan()

    def test_memory_is_the_builder_s_own(self, tmp_path: Path) -> None:
        """Not that of whoever started it."""
        ours = np.ones(800 << 20, np.uint8)
        built = order(make_job(tmp_path), lambda _: None)
        assert isinstance(built, Built)
        assert 50e6 < built.peak_bytes < len(ours)

    def test_the_bundle_itself_stays_as_it_was(self, with_engine: Path, tiny_bundle: Path) -> None:
        def bundle_files(root: Path) -> dict[str, bytes]:
            return {name: (root / name).read_bytes() for name in names(root) if (root / name).is_file()}

        before, after = bundle_files(tiny_bundle), bundle_files(with_engine)
        assert {name: after[name] for name in before} == before
        Bundle.open(with_engine).check_files()

    def test_profiles_and_compute_capabilities(self, bundle_copy: Path) -> None:
        options = EngineOptions(
            engine="rtx",
            compute_capabilities=("sm86", "sm120"),
            profiles=("batch=1:2:4,seq=8", "batch=1:8:32"),
            tf32=True,
        )
        steps: list[str] = []
        record = build_engine(Bundle.open(bundle_copy), options, progress=steps.append).record
        assert record.compute_capabilities == ("sm86", "sm120")
        assert [str(profile.sizes["seq"]) for profile in record.profiles] == ["8:8:8", "1:40:40"]
        assert record.tf32
        assert steps[0] == "lower it for TensorRT"
        assert any(MIDDLE in step for step in steps)

    @pytest.mark.slow
    def test_every_kind_of_slot_in_half_precision(self, tiny_classifier: Path, tmp_path: Path) -> None:
        kinds = ("lora", "bias", "scale", "bottleneck", "head")
        options = BuildOptions(slots=kinds, dtype="fp16")
        bundle = build_model(str(tiny_classifier), tmp_path / "b", options=options).bundle
        record = build_engine(bundle, EngineOptions(compute_capabilities=("sm89",))).record
        assert set(record.profiles[0].sizes) == {"batch", "seq", "rows", "rank", "width", "labels", "mid"}
        assert {tensor.dtype for tensor in record.inputs} == {"int64", "fp16"}

    @pytest.mark.parametrize(("form", "room"), [("copied", "8:32:40"), ("in-place", "40:40:40")])
    def test_a_decoder(self, decoder: Bundle, form: CacheForm, room: str) -> None:
        options = EngineOptions(
            profiles=("batch=1:2:4,seq=1,room=8:32:40", "batch=1:1:4,seq=1:8:16,room=8:32:40"), caches=form
        )
        record = build_engine(decoder, options).record
        assert record.caches == form
        assert [str(profile.sizes["room"]) for profile in record.profiles] == [room] * 2
        assert record.inputs == engine_inputs(decoder.manifest)
        assert record.outputs == graph_outputs(decoder.manifest)

    def test_measured_times_are_kept_in_a_file(self, tmp_path: Path) -> None:
        """TensorRT-RTX takes such a file too, and does nothing with it."""
        job = make_job(tmp_path, timing=str(tmp_path / "timing.cache"))
        assert isinstance(order(job, lambda _: None), Built)
        kept = (tmp_path / "timing.cache").read_bytes()
        assert kept
        (tmp_path / "timing.cache").write_bytes(b"no cache at all" + kept)
        assert isinstance(order(job, lambda _: None), Built)


class TestRefused:
    def test_a_gpu_that_the_builder_does_not_know(self, bundle_copy: Path) -> None:
        options = EngineOptions(engine="rtx", compute_capabilities=("sm86", "sm90", "sm10"))
        for call in (lambda: check_tool(options), lambda: build_engine(Bundle.open(bundle_copy), options)):
            with pytest.raises(BuildError, match="sm120") as caught:
                call()
            subjects = [problem.subject for problem in caught.value.problems]
            assert subjects == ["--compute-capability sm90", "--compute-capability sm10"]
        assert not (bundle_copy / "engines").exists()

    def test_float32_on_turing(self, bundle_copy: Path) -> None:
        with pytest.raises(BuildError, match="no float32 products") as caught:
            build_engine(Bundle.open(bundle_copy), EngineOptions(compute_capabilities=("sm75",)))
        assert "--dtype fp16" in caught.value.problems[0].mend
        assert len(caught.value.problems) == 1
        assert not (bundle_copy / "engines").exists()

    def test_too_little_scratch_memory(self, bundle_copy: Path) -> None:
        with pytest.raises(BuildError, match="larger --memory-limit"):
            build_engine(Bundle.open(bundle_copy), EngineOptions(memory_limit=1000))

    def test_a_profile_that_is_none_of_the_bundle(self, bundle_copy: Path) -> None:
        options = EngineOptions(profiles=("seq=1:2:4000,labels=3", "rank=3:2:1"))
        with pytest.raises(RequestError) as caught:
            build_engine(Bundle.open(bundle_copy), options)
        assert len(caught.value.problems) == 3

    def test_in_place_without_caches(self, bundle_copy: Path) -> None:
        with pytest.raises(BuildError, match="--in-place"):
            build_engine(Bundle.open(bundle_copy), EngineOptions(caches="in-place"))

    def test_a_profile_that_the_network_refuses(self, tmp_path: Path) -> None:
        """Two sizes that are added to one another, and are never the same."""
        sizes = {"n": Range(min=2, opt=2, max=2), "m": Range(min=3, opt=3, max=3)}
        job = make_job(tmp_path, profiles=(Profile(sizes=sizes),), second="m")
        with pytest.raises(BuildError, match="TensorRT") as caught:
            order(job, lambda _: None)
        assert not any("catchCudaError" in problem.got for problem in caught.value.problems)

    def test_inputs_and_outputs_that_differ_are_all_named(self, tmp_path: Path) -> None:
        job = make_job(
            tmp_path,
            inputs=(
                Tensor(name="left", dtype="fp16", shape=("n", 4)),
                Tensor(name="right", dtype="fp32", shape=("n", 5)),
                Tensor(name="third", dtype="fp32", shape=("n",)),
            ),
            outputs=(Tensor(name="total", dtype="fp32", shape=("n",)),),
        )
        with pytest.raises(BuildError) as caught:
            order(job, lambda _: None)
        assert {(problem.subject, problem.code) for problem in caught.value.problems} == {
            ("left", Code.WRONG_DTYPE),
            ("right", Code.WRONG_SHAPE),
            ("third", Code.ABSENT),
            ("sum", Code.UNKNOWN_TENSOR),
            ("total", Code.ABSENT),
        }

    def test_a_ragged_size_that_is_fixed_in_the_graph(self, tmp_path: Path) -> None:
        ragged = (Tensor(name="left", dtype="fp32", shape=("n", "m")), make_tensor("right"))
        with pytest.raises(BuildError, match=r"left: got \[\?, 4\], expected fp32 \[n, m\]"):
            order(make_job(tmp_path, inputs=ragged), lambda _: None)

    def test_an_operator_that_tensorrt_does_not_know(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match="BiasGelu odd"):
            order(make_job(tmp_path, operator="BiasGelu", domain="com.microsoft"), lambda _: None)

    def test_caches_in_place_have_one_room(self, decoder: Bundle) -> None:
        options = EngineOptions(profiles=("room=1:8:40,seq=8", "room=32,seq=8"), caches="in-place")
        with pytest.raises(BuildError, match="got profiles of room 32, 40, expected one room"):
            build_engine(decoder, options)

    def test_a_trace_that_computes_something_else(self, bundle_copy: Path) -> None:
        """The graph is compared with what torch computed before an engine is made of it."""
        tensors = load_file(bundle_copy / "reference.safetensors")
        wrong = {name: value + 1 if ".output." in name else value for name, value in tensors.items()}
        size = (bundle_copy / "reference.safetensors").stat().st_size
        metadata = dict(peek_metadata(bundle_copy / "reference.safetensors"))
        save_file(wrong, bundle_copy / "reference.safetensors", metadata)
        assert (bundle_copy / "reference.safetensors").stat().st_size == size
        with pytest.raises(BuildError) as caught:
            build_engine(Bundle.open(bundle_copy))
        assert caught.value.codes == {Code.PARITY}
        assert not (bundle_copy / "engines").exists()
        asked = BuildOptions(tolerance=10)
        build_engine(Bundle.open(bundle_copy), EngineOptions(profiles=("seq=8",)), asked=asked)
