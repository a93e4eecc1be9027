"""ONNX Runtime on the CPU, and what it offers beside; GPUs have :mod:`.ort_gpu`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import dtypes
from ..bank import Lease
from ..batch_rows import BatchRows
from ..errors import BundleError, Code, DependencyError, Problem, ProviderError, RequestError
from ..limits import Limits
from ..manifest import Manifest
from ..outputs import LOGITS
from ..tensors import Array
from . import Binding, Caches
from .kernels import register_kernels
from .kv_caches import KvCaches
from .saturation import saturates

#: provider -> (ONNX Runtime's name, the extra that brings it)
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "gpu"),
    "ort-tensorrt": ("TensorrtExecutionProvider", "gpu"),
    "ort-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", "gpu"),
}

#: those that packages of onnxruntime-gpu have
_PACKAGED = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

#: fusions that make the CPU slower, by 5 to 12 % on MiniLM (see BENCHMARKS.md)
SLOW_ON_CPU = ("SkipLayerNormFusion", "BiasGeluFusion")

#: ONNX's number for the type
ONNX_BFLOAT16 = 16


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read while the library loads
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            "ONNX Runtime is needed",
            Problem(
                Code.PACKAGE_MISSING,
                "onnxruntime",
                got=str(error),
                mend="pip install adexport[cpu] (or adexport[gpu])",
            ),
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def open_session(
    model: Path,
    threads: int = 0,
    *,
    spin: bool = True,
    integers: bool = False,
    disabled: Sequence[str] = SLOW_ON_CPU,
    kernels: Path | None = None,
) -> Any:
    """Load a graph for the CPU, with the settings that measured best.

    Args:
        model: the ``.onnx`` file.
        threads: threads of one operator; 0 lets ONNX Runtime choose.
        spin: let idle threads wait busily for the next operator.
        integers: the graph multiplies uint8 with int8 (dynamic quantization).
        disabled: fusions of ONNX Runtime to leave out.
        kernels: a library whose operators run in the place of local functions.

    Raises:
        BundleError: ONNX Runtime does not take the graph.
        DependencyError: the library does not load.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # else products with weights behind DequantizeLinear would take int8 activations
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if integers and saturates(ort):
        options.add_session_config_entry("session.x64quantprecision", "1")
    if kernels is not None:
        register_kernels(options, kernels)
    try:
        return ort.InferenceSession(
            os.fspath(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled),
        )
    except Exception as error:
        raise graph_refused(model, error, kernels) from error


def ort_value(array: Array) -> Any:
    """An OrtValue that shares an array's memory; numpy has no bfloat16 that ONNX Runtime knows."""
    values = import_onnxruntime().OrtValue
    if array.dtype == dtypes.NUMPY["bf16"]:
        return values.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_BFLOAT16)
    return values.ortvalue_from_numpy(array)


def graph_refused(model: Path, error: Exception, kernels: Path | None = None) -> BundleError:
    """A graph that ONNX Runtime does not take, with the operators of a kernel library if there is one."""
    other = "" if kernels is None else f", {kernels} is of another version"
    without = "" if kernels is None else ", or go without kernels (none)"
    return BundleError(
        f"{model} does not load",
        Problem(
            Code.DAMAGED,
            str(model),
            got=f"ONNX Runtime {import_onnxruntime().__version__}: {error}",
            cause=f"a graph of a newer opset than this ONNX Runtime knows{other}, or a damaged file",
            mend=f"update onnxruntime, or build the bundle again{without}",
        ),
    )


def check_graph(model: Path, manifest: Manifest, inputs: Sequence[Any]) -> None:
    """The graph takes what the manifest says, and caches of that shape.

    Raises:
        BundleError: naming every input that differs.
    """
    generation = manifest.generation
    expected: dict[str, tuple[int, int] | None] = {slot.name: None for slot in manifest.slot_inputs}
    if generation is None:
        expected |= {spec.name: None for spec in manifest.inputs}
        expected |= {} if manifest.adapter_ids is None else {manifest.adapter_ids: None}
    else:
        expected |= dict.fromkeys(("input_ids", *generation.inputs))
        expected |= {
            name: (cache.kv_heads, cache.size)
            for cache in generation.caches
            for name in (cache.past_key, cache.past_value)
        }
    found = {given.name: given.shape for given in inputs}
    problems = [
        Problem(Code.BAD_MANIFEST, name, got="an input that only the graph has")
        for name in found.keys() - expected.keys()
    ]
    for name, shape in expected.items():
        if name not in found:
            problems.append(Problem(Code.BAD_MANIFEST, name, got="no such input of the graph"))
        elif shape is not None and tuple(found[name][1::2]) != shape:
            got = f"the shape {found[name]} in the graph"
            wanted = f"{shape[0]} heads of {shape[1]}, as the manifest says"
            problems.append(Problem(Code.BAD_MANIFEST, name, got=got, expected=wanted))
    if problems:
        raise BundleError(
            f"{model} is not the graph of its manifest",
            sorted(problems, key=lambda problem: problem.subject),
        )


def available_provider(provider: str) -> str:
    """ONNX Runtime's name for a provider that it was built with.

    Raises:
        ProviderError: it was built without.
    """
    ort = import_onnxruntime()
    wanted, extra = PROVIDERS[provider]
    available = ort.get_available_providers()
    if wanted not in available:
        raise ProviderError(
            f"{provider} is not to be had",
            Problem(
                Code.PROVIDER_UNAVAILABLE,
                wanted,
                got=f"onnxruntime {ort.__version__} with {', '.join(available)}",
                cause="the installed ONNX Runtime was built without it",
                mend=f"pip uninstall onnxruntime, then pip install adexport[{extra}]"
                if wanted in _PACKAGED
                else "build ONNX Runtime with it, or ask for another provider",
            ),
        )
    return wanted


