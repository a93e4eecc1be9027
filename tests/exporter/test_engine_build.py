"""Engines: what is built ahead of time, what is refused, and faults of the builder that stay its own."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from adexport.build import build_model, lower_again
from adexport.options import BuildOptions, EngineOptions
from adexport.tensorrt.builder import add_engine, build_engine, check_tool
from adexport.tensorrt.child import order
from adexport.tensorrt.device import present_device
from adexport.tensorrt.messages import Built, Job, Probe, Probed
from adexport.tensorrt.tool import TOOLS, capability_problems, find_tool
from adexport_runtime.bundle import Bundle
from adexport_runtime.engine_file import CacheForm, EngineFile, engine_folder, engine_targets
from adexport_runtime.errors import BuildError, Code, DependencyError, RequestError
from adexport_runtime.graph_io import Tensor, engine_inputs, graph_outputs
from adexport_runtime.profiles import Profile, Range, default_profiles
from adexport_runtime.tensors import peek_metadata

from .generators import GENERATORS, make_tenants

RTX = "tensorrt_rtx"
MIDDLE = "Optimizing graph"


@pytest.fixture(scope="module")
def with_engine(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("engines") / "tiny.bundle"
    shutil.copytree(tiny_bundle, target)
    build_engine(Bundle.open(target))
    return target


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny Llama; engines come and go in it."""
    folder = tmp_path_factory.mktemp("decoder")
    tenants = make_tenants(GENERATORS["Llama, wide"], folder, adapters=0)
    return build_model(str(tenants.model), folder / "d", options=BuildOptions(max_rank=8)).bundle


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def children() -> list[int]:
    """The processes that this one started."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def at(step: str, act: Callable[[], None]) -> Callable[[str], None]:
    """A progress that acts at a step, once."""
    left = [act]

    def progress(name: str) -> None:
        if step in name and left:
            left.pop()()

    return progress


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
        built = order(_job(tmp_path), lambda _: None)
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
        job = _job(tmp_path, timing=str(tmp_path / "timing.cache"))
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
        job = _job(tmp_path, profiles=(Profile(sizes=sizes),), second="m")
        with pytest.raises(BuildError, match="TensorRT") as caught:
            order(job, lambda _: None)
        assert not any("catchCudaError" in problem.got for problem in caught.value.problems)

    def test_inputs_and_outputs_that_differ_are_all_named(self, tmp_path: Path) -> None:
        job = _job(
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
        ragged = (Tensor(name="left", dtype="fp32", shape=("n", "m")), _tensor("right"))
        with pytest.raises(BuildError, match=r"left: got \[\?, 4\], expected fp32 \[n, m\]"):
            order(_job(tmp_path, inputs=ragged), lambda _: None)

    def test_an_operator_that_tensorrt_does_not_know(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match="BiasGelu odd"):
            order(_job(tmp_path, operator="BiasGelu", domain="com.microsoft"), lambda _: None)

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
        build_engine(Bundle.open(bundle_copy), EngineOptions(profiles=("seq=8",)), tolerance=10)


class TestFaults:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_a_builder_that_dies_is_an_error_of_ours(
        self, with_engine: Path, number: signal.Signals
    ) -> None:
        folder = engine_folder(with_engine, "tensorrt-rtx")
        before = {name: (folder / name).read_bytes() for name in names(folder)}
        seen: list[int] = []

        def kill() -> None:
            seen.extend(children())
            os.kill(seen[-1], number)

        with pytest.raises(BuildError, match=f"signal {number.name}") as caught:
            build_engine(Bundle.open(with_engine), progress=at(MIDDLE, kill))
        assert ("for want of memory" in str(caught.value)) == (number == signal.SIGKILL)
        assert "it said last" in str(caught.value)
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before
        assert [path.name for path in folder.parent.iterdir()] == ["tensorrt-rtx"]

    def test_an_interrupt_leaves_nothing(self, bundle_copy: Path) -> None:
        before = names(bundle_copy)
        seen: list[int] = []

        def interrupt() -> None:
            seen.extend(children())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_engine(Bundle.open(bundle_copy), progress=at(MIDDLE, interrupt))
        assert names(bundle_copy) == before
        assert seen
        assert not set(seen) & set(children())

    def test_the_builder_goes_when_whoever_started_it_is_gone(self, bundle_copy: Path) -> None:
        script = f"""
import pathlib, sys
from adexport.tensorrt.builder import build_engine
from adexport_runtime.bundle import Bundle
def progress(name):
    if {MIDDLE!r} in name:
        tasks = pathlib.Path("/proc/self/task").glob("*/children")
        print(*[pid for task in tasks for pid in task.read_text().split()], flush=True)
        sys.stdin.read()
