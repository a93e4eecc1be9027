"""Opening an engine: which one, with which package, and what is said where a part is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adexport_runtime import Bundle, BundleError, Code, Engine, ProviderError, RequestError
from adexport_runtime.backends.tensorrt import loader, opener
from adexport_runtime.backends.tensorrt.kernel_cache import kernel_file
from adexport_runtime.backends.tensorrt.loader import PACKAGES, load_engine
from adexport_runtime.engine_file import PLAN_FILE, RECORD_FILE, EngineFile, engine_folder, engine_targets

from .simulated_engine import record_of

#: a network of one layer
BUILD = """
import sys
import tensorrt_rtx as trt
log = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(log)
network = builder.create_network()
given = network.add_input("x", trt.float32, (1, 4))
layer = network.add_activation(given, trt.ActivationType.RELU)
network.mark_output(layer.get_output(0))
plan = builder.build_serialized_network(network, builder.create_builder_config())
open(sys.argv[1], "wb").write(plan)
"""


def put_engine(root: Path, plan: bytes, target: str = "tensorrt-rtx", **changes: Any) -> EngineFile:
    """An engine beside a bundle, whatever is in its plan."""
    bundle = Bundle.open(root)
    folder = engine_folder(root, target)
    folder.mkdir(parents=True)
    (folder / PLAN_FILE).write_bytes(plan)
    record = record_of(bundle)
    file = record.plan.model_copy(update={"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()})
    record = record.model_copy(update={"plan": file, "target": target, **changes})
    (folder / RECORD_FILE).write_text(record.model_dump_json(), encoding="utf-8")
    return EngineFile.open(bundle, target)


def have(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let these packages, and no other, look installed."""
    monkeypatch.setattr(loader, "find_spec", lambda name: name if name in modules else None)


def refused(root: Path) -> Any:
    with pytest.raises(ProviderError) as caught:
        Engine.open(root, provider="tensorrt")
    (problem,) = caught.value.problems
    return problem


class TestChoice:
    def test_a_bundle_without_an_engine(self, tiny_bundle: Path) -> None:
        with pytest.raises(BundleError) as caught:
            Engine.open(tiny_bundle, provider="tensorrt")
        assert caught.value.codes == {Code.ABSENT}
        assert "adexport build BUNDLE --target tensorrt" in str(caught.value)

    def test_the_package_of_no_engine_is_here(
        self, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_engine(bundle_copy, b"plan")
        have(monkeypatch, "tensorrt")
        problem = refused(bundle_copy)
        assert (problem.code, problem.subject) == (Code.PACKAGE_MISSING, "tensorrt_rtx")
        assert problem.mend == "pip install tensorrt-rtx-cu13"
        put_engine(bundle_copy, b"plan", "tensorrt")
        have(monkeypatch)
        with pytest.raises(ProviderError) as caught:
            Engine.open(bundle_copy, provider="tensorrt")
        assert [problem.subject for problem in caught.value.problems] == ["tensorrt_rtx", "tensorrt"]

    @pytest.mark.parametrize(
        ("modules", "expected"),
        [
            (("tensorrt_rtx", "tensorrt"), "tensorrt-rtx"),
            (("tensorrt",), "tensorrt"),
            (("tensorrt_rtx",), "tensorrt-rtx"),
        ],
    )
    def test_the_engine_whose_package_is_here(
        self, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...], expected: str
    ) -> None:
        for target in PACKAGES:
            put_engine(bundle_copy, b"plan", target)
        have(monkeypatch, *modules)
        assert opener.choose_target(Bundle.open(bundle_copy)) == expected

    def test_an_engine_of_another_bundle(self, bundle_copy: Path, fp16_bundle: Path) -> None:
        put_engine(bundle_copy, b"plan")
        other = bundle_copy.parent / "other.bundle"
        shutil.copytree(fp16_bundle, other)
        shutil.copytree(bundle_copy / "engines", other / "engines")
        with pytest.raises(BundleError) as caught:
            Engine.open(other, provider="tensorrt")
        assert caught.value.codes == {Code.WRONG_BASE}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX")
class TestARealEngine:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> bytes:
        path = tmp_path / PLAN_FILE
        subprocess.run([sys.executable, "-c", BUILD, str(path)], check=True)
        return path.read_bytes()

    @pytest.fixture(autouse=True)
    def no_driver(self) -> None:
        from adexport_runtime.backends.cuda import CudaDevice

        try:
            CudaDevice()
        except ProviderError:
            return
        pytest.skip("needs a machine without a GPU")

    def test_without_a_driver_the_driver_is_named(self, bundle_copy: Path, plan: bytes) -> None:
        put_engine(bundle_copy, plan)
        problem = refused(bundle_copy)
        assert problem.code == Code.PROVIDER_UNAVAILABLE
        assert problem.subject == "libcuda.so.1"

    def test_what_tensorrt_says_of_an_engine_is_passed_on(self, bundle_copy: Path, plan: bytes) -> None:
        import tensorrt_rtx

        file = put_engine(bundle_copy, plan, tool_version=tensorrt_rtx.__version__)
        with pytest.raises(ProviderError) as caught:
            load_engine(file, "sm89")
        (problem,) = caught.value.problems
        assert problem.subject == str(file.plan_path)
        assert "CUDA" in problem.got
        assert f"TensorRT-RTX {tensorrt_rtx.__version__} for sm89" in problem.expected


