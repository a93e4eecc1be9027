"""Engines by ``tensorrt_rtx`` or ``tensorrt``: two packages with one interface."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ...engine_file import EngineFile
from ...errors import Code, Problem, ProviderError, RequestError
from .kernel_cache import KernelCache, compiles


class Package(NamedTuple):
    """What runs the engines of a target."""

    module: str
    title: str
    install: str


#: target -> its package, the preferred one first
PACKAGES = {
    "tensorrt-rtx": Package("tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx-cu13"),
    "tensorrt": Package("tensorrt", "TensorRT", "tensorrt"),
}

#: how many of the library's messages are kept for an error
_MESSAGES = 8


def installed(target: str) -> bool:
    """Whether the package of a target is there."""
    return find_spec(PACKAGES[target].module) is not None


def load_engine(file: EngineFile, compute_capability: str, kernels: Path | None = None) -> TensorRTEngine:
    """Deserialize an engine.

    Args:
        file: the engine in the bundle.
        compute_capability: of the GPU (``sm89``), for an error's cause.
        kernels: where TensorRT-RTX keeps what it compiles; None: nowhere.

    Raises:
        ProviderError: its package cannot be imported, or TensorRT does not take the engine.
    """
    package = PACKAGES[file.record.target]
    try:
        trt = import_module(package.module)
    except Exception as error:  # a library of its that is missing shows in many ways
        raise ProviderError(
            f"{package.title} is not to be had",
            Problem(
                Code.PACKAGE_MISSING,
                package.module,
                got=f"{type(error).__name__}: {error}",
                mend=f"pip install {package.install}",
            ),
        ) from error
    log = _make_log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(file.plan_path.read_bytes())
    if engine is None:
        raise ProviderError(
            f"{package.title} {trt.__version__} does not take the engine",
            Problem(
                Code.PROVIDER_UNAVAILABLE,
                str(file.plan_path),
                got=log.take() or "no word why",
                expected=f"an engine of {package.title} {trt.__version__} for {compute_capability}",
                cause=_cause(file, trt.__version__, compute_capability),
                mend="adexport build BUNDLE --target tensorrt, with this version and for this GPU",
            ),
        )
    cache = KernelCache(engine, kernels) if compiles(file.record.target) else None
    return TensorRTEngine(trt, f"{package.title} {trt.__version__}", log, runtime, engine, cache)


def _cause(file: EngineFile, version: str, compute_capability: str) -> str:
    record = file.record
    if record.tool_version != version:
        return f"the engine was built with {record.tool_version}"
    if record.compute_capabilities and compute_capability not in record.compute_capabilities:
        return f"the engine was built for {', '.join(record.compute_capabilities)}"
    return "a driver too old for this version, a damaged file, or too little memory"


def _make_log(trt: Any) -> Any:
    """A logger of the library that keeps the last warnings and errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: deque[str] = deque(maxlen=_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.kept.append(message.strip())

        def take(self) -> str:
            """What was logged since the last call."""
            text = "; ".join(self.kept)
            self.kept.clear()
            return text

    return Log()


class TensorRTEngine:
    """See :class:`~adexport_runtime.backends.tensorrt.engines.Executable`."""

    def __init__(
        self, trt: Any, name: str, log: Any, runtime: Any, engine: Any, kernels: KernelCache | None
    ) -> None:
        """Take a deserialized engine, with what must live as long."""
        self.name = name
        self._kernels = kernels
        self._log, self._runtime, self._engine = log, runtime, engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)

    def context(self) -> TensorRTContext:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Executable`."""
        config = {} if self._kernels is None else {"runtime_config": self._kernels.config}
        made = self._engine.create_execution_context(**config)
        if made is None:
            raise MemoryError(f"no context of the engine: {self._log.take()}")
        return TensorRTContext(made, self._log)

    def close(self) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Executable`."""
        if self._kernels is not None:
            self._kernels.save()
            self._kernels = None
        self._engine = None  # before the runtime that it came from
        self._runtime = None


class TensorRTContext:
    """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""

    def __init__(self, context: Any, log: Any) -> None:
        """Take a context, and the logger that says what it refuses."""
        self._context, self._log = context, log

    def set_profile(self, index: int, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        done = self._context.set_optimization_profile_async(index, stream)
        self._check(done, f"profile {index}", "set_optimization_profile_async")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        self._check(self._context.set_input_shape(name, shape), f"{name} {shape}", "set_input_shape")

    def output_shape(self, name: str) -> tuple[int, ...]:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        shape = tuple(self._context.get_tensor_shape(name))
        self._check(all(size >= 0 for size in shape), f"{name} {shape}", "get_tensor_shape")
        return shape

    def set_address(self, name: str, address: int) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        self._check(self._context.set_tensor_address(name, address), name, "set_tensor_address")

    def execute(self, stream: int) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        self._check(self._context.execute_async_v3(stream), "the engine", "execute_async_v3")

    def close(self) -> None:
        """See :class:`~adexport_runtime.backends.tensorrt.engines.Context`."""
        self._context = None

    def _check(self, done: bool, subject: str, function: str) -> None:
        if not done:
            raise RequestError(
                "the run failed",
                Problem(Code.RUN_FAILED, subject, got=f"{function}: {self._log.take() or 'no word why'}"),
            )
