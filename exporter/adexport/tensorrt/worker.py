"""The process that builds: ``python -m adexport.tensorrt.worker``.

An order comes as a line on stdin, messages go as lines on stdout. When stdin ends, whoever ordered is gone,
and so is this process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from adexport_runtime.errors import AdexportError, BuildError, Code, DependencyError, Problem

from .device import present_device
from .disk import disk_errors
from .messages import ORDER, Answer, Built, Job, Message, Probe, Probed, Refused, Said, Step
from .network import check_network, parse_network

Send = Callable[[Message], None]

#: phases of a build that are told: those below these only
_OUTER = ("Building engine", "Building engine from subgraph")
#: what every failure drags behind it where there is no driver: not the reason
_ECHO = "checkMacros.cpp::catchCudaError"


def main() -> None:
    """Serve one order."""
    order = ORDER.validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_stdin, daemon=True).start()
    talk = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what native code prints is no message
    send = _sender(talk)
    warnings.simplefilter("ignore", DeprecationWarning)  # RTX deprecates what TensorRT needs
    answer: Answer
    try:
        answer = _probe(order) if isinstance(order, Probe) else _build(order, send)
    except AdexportError as error:
        answer = Refused(
            headline=error.headline,
            problems=error.problems,
            missing=isinstance(error, DependencyError),
        )
    send(answer)
    sys.stderr.flush()
    os._exit(0)  # the answer stands, whatever native code would do on its way out


def _die_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _sender(stream: BinaryIO) -> Send:
    lock = threading.Lock()  # the builder logs from threads of its own

    def send(message: Message) -> None:
        with lock:
            stream.write(message.model_dump_json().encode() + b"\n")

    return send


def _probe(order: Probe) -> Probed:
    trt = _load(order.module)
    named = getattr(trt, "ComputeCapability", None)  # TensorRT builds for the GPU at hand alone
    names = () if named is None else tuple(name.lower() for name in named.__members__ if name[:2] == "SM")
    device = present_device() if order.device else None
    return Probed(version=str(trt.__version__), capabilities=names, device=device)


def _build(job: Job, send: Send) -> Built:
    trt = _load(job.module)
    began = time.monotonic()
    errors: list[str] = []
    logger = _logger(trt, send, errors)
    send(Step(name="parse the graph"))
    network = parse_network(trt, logger, Path(job.graph))
    check_network(trt, network.definition, job.inputs, job.outputs)
    config = network.builder.create_builder_config()
    _configure(trt, config, job)
    _add_profiles(network.builder, config, job, errors)
    monitor = _monitor(trt, send)
    config.progress_monitor = monitor
    errors.clear()
    engine = network.builder.build_serialized_network(network.definition, config)
    if engine is None:
        raise BuildError("TensorRT could not build the engine", _reasons(errors, job))
    with disk_errors(Path(job.plan)):
        Path(job.plan).write_bytes(memoryview(engine))
        if job.timing is not None:
            Path(job.timing).write_bytes(memoryview(config.get_timing_cache().serialize()))
    return Built(
        version=str(trt.__version__),
        layers=network.layers,
        seconds=round(time.monotonic() - began, 3),
        peak_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    """The most memory that was resident; ``getrusage`` would count that of whoever started the process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _load(module: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise DependencyError(
            f"{module} does not load",
            Problem(
                Code.PACKAGE_MISSING,
                module,
                got=f"{type(error).__name__}: {error}",
                cause="a package without its libraries, or libraries of another system",
                mend="install it anew",
            ),
        ) from error


def _configure(trt: Any, config: Any, job: Job) -> None:
    # the defaults round float32 products to TF32
    (config.set_flag if job.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if job.memory_limit is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.memory_limit)
    if job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
        for index, name in enumerate(job.compute_capabilities):
            config.set_compute_capability(trt.ComputeCapability.__members__[name.upper()], index)
    if job.timing is not None:
        file = Path(job.timing)
        kept = file.read_bytes() if file.exists() else b""
        cache = config.create_timing_cache(kept)
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU or version
            config.set_timing_cache(config.create_timing_cache(b""), False)


def _add_profiles(builder: Any, config: Any, job: Job, errors: list[str]) -> None:
    for profile in job.profiles:
        native = builder.create_optimization_profile()
        for tensor in job.inputs:
            native.set_shape(tensor.name, *profile.shapes(tensor))
        if config.add_optimization_profile(native) < 0:
            raise BuildError(f"TensorRT refuses the profile {profile}", _reasons(errors, job))


def _reasons(errors: list[str], job: Job) -> list[Problem]:
    """What the builder logged, as problems; what is known of it is said."""
    told = [text for text in errors if _ECHO not in text] or errors or ["it gave no reason"]
    problems = []
    for text in dict.fromkeys(told):
        cause, mend = "", ""
        if "SM75" in text and "FP32" in text:
            cause = "Turing GPUs (sm75) have no float32 products in TensorRT-RTX"
            mend = "adexport build BUNDLE --dtype fp16, or leave sm75 out"
        elif "workspace" in text:
            cause = "a layer needs more scratch memory than the limit"
            mend = "a larger --memory-limit, or a --profile of smaller sizes"
        problems.append(Problem(Code.EXPORT_FAILED, job.module, got=text, cause=cause, mend=mend))
    return problems


def _logger(trt: Any, send: Send, errors: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Hands on what is worth reading; keeps errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(text)
            if severity <= trt.ILogger.Severity.INFO:
                send(Said(severity=severity.name.lower(), text=text))

    return Logger()


def _monitor(trt: Any, send: Send) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the outer phases as they start."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, _steps: int) -> None:
            if parent in _OUTER and name not in _OUTER:
                send(Step(name=name))

        def step_complete(self, _name: str, _step: int) -> bool:
            return True

        def phase_finish(self, _name: str) -> None:
            pass

    return Monitor()


if __name__ == "__main__":
    main()