class Kernels:
    """A stand-in for a runtime cache: takes what it gave, and has compiled a kernel since."""

    def __init__(self) -> None:
        self.read: bytes | None = None

    def deserialize(self, kept: bytes) -> bool:
        self.read = kept
        return kept.startswith(b"kernels")

    def serialize(self) -> bytes:
        return self.read or b"kernels: one"


class Stand:
    """A stand-in for ``tensorrt_rtx``: notes calls, and refuses what it is told to."""

    def __init__(self, *refuse: str, deserializes: bool = True) -> None:
        self.refuse, self.deserializes = refuse, deserializes
        self.calls: list[tuple[Any, ...]] = []
        self.log: Any = None
        self.caches: list[Kernels] = []

    def kernels(self) -> Kernels:
        self.caches.append(Kernels())
        return self.caches[-1]

    def module(self) -> ModuleType:
        stand = self

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

        class Context:
            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (2, -1) if "get_tensor_shape" in stand.refuse else (2, 3)

            def __getattr__(self, function: str) -> Any:
                def call(*arguments: Any) -> bool:
                    stand.calls.append((function, *arguments))
                    if function in stand.refuse:
                        stand.log.log(ILogger.Severity.INFO, "chatter")
                        stand.log.log(ILogger.Severity.ERROR, f" {function} is not liked\n")
                    return function not in stand.refuse

                return call

        class CudaEngine:
            num_io_tensors = 3

            def get_tensor_name(self, index: int) -> str:
                return ("x", "y", "z")[index]

            def get_tensor_mode(self, name: str) -> str:
                return "in" if name != "z" else "out"

            def create_runtime_config(self) -> Any:
                def set_runtime_cache(cache: Any) -> bool:
                    config.cache = cache
                    return True

                config = SimpleNamespace(
                    cache=None, create_runtime_cache=stand.kernels, set_runtime_cache=set_runtime_cache
                )
                return config

            def create_execution_context(self, *, runtime_config: Any) -> Context | None:
                assert isinstance(runtime_config.cache, Kernels)
                return None if "create_execution_context" in stand.refuse else Context()

        class Runtime:
            def __init__(self, log: Any) -> None:
                stand.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
                stand.calls.append(("deserialize_cuda_engine", plan))
                return CudaEngine() if stand.deserializes else None

        made = ModuleType("tensorrt_rtx")
        made.__dict__.update(
            ILogger=ILogger,
            Runtime=Runtime,
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            __version__="1.2.3",
        )
        return made

    def load(
        self,
        monkeypatch: pytest.MonkeyPatch,
        file: EngineFile,
        capability: str = "sm89",
        kernels: Path | None = None,
    ) -> Any:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", self.module())
        return load_engine(file, capability, kernels)


