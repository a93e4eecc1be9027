"""Bundles of all families, each built once for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport.tensorrt.builder import build_engine
from adexport_runtime import Bundle

from .families import Built, build_family
from .generators import GENERATORS, Tenants, make_tenants

BuiltOf = Callable[[str, str], Built]
GeneratorOf = Callable[[str], tuple[Tenants, Built]]


@pytest.fixture(scope="session")
def built_of(tmp_path_factory: pytest.TempPathFactory) -> BuiltOf:
    """``built_of(family, task)`` with slots of every kind; not to be changed."""
    known: dict[tuple[str, str], Built] = {}

    def built(name: str, task: str) -> Built:
        if (name, task) not in known:
            known[name, task] = build_family(name, task, tmp_path_factory.mktemp(name))
        return known[name, task]

    return built


@pytest.fixture(scope="session")
def generator_of(tmp_path_factory: pytest.TempPathFactory) -> GeneratorOf:
    """``generator_of(name)``: a model of ``GENERATORS``, its tenants, and a bundle; not to be changed."""
    known: dict[str, tuple[Tenants, Built]] = {}

    def generator(name: str) -> tuple[Tenants, Built]:
        if name not in known:
            folder: Path = tmp_path_factory.mktemp("generator")
            tenants = make_tenants(GENERATORS[name], folder)
            result = build_model(str(tenants.model), folder / "bundle", options=BuildOptions(max_rank=8))
            known[name] = tenants, Built(tenants.model, result)
        return known[name]

    return generator


@pytest.fixture(scope="session")
def with_engine(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine. Shared, not to be changed."""
    target = tmp_path_factory.mktemp("engines") / "tiny.bundle"
    shutil.copytree(tiny_bundle, target)
    build_engine(Bundle.open(target))
    return target
