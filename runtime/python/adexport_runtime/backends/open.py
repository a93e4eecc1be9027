"""The providers: what ``Engine.open(provider=…)`` takes, and what opens each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..bundle import Bundle
from ..errors import Code, Problem, ProviderError, RequestError
from . import Backend
from .kernels import Kernels, find_kernels
from .onnxruntime import OnnxRuntimeBackend
from .ort_gpu import open_ort_gpu
from .ort_gpu.options import ENGINE_PREFIXES
from .tensorrt import open_tensorrt


class Settings(NamedTuple):
    """What a caller may choose: threads of one operator on the CPU, and whether idle ones wait busily.

    Where ONNX Runtime builds an engine, also the profiles that it is for; and the folder to keep in what
    is built or compiled on the way. ``kernels``: the kernel library of the CPU.
    """

    threads: int = 0
    spin: bool = True
    profile: Sequence[str] | None = None
    cache: str | os.PathLike[str] | None = None
    kernels: Kernels = None


Opener = Callable[[Bundle, Settings], Backend]


def _open_cpu(bundle: Bundle, settings: Settings) -> Backend:
    return OnnxRuntimeBackend(
        bundle.model_path,
        bundle.manifest,
        settings.threads,
        spin=settings.spin,
        kernels=find_kernels(settings.kernels),
    )


def _ort_gpu(provider: str) -> Opener:
    return lambda bundle, settings: open_ort_gpu(bundle, provider, settings)


OPENERS: dict[str, Opener] = {
    "cpu": _open_cpu,
    "cuda": _ort_gpu("cuda"),
    "tensorrt": open_tensorrt,
    "ort-tensorrt": _ort_gpu("ort-tensorrt"),
    "ort-tensorrt-rtx": _ort_gpu("ort-tensorrt-rtx"),
}


def open_backend(bundle: Bundle, provider: str, settings: Settings) -> Backend:
    """Open a bundle's graph on a provider.

    Raises:
        ProviderError: the provider is unknown, or not to be had here.
        BundleError: the bundle has nothing (sound) for the provider.
        RequestError: a setting is not the provider's, or does not fit.
    """
    opener = OPENERS.get(provider)
    if opener is None:
        raise ProviderError(
            "unknown provider",
            Problem(
                Code.PROVIDER_UNAVAILABLE,
                repr(provider),
                expected="one of " + ", ".join(OPENERS),
                mend="ask for one of these",
            ),
        )
    _check_kernels(provider, settings)
    if provider not in ENGINE_PREFIXES:
        _check_settings(provider, settings)
    return opener(bundle, settings)


def _check_kernels(provider: str, settings: Settings) -> None:
    """The kernels that a caller names are the CPU's."""
    if provider != "cpu" and settings.kernels is not None:
        raise RequestError(
            "the engine is not opened",
            Problem(
                Code.BAD_INPUT,
                "kernels",
                got=str(settings.kernels),
                expected="None",
                cause=f"{provider} runs no kernels of the CPU",
                mend="leave it out",
            ),
        )


def _check_settings(provider: str, settings: Settings) -> None:
    """A provider that builds nothing as it opens has no profile to be told, and mostly keeps nothing."""
    problems = [
        Problem(
            Code.BAD_INPUT,
            name,
            got=str(value),
            expected="None",
            cause=f"{provider} builds nothing when it is opened",
            mend="leave it out",
        )
        for name, value in (("profile", settings.profile), ("cache", settings.cache))
        if value is not None and (name, provider) != ("cache", "tensorrt")
    ]
    if problems:
        raise RequestError("the engine is not opened", problems)