class TestTheLibrary:
    @pytest.fixture
    def file(self, bundle_copy: Path) -> EngineFile:
        return put_engine(bundle_copy, b"plan", tool_version="1.2.3", compute_capabilities=("sm86", "sm89"))

    def test_what_is_asked_of_it(self, monkeypatch: pytest.MonkeyPatch, file: EngineFile) -> None:
        stand = Stand()
        engine = stand.load(monkeypatch, file)
        assert engine.name == "TensorRT-RTX 1.2.3"
        assert (engine.inputs, engine.outputs) == (("x", "y"), ("z",))
        context = engine.context()
        context.set_profile(1, 77)
        context.set_shape("x", (2, 3))
        context.set_address("x", 4096)
        assert context.output_shape("z") == (2, 3)
        context.execute(77)
        engine.close()
        assert stand.calls == [
            ("deserialize_cuda_engine", b"plan"),
            ("set_optimization_profile_async", 1, 77),
            ("set_input_shape", "x", (2, 3)),
            ("set_tensor_address", "x", 4096),
            ("execute_async_v3", 77),
        ]

    @pytest.mark.parametrize(
        ("function", "call"),
        [
            ("set_optimization_profile_async", lambda context: context.set_profile(0, 77)),
            ("set_input_shape", lambda context: context.set_shape("x", (2, 3))),
            ("set_tensor_address", lambda context: context.set_address("x", 4096)),
            ("get_tensor_shape", lambda context: context.output_shape("z")),
            ("execute_async_v3", lambda context: context.execute(77)),
        ],
    )
    def test_every_refusal_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, file: EngineFile, function: str, call: Any
    ) -> None:
        context = Stand(function).load(monkeypatch, file).context()
        with pytest.raises(RequestError) as caught:
            call(context)
        (problem,) = caught.value.problems
        assert problem.code == Code.RUN_FAILED
        assert function in problem.got
        if function != "get_tensor_shape":  # of that, nothing is logged
            assert problem.got == f"{function}: {function} is not liked"

    def test_compiled_kernels_are_kept_from_process_to_process(
        self, monkeypatch: pytest.MonkeyPatch, file: EngineFile, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kernels.bin"
        for known in (None, b"kernels: one"):
            stand = Stand()
            engine = stand.load(monkeypatch, file, kernels=kept)
            engine.context()
            engine.close()
            assert [cache.read for cache in stand.caches] == [known]
            assert kept.read_bytes() == b"kernels: one"
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".bundle"] == ["kernels.bin"]

    def test_where_they_are_kept(self, bundle_copy: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(bundle_copy)
        one, other = (put_engine(bundle_copy, b"plan", target) for target in PACKAGES)
        name = f"{hashlib.sha256(b'plan').hexdigest()[:16]}.bin"
        assert kernel_file(bundle, one, None) == bundle_copy / "engines" / "kernels" / name
        assert kernel_file(bundle, one, tmp_path / "chosen") == tmp_path / "chosen" / "kernels" / name
        assert kernel_file(bundle, other, None) is None
        (tmp_path / "taken").write_bytes(b"")
        for file, cache in ((one, tmp_path / "taken"), (other, tmp_path / "chosen")):
            with pytest.raises(RequestError) as caught:
                kernel_file(bundle, file, cache)
            assert [problem.subject for problem in caught.value.problems] == ["cache"]
        assert engine_targets(bundle_copy) == tuple(sorted(PACKAGES))

    def test_kernels_that_cannot_be_kept_are_no_fault(
        self, monkeypatch: pytest.MonkeyPatch, file: EngineFile, tmp_path: Path
    ) -> None:
        (tmp_path / "gone").mkdir()
        engine = Stand().load(monkeypatch, file, kernels=tmp_path / "gone" / "kernels.bin")
        (tmp_path / "gone").rmdir()
        engine.close()
        assert not (tmp_path / "gone").exists()

    def test_a_context_that_is_closed_is_let_go(
        self, monkeypatch: pytest.MonkeyPatch, file: EngineFile
    ) -> None:
        context = Stand().load(monkeypatch, file).context()
        native = weakref.ref(context._context)
        context.close()
        assert native() is None

    def test_no_memory_for_a_context(self, monkeypatch: pytest.MonkeyPatch, file: EngineFile) -> None:
        engine = Stand("create_execution_context").load(monkeypatch, file)
        with pytest.raises(MemoryError):
            engine.context()

    @pytest.mark.parametrize(
        ("changes", "capability", "cause"),
        [
            ({"tool_version": "1.0.0"}, "sm89", "built with 1.0.0"),
            ({}, "sm120", "built for sm86, sm89"),
            ({}, "sm89", "driver too old"),
            ({"compute_capabilities": ()}, "sm120", "driver too old"),
        ],
    )
    def test_an_engine_that_it_does_not_take(
        self,
        monkeypatch: pytest.MonkeyPatch,
        file: EngineFile,
        changes: dict[str, Any],
        capability: str,
        cause: str,
    ) -> None:
        other = EngineFile(file.folder, file.record.model_copy(update=changes))
        with pytest.raises(ProviderError) as caught:
            Stand(deserializes=False).load(monkeypatch, other, capability)
        (problem,) = caught.value.problems
        assert problem.code == Code.PROVIDER_UNAVAILABLE
        assert cause in problem.cause
        assert problem.got == "no word why"

    def test_a_package_that_does_not_import(
        self, monkeypatch: pytest.MonkeyPatch, file: EngineFile
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        with pytest.raises(ProviderError) as caught:
            load_engine(file, "sm89")
        assert caught.value.codes == {Code.PACKAGE_MISSING}

    def test_the_real_package_has_all_that_is_called(self) -> None:
        trt = pytest.importorskip("tensorrt_rtx")
        for owner, names in (
            (trt.Runtime, ("deserialize_cuda_engine",)),
            (
                trt.ICudaEngine,
                ("create_execution_context", "get_tensor_mode", "get_tensor_name", "num_io_tensors"),
            ),
            (
                trt.IExecutionContext,
                (
                    *("set_optimization_profile_async", "set_input_shape", "set_tensor_address"),
                    *("get_tensor_shape", "execute_async_v3"),
                ),
            ),
            (trt.TensorIOMode, ("INPUT", "OUTPUT")),
        ):
            for name in names:
                assert hasattr(owner, name), name
        log = loader._make_log(trt)
        log.log(trt.ILogger.Severity.ERROR, "heard")
        log.log(trt.ILogger.Severity.VERBOSE, "unheard")
        assert log.take() == "heard"
        assert log.take() == ""
        assert isinstance(log, trt.ILogger)
