"""The providers: what ``Engine.open(provider=…)`` takes, and what opens each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..bundle import Bundle
from ..errors import Code, Problem, ProviderError
from . import Backend
from .onnxruntime import OnnxRuntimeBackend
from .tensorrt import open_tensorrt


class Settings(NamedTuple):
    """What a caller may choose: threads of one operator on the CPU, and whether idle ones wait busily."""

    threads: int = 0
    spin: bool = True


Opener = Callable[[Bundle, Settings], Backend]


def _onnxruntime(provider: str) -> Opener:
    def open_it(bundle: Bundle, settings: Settings) -> Backend:
        return OnnxRuntimeBackend(
            bundle.model_path, bundle.manifest, provider, settings.threads, spin=settings.spin
        )

    return open_it


OPENERS: dict[str, Opener] = {
    "cpu": _onnxruntime("cpu"),
    "cuda": _onnxruntime("cuda"),
    "tensorrt": open_tensorrt,
    "ort-tensorrt": _onnxruntime("ort-tensorrt"),
    "ort-tensorrt-rtx": _onnxruntime("ort-tensorrt-rtx"),
}


def open_backend(bundle: Bundle, provider: str, settings: Settings) -> Backend:
    """Open a bundle's graph on a provider.

    Raises:
        ProviderError: the provider is unknown, or not to be had here.
        BundleError: the bundle has nothing (sound) for the provider.
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
    return opener(bundle, settings)
