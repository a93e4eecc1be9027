"""From a bundle to a session on this machine's GPU; says which part is missing where one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...bundle import Bundle
from ...errors import Code, Problem, ProviderError
from ...manifest import Manifest
from ...profiles import parse_profiles
from ..cuda import CudaDevice
from ..onnxruntime import available_provider, check_graph
from .backend import OrtGpuBackend
from .options import ENGINE_PREFIXES, cache_folder, engine_profiles, forbid_tf32, provider_options
from .session import open_gpu_session

if TYPE_CHECKING:
    from ..open import Settings


def open_ort_gpu(bundle: Bundle, provider: str, settings: Settings) -> OrtGpuBackend:
    """Open the bundle's graph on a provider of ONNX Runtime that runs on a GPU.

    Raises:
        ProviderError: the provider, the driver or a GPU is missing, or it cannot run this bundle.
        RequestError: a profile or the cache does not fit.
        BundleError: the graph is damaged.
    """
    manifest = bundle.manifest
    if provider in ENGINE_PREFIXES:
        _check_whole(manifest, provider)
        forbid_tf32()
    profiles = engine_profiles(provider, parse_profiles(settings.profile or (), manifest))
    available_provider(provider)
    device = CudaDevice()
    options = provider_options(
        provider, manifest, profiles, cache_folder(bundle.root, provider, settings.cache)
    )
    session = open_gpu_session(
        bundle.model_path, provider, options, threads=settings.threads, spin=settings.spin
    )
    check_graph(bundle.model_path, manifest, session.get_inputs())
    return OrtGpuBackend(session, manifest, device, profiles, name=str(bundle.root))


def _check_whole(manifest: Manifest, provider: str) -> None:
    """TensorRT takes a graph whole: none with ONNX Runtime's own operators."""
    problems = []
    if manifest.generation is not None:
        problems.append(_own_operator(provider, "generation", "GroupQueryAttention"))
    if manifest.base.quantization is not None:
        dynamic = manifest.base.quantization.method == "dynamic"
        problems.append(
            _own_operator(provider, "quantization", "uint8 activations" if dynamic else "MatMulNBits")
        )
    if problems:
        raise ProviderError(f"{provider} cannot run this bundle", problems)


def _own_operator(provider: str, subject: str, got: str) -> Problem:
    return Problem(
        Code.PROVIDER_UNAVAILABLE,
        f"{subject} on {provider}",
        got=got,
        expected="operators of ONNX that TensorRT has",
        cause="the graph is lowered for ONNX Runtime's own kernels",
        mend="ask for cuda, or adexport build BUNDLE --target tensorrt and ask for tensorrt",
    )