build_engine(Bundle.open({str(bundle_copy)!r}), progress=progress)
"""
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            pid = parent.stdout.readline().split()[-1]
            assert Path("/proc", pid).exists()
            parent.kill()
        assert any(_wait_until(lambda: not _runs(pid)))

    def test_a_fault_in_python_is_told_with_its_last_lines(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match=r"exit code 1; it said last: .*TypeError"):
            order(_job(tmp_path, memory_limit=2**70), lambda _: None)

    @pytest.mark.parametrize("step", ["lower it", "parse the graph"])
    def test_a_bundle_that_is_replaced_meanwhile(self, bundle_copy: Path, step: str) -> None:
        """The engine would be one of the graph before, and could say that it is one of this."""
        again = at(step, lambda: lower_again(bundle_copy, options=BuildOptions(max_rank=4)) and None)
        with pytest.raises(BuildError, match="lowered again") as caught:
            build_engine(Bundle.open(bundle_copy), progress=again)
        assert caught.value.codes == {Code.WRONG_BASE}
        assert not (bundle_copy / "engines").exists()
        lower_again(bundle_copy, options=BuildOptions(max_rank=8))
        bundle = Bundle.open(bundle_copy)
        lower_again(bundle_copy, options=BuildOptions(max_rank=4))  # before the engine's folder is made
        with pytest.raises(BuildError, match="lowered again"):
            build_engine(bundle, EngineOptions(profiles=("seq=8,rank=4",)))
        assert not (bundle_copy / "engines").exists()

    @pytest.mark.parametrize("linked", ["engines", "engines/tensorrt-rtx"])
    def test_a_link_out_of_the_bundle_is_not_followed(
        self, bundle_copy: Path, tmp_path: Path, linked: str
    ) -> None:
        """A bundle may come from anyone: what it points to is not its own to replace."""
        precious = tmp_path / "precious"
        (precious / "tensorrt-rtx").mkdir(parents=True)
        for folder in (precious, precious / "tensorrt-rtx"):
            (folder / "engine.json").write_text("gold")
        (bundle_copy / linked).parent.mkdir(exist_ok=True)
        (bundle_copy / linked).symlink_to(precious)
        with pytest.raises(BuildError, match=f"a link to {precious}") as caught:
            build_engine(Bundle.open(bundle_copy))
        assert caught.value.codes == {Code.EXISTS}
        assert names(precious) == ["engine.json", "tensorrt-rtx", "tensorrt-rtx/engine.json"]

    @pytest.mark.parametrize("place", ["engines", "engines/tensorrt-rtx", "engines/tensorrt-rtx/gold.txt"])
    def test_what_is_no_engine_is_not_replaced(self, bundle_copy: Path, place: str) -> None:
        (bundle_copy / place).parent.mkdir(parents=True, exist_ok=True)
        (bundle_copy / place).write_text("gold")
        before = names(bundle_copy)
        with pytest.raises(BuildError) as caught:
            build_engine(Bundle.open(bundle_copy))
        assert caught.value.codes == {Code.EXISTS}
        assert names(bundle_copy) == before
        add_engine(bundle_copy, bundle_copy.with_name("copy"), options=EngineOptions(profiles=("seq=8",)))

    def test_a_bundle_that_is_reached_through_a_link(self, bundle_copy: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(bundle_copy)
        add_engine(link, options=EngineOptions(profiles=("seq=8",)))
        assert link.is_symlink()
        assert engine_targets(bundle_copy) == ("tensorrt-rtx",)

    def test_a_full_disk_for_the_plan(self, tmp_path: Path) -> None:
        """Said by the process that builds: it is no fault of the builder."""
        with pytest.raises(BuildError, match=r"/dev/full: got No space left .*make room") as caught:
            order(_job(tmp_path, plan="/dev/full"), lambda _: None)
        assert "a fault" not in str(caught.value)

    @pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
    def test_a_disk_that_takes_nothing(
        self, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refuse(path: Path, *_arguments: Any, **_options: Any) -> None:
            raise OSError(number, os.strerror(number), str(path))

        before = names(tmp_path)
        monkeypatch.setattr(Path, "mkdir", refuse)
        for output in (None, tmp_path / "copy.bundle"):
            with pytest.raises(BuildError, match=os.strerror(number)):
                add_engine(bundle_copy, output)
        assert names(tmp_path) == before
        assert not (bundle_copy / "engines").exists()

    def test_modules_of_the_working_directory_are_not_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in (RTX, "pydantic", "resource"):
            (tmp_path / f"{name}.py").write_text("raise ImportError('of the working directory')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
        assert isinstance(order(Probe(module=RTX, device=False), lambda _: None), Probed)

    def test_a_package_that_does_not_load(self, tmp_path: Path) -> None:
        (tmp_path / "broken_builder.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
        sys.path.insert(0, str(tmp_path))
        try:
            with pytest.raises(DependencyError, match=r"libnvinfer\.so\.10"):
                order(Probe(module="broken_builder", device=False), lambda _: None)
        finally:
            sys.path.remove(str(tmp_path))


class TestTool:
    def test_what_the_builder_says_of_itself(self) -> None:
        answer = order(Probe(module=RTX, device=False), lambda _: None)
        assert isinstance(answer, Probed)
        assert {"sm80", "sm86", "sm89", "sm120"} <= set(answer.capabilities)
        assert answer.version[0] == "1"

    @pytest.mark.parametrize(
        ("installed", "asked", "found"),
        [
            ({RTX, "tensorrt"}, None, "tensorrt-rtx"),
            ({"tensorrt"}, None, "tensorrt"),
            ({RTX, "tensorrt"}, "tensorrt", "tensorrt"),
            ({"tensorrt"}, "rtx", "adexport[tensorrt-rtx]"),
            ({RTX}, "tensorrt", "adexport[tensorrt]"),
            (set(), None, "adexport[tensorrt]"),
        ],
    )
    def test_which_is_taken(
        self, monkeypatch: pytest.MonkeyPatch, installed: set[str], asked: str | None, found: str
    ) -> None:
        monkeypatch.setattr(
            "adexport.tensorrt.tool.find_spec", lambda name: name if name in installed else None
        )
        if not found.startswith("adexport"):
            assert find_tool(asked).target == found
            return
        with pytest.raises(DependencyError) as caught:
            find_tool(asked)
        assert caught.value.codes == {Code.PACKAGE_MISSING}
        assert found in caught.value.problems[0].mend

    def test_tensorrt_builds_for_the_gpu_at_hand_alone(self) -> None:
        assert capability_problems(("sm90",), TOOLS[1], (), "sm90") == []
        (problem,) = capability_problems(("sm86", "sm90"), TOOLS[1], (), "sm90")
        assert "sm86" in problem.subject
        assert problem.expected.startswith("sm90")
        assert "--engine rtx" in problem.mend

    def test_the_gpu_at_hand(self) -> None:
        assert present_device(_driver(0, 0)) == "sm89"

    @pytest.mark.parametrize(("init", "get"), [(100, 0), (0, 101)])
    def test_no_gpu(self, init: int, get: int) -> None:
        with pytest.raises(DependencyError, match="there is none to use: the GPU: got NO_DEVICE"):
            present_device(_driver(init, get))

    def test_no_driver(self) -> None:
        def lost(_flags: int) -> None:
            raise RuntimeError("no libcuda here")

        with pytest.raises(DependencyError, match=r"libcuda\.so\.1: got no libcuda here"):
            present_device(SimpleNamespace(cuInit=lost))

    def test_a_gpu_that_must_be_there_is_looked_for(self) -> None:
        """In the process that builds: it has a compute capability, or an error of ours says why not."""
        try:
            answer = order(Probe(module=RTX, device=True), lambda _: None)
        except DependencyError as error:
            assert error.codes == {Code.PACKAGE_MISSING}
        else:
            assert isinstance(answer, Probed)
            assert answer.device is not None


def _driver(init: int, get: int) -> Any:
    """The driver's bindings, as far as they are asked."""
    result = SimpleNamespace(CUDA_SUCCESS=0)
    attributes = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=9
    )

    def status(code: int) -> Any:
        return 0 if code == 0 else SimpleNamespace(name="NO_DEVICE")

    return SimpleNamespace(
        CUresult=result,
        CUdevice_attribute=attributes,
        cuInit=lambda _flags: (status(init),),
        cuDeviceGet=lambda _index: (status(get), 0),
        cuDeviceGetAttribute=lambda attribute, _device: (0, attribute),
    )


def _tensor(name: str, size: str = "n") -> Tensor:
    return Tensor(name=name, dtype="fp32", shape=(size, 4))


def _job(folder: Path, second: str = "n", operator: str = "Add", domain: str = "", **changes: Any) -> Job:
    """A job with a graph that adds ``left`` and ``right``."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, 4])
              for name, size in (("left", "n"), ("right", second))]  # fmt: skip
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node(operator, ["left", "right"], ["sum"], name="odd", domain=domain)
    graph = helper.make_graph([node], "adder", inputs, [output])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "g.onnx")
    job: dict[str, Any] = {
        "module": RTX,
        "graph": str(folder / "g.onnx"),
        "plan": str(folder / "g.plan"),
        "inputs": (_tensor("left"), _tensor("right", second)),
        "outputs": (_tensor("sum"),),
        "profiles": (Profile(sizes={"n": Range(min=1, opt=2, max=8), "m": Range(min=1, opt=2, max=8)}),),
        "compute_capabilities": (),
        "memory_limit": None,
        "tf32": False,
        "timing": None,
    }
    return Job(**job | changes)


def _runs(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(done: Callable[[], bool]) -> Iterator[bool]:
    for _ in range(600):
        yield done()
        time.sleep(0.05)
