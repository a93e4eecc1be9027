"""Every test of this folder on every backend that answers; the others are skipped with their reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport.build import lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport_runtime import Engine
from tests.conftest import MakeLora

from .backends import GPUS, Gpu, profile_text

# what a library may still compute with TF32 has ten bits of fraction: no test of float32 could hold it
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

#: of the largest value: how far a backend may be from float32 on the CPU and from PEFT
NEAR = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}

Open = Callable[..., Engine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def _answering(gpu: Gpu) -> Any:
    reason = gpu.probe()
    marks = [] if reason is None else [pytest.mark.skip(f"{gpu.name}: {reason}")]
    return pytest.param(gpu, marks=marks, id=gpu.name)


@pytest.fixture(scope="session", params=[_answering(gpu) for gpu in GPUS])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    """A backend that answers."""
    found: Gpu = request.param
    return found


@pytest.fixture(params=NEAR)
def dtype(request: pytest.FixtureRequest, gpu: Gpu) -> str:
    """A precision that the backend has."""
    if request.param not in gpu.dtypes:
        pytest.skip(f"{gpu.name} has no {request.param}")
    return str(request.param)


@pytest.fixture
def serve(gpu: Gpu, request: pytest.FixtureRequest) -> Open:
    """``serve(bundle, resident=None, batch=(1, 4, 8))``: an engine on the backend, then closed."""

    def opened(root: Path, resident: int | None = None, **sizes: tuple[int, int, int]) -> Engine:
        engine = gpu.open(root, profile_text(root, **sizes), resident)
        request.addfinalizer(engine.close)
        return engine

    return opened


@pytest.fixture(scope="session")
def precisions(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``tiny_bundle`` in every precision."""
    folder = tmp_path_factory.mktemp("precisions")
    found = {"fp32": tiny_bundle}
    for name in ("fp16", "bf16"):
        found[name] = folder / f"{name}.bundle"
        lower_again(tiny_bundle, found[name], options=BuildOptions(dtype=name, tolerance=TOLERANCE[name]))
    return found


@pytest.fixture(scope="session")
def tenants(make_lora: MakeLora) -> dict[str, Path]:
    """Adapters of ragged ranks on several layers."""
    targets = (
        ["query", "value"],
        ["query", "key", "value", "intermediate.dense"],
        ["intermediate.dense", "output.dense"],
    )
    return {
        f"r{rank}": make_lora(f"r{rank}", seed=rank, r=rank, std=0.2, target_modules=targets[at % 3])
        for at, rank in enumerate((1, 2, 5, 8, 16))
    }


def bind_all(engine: Engine, folders: dict[str, Path]) -> Engine:
    for name, folder in folders.items():
        engine.bind(name, folder)
    return engine


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))
