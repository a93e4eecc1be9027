"""Sessions of ONNX Runtime on a GPU: what was asked for, or an error that says why not."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ...errors import Code, Problem, ProviderError
from ..onnxruntime import available_provider, graph_refused, import_onnxruntime
from .options import ENGINE_PREFIXES

#: ONNX Runtime's name -> the library that it loads when the provider is first asked for
_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
    "NvTensorRTRTXExecutionProvider": "libonnxruntime_providers_nv_tensorrt_rtx.so",
}
_SHARED_LIBRARY = "libonnxruntime_providers_shared.so"

#: what a model is made of: on the CPU it would be the model that runs there, not arithmetic with sizes
_COMPUTES = frozenset(
    (
        *("Attention", "GroupQueryAttention", "MultiHeadAttention", "SkipLayerNormalization"),
        *("Conv", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits", "FusedMatMul", "DynamicQuantizeLinear"),
        *("BiasGelu", "FastGelu", "Gelu", "Softmax", "LayerNormalization", "RMSNormalization"),
    )
)


def open_gpu_session(
    model: Path, provider: str, options: Mapping[str, str], *, threads: int = 0, spin: bool = True
) -> Any:
    """Load a graph for a provider on a GPU.

    CUDA leaves arithmetic with sizes, and the conditions of branches, to the CPU on purpose, so falling
    back is not forbidden there; a node that computes on the CPU is an error. TensorRT must take the graph
    whole: what it leaves would split its engine, between whose parts no profile says the sizes.

    Args:
        model: the ``.onnx`` file.
        provider: ``cuda``, ``ort-tensorrt`` or ``ort-tensorrt-rtx``.
        options: as :func:`~.options.provider_options` gives them.
        threads: threads of one operator on the CPU; 0 lets ONNX Runtime choose.
        spin: let idle threads wait busily.

    Raises:
        ProviderError: the provider is not in this ONNX Runtime, did not start, or leaves the model to
            the CPU.
        BundleError: ONNX Runtime does not take the graph.
    """
    ort = import_onnxruntime()
    wanted = available_provider(provider)
    _preload(ort)
    whole = provider in ENGINE_PREFIXES
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if whole:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    asked = (wanted, dict(options))
    try:
        session = ort.InferenceSession(
            os.fspath(model),
            settings,
            providers=[asked] if whole else [asked, "CPUExecutionProvider"],
            enable_fallback=0,  # else the wrapper starts again on the CPU, and prints so
        )
    except Exception as error:
        raise _refused(ort, model, provider, wanted, error) from error
    if wanted not in session.get_providers():
        got = _why_not(ort, wanted) or f"a session on {', '.join(session.get_providers())}"
        raise _unavailable(provider, wanted, got)
    _check_places(session, provider, wanted)
    return session


def _preload(ort: Any) -> None:
    """Load CUDA's libraries from NVIDIA's packages, where those are installed."""
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it did not find, which others may have
            ort.preload_dlls()


def _refused(ort: Any, model: Path, provider: str, wanted: str, error: Exception) -> Exception:
    """What a session that does not open means: no provider, no graph, or the two do not fit."""
    got = _why_not(ort, wanted)
    if got is not None:
        return _unavailable(provider, wanted, got)
    state = ort.capi.onnxruntime_pybind11_state
    if isinstance(error, (state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NoSuchFile)):
        return graph_refused(model, error)
    if provider == "cuda":
        return _unavailable(provider, wanted, str(error))
    return ProviderError(
        f"{provider} does not take this bundle",
        Problem(
            Code.PROVIDER_UNAVAILABLE,
            wanted,
            got=str(error),
            cause="an operator of model.onnx that this TensorRT does not have, or no memory to build with",
            mend="ask for cuda, or adexport build BUNDLE --target tensorrt and ask for tensorrt; a float32 "
            "model built with --opset 22 has its attention in primitive operators",
        ),
    )


def _why_not(ort: Any, wanted: str) -> str | None:
    """Why the provider's library does not load; None if it does, or is not one of its own."""
    folder = Path(ort.__file__).parent / "capi"
    name = _LIBRARIES.get(wanted)
    if name is None or not (folder / name).exists():
        return None
    try:
        ctypes.CDLL(os.fspath(folder / _SHARED_LIBRARY), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(os.fspath(folder / name))
    except OSError as error:
        return str(error)
    return None


def _unavailable(provider: str, wanted: str, got: str) -> ProviderError:
    libraries = "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA's"
    if provider in ENGINE_PREFIXES:
        libraries = "install the TensorRT that this ONNX Runtime was built for"
    return ProviderError(
        f"{provider} is not to be had",
        Problem(
            Code.PROVIDER_UNAVAILABLE,
            wanted,
            got=got,
            cause="the driver, a GPU or a library of the provider is missing",
            mend=f"nvidia-smi shows the driver and the GPU; {libraries}; or ask for another provider",
        ),
    )


def _check_places(session: Any, provider: str, wanted: str) -> None:
    """No node that computes may be on the CPU, which ONNX Runtime only logs."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
        return
    elsewhere = sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != wanted
            for node in part.get_nodes()
            if node.op_type in _COMPUTES
        }
    )
    if elsewhere:
        raise ProviderError(
            f"{provider} does not take this bundle whole",
            [
                Problem(
                    Code.PROVIDER_UNAVAILABLE,
                    op_type,
                    got="a node on the CPU",
                    expected=wanted,
                    cause="this ONNX Runtime has no such kernel for the GPU, or not for this type",
                    mend="another precision (adexport build BUNDLE --dtype), no quantization, or a newer "
                    "ONNX Runtime",
                )
                for op_type in elsewhere
            ],
        )