@dataclass
class _Binding:
    """An IOBinding with the banks bound; ``layout`` says which arrays of the banks."""

    io: Any
    layout: int = -1


class OnnxRuntimeBackend:
    """A session, and bindings in which the banks stay bound from run to run."""

    def __init__(
        self, model: Path, manifest: Manifest, threads: int, *, spin: bool, kernels: Path | None = None
    ) -> None:
        """Open the graph of a bundle. See :func:`open_session`."""
        if manifest.base.dtype == "bf16":
            raise ProviderError(
                "cpu cannot run this bundle",
                Problem(
                    Code.PROVIDER_UNAVAILABLE,
                    "bf16 on cpu",
                    cause="ONNX Runtime has no bfloat16 kernels for the CPU",
                    mend="adexport build BUNDLE --dtype fp32 (or fp16), or ask for cuda",
                ),
            )
        quantization = manifest.base.quantization
        integers = quantization is not None and quantization.method == "dynamic"
        self._session = open_session(model, threads, spin=spin, integers=integers, kernels=kernels)
        check_graph(model, manifest, self._session.get_inputs())
        self._name = str(model.parent)
        self._outputs = [output.name for output in manifest.outputs]
        self._generation = manifest.generation
        self._dtype = dtypes.NUMPY[manifest.base.dtype]
        self._idle: list[_Binding] = []
        self._lock = threading.Lock()
        self._resident: tuple[int, dict[str, Any]] = (-1, {})

    @property
    def provider(self) -> str:
        """What the session runs on."""
        return str(self._session.get_providers()[0])

    @property
    def limits(self) -> Limits:
        """None: sizes are free."""
        return {}

    def run(self, feeds: Mapping[str, Array], lease: Lease) -> dict[str, Array]:
        """Run once; see :class:`~adexport_runtime.backends.Backend`."""
        session = self._opened
        binding = self._binding(lease, session)
        io = binding.io
        for name, value in feeds.items():
            io.bind_cpu_input(name, value)
        for name in self._outputs:  # anew for each run: a kept output keeps its last shape
            io.bind_output(name, "cpu")
        session.run_with_iobinding(io)
        outputs = dict(zip(self._outputs, io.copy_outputs_to_cpu(), strict=True))
        self._idle.append(binding)  # not after an error: that binding is dropped
        return outputs

    def caches(self, rows: int, room: int) -> KvCaches:
        """See :class:`~adexport_runtime.backends.Backend`."""
        assert self._generation is not None
        return KvCaches(self._generation, self._dtype, rows, room)

    def step(
        self, feeds: Mapping[str, Array], slots: BatchRows, caches: Caches, rows: slice, binding: Binding
    ) -> Array:
        """See :class:`~adexport_runtime.backends.Backend`.

        What is bound is the address of the rows: the caches are read and written where they lie.
        """
        assert isinstance(caches, KvCaches)
        session = self._opened
        if binding.io is None:
            binding.io = session.io_binding()
        io = binding.io
        if binding.caches != (caches, rows.start, rows.stop):
            self._bind_caches(io, caches, rows)
            binding.caches = (caches, rows.start, rows.stop)
        slots_key = (slots, slots.layout, rows.start, rows.stop)
        if binding.slots != slots_key:
            for name, array in slots.view(rows).items():
                kind = ONNX_BFLOAT16 if array.dtype == dtypes.NUMPY["bf16"] else array.dtype
                io.bind_input(name, "cpu", 0, kind, array.shape, array.ctypes.data)
            binding.slots = slots_key
        for name, value in feeds.items():
            io.bind_cpu_input(name, value)
        io.bind_output(LOGITS, "cpu")
        session.run_with_iobinding(io)
        logits: Array = io.get_outputs()[-1].numpy()  # bound behind the caches
        return logits

    def _bind_caches(self, io: Any, caches: KvCaches, rows: slice) -> None:
        assert self._generation is not None
        for name in (*self._generation.past, *self._generation.outputs):
            address, shape = caches.buffer(name, rows)
            bind = io.bind_input if name in self._generation.past else io.bind_output
            bind(name, "cpu", 0, self._dtype, shape, address)

    def close(self) -> None:
        """Drop the session and the bindings."""
        self._idle.clear()
        self._resident = (-1, {})
        self._session = None

    @property
    def _opened(self) -> Any:
        """The session; another thread may close the backend meanwhile."""
        session = self._session
        if session is None:
            raise RequestError("the engine is closed", Problem(Code.CLOSED, self._name))
        return session

    def _binding(self, lease: Lease, session: Any) -> _Binding:
        """An IOBinding that holds the lease's banks, for one run."""
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = _Binding(session.io_binding())
        if binding.layout != lease.layout:  # arrays are shared with ONNX Runtime: writes need no binding
            for name, value in self._values(lease).items():
                binding.io.bind_ortvalue_input(name, value)
            binding.layout = lease.layout
        return binding

    def _values(self, lease: Lease) -> dict[str, Any]:
        with self._lock:
            kept, values = self._resident
            if kept != lease.layout:
                values = {name: ort_value(array) for name, array in lease.arrays.items()}
                if lease.layout > kept:
                    self._resident = (lease.layout, values)
            return values
