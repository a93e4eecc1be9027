"""Which backends answer here; one that does not is an error when it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adexport_runtime import AdexportError, BundleError, DependencyError, Engine, ProviderError

from .backends import GPUS, Gpu

REAL = [gpu for gpu in GPUS if not gpu.control]


@pytest.mark.skipif(not os.environ.get("REQUIRE_GPU"), reason="only `make test-gpu` must find a GPU")
def test_some_gpu_answers() -> None:
    """Else nothing but the controls ran, which says nothing about GPUs."""
    reasons = {gpu.name: gpu.probe() for gpu in REAL}
    assert None in reasons.values(), "\n".join(f"{name}: {reason}" for name, reason in reasons.items())


@pytest.mark.parametrize("gpu", REAL, ids=lambda gpu: gpu.name)
def test_what_does_not_answer_cannot_be_had(gpu: Gpu, tiny_bundle: Path) -> None:
    """And what answers opens, or lacks only an engine in the bundle."""
    reason = gpu.probe()
    try:
        Engine.open(tiny_bundle, gpu.name).close()
    except AdexportError as error:
        lacks = gpu.name == "tensorrt" and isinstance(error, BundleError)
        assert lacks or (reason is not None and isinstance(error, ProviderError | DependencyError))
    else:
        assert reason is None
