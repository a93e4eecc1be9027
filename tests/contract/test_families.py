"""Golden adapters of every family: exact, also side by side in one batch, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adexport.build import lower_again
from adexport.convert import convert
from adexport.options import BuildOptions
from adexport_runtime import AdapterError, Engine, load_adapter

from .capi import needs_native
from .golden import (
    GOLDEN,
    Golden,
    build,
    cases,
    check_alone,
    check_mixed,
    difference,
    expected,
    feeds,
    groups,
)
from .kernels import kernel_library, needs_kernels
from .native import NativeEngine

LIBRARIES = ("adapterhub", "peft")
SERVED = [case for library in LIBRARIES for case in cases(library, "serve")]
PICKLED = cases("adapterhub", "bin")
REFUSED = [case for library in LIBRARIES for case in cases(library, "refuse")]
GROUPS = [group for library in LIBRARIES for group in groups(library)]

#: PEFT takes PiSSA's and OLoRA's start from a float32 SVD or QR of its own
LIMITS = {"pissa": 2e-5, "olora": 2e-5}


class Engines:
    """One engine for each bundle, with all its golden adapters bound; built when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.converted = {case: folder / "converted" / str(case) for case in PICKLED}
        for case, path in self.converted.items():
            convert(case.path, path)
        self._open: dict[tuple[str, str, str], Engine] = {}

    def __getitem__(self, group: tuple[str, str, str]) -> Engine:
        if group not in self._open:
            more = tuple(path for case, path in self.converted.items() if case.group == group)
            engine = Engine.open(
                build(group, self._folder / "-".join(group), more), threads=1, kernels="none"
            )
            for case in SERVED:
                if case.group == group:
                    with suppress(AdapterError):  # the case's own test shows it
                        engine.bind(case.name, case.path)
            self._open[group] = engine
        return self._open[group]

    def close(self) -> None:
        for engine in self._open.values():
            engine.close()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("golden"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_served(engines: Engines, case: Golden) -> None:
    engine = engines[case.group]
    engine.bind(case.name, case.path)
    check_alone(engine, case, LIMITS.get(case.family, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("case", PICKLED, ids=str)
def test_served_once_converted(engines: Engines, case: Golden) -> None:
    """What the library can save as a pickle only, or saves so by default."""
    engine = engines[case.group]
    with pytest.raises(AdapterError, match="adexport convert"):
        engine.bind(case.name, case.path)
    engine.bind(case.name, engines.converted[case])
    check_alone(engine, case, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_all_families_in_one_batch(engines: Engines, group: tuple[str, str, str]) -> None:
    check_mixed(engines[group], [case for case in SERVED if case.group == group], 1e-6)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_all_families_with_kernels(engines: Engines, group: tuple[str, str, str]) -> None:
    served = [case for case in SERVED if case.group == group]
    with Engine.open(engines[group].bundle.root, threads=1, kernels=kernel_library()) as engine:
        for case in served:
            engine.bind(case.name, case.path)
        for case in served:
            check_alone(engine, case, LIMITS.get(case.family, 1e-5))
        check_mixed(engine, served, 1e-6)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_all_families_in_cpp(engines: Engines, group: tuple[str, str, str], tmp_path: Path) -> None:
    """Bound by Python, served by C++: as exact, and within 1e-6 of what Python computes."""
    served = [case for case in SERVED if case.group == group]
    python = engines[group]
    with NativeEngine(python.bundle.root) as native:
        for case in served:
            bound = tmp_path / f"{case.name}.safetensors"
            load_adapter(case.name, case.path, python.bundle).save(bound)
            native.bind(case.name, bound)
        for case in served:
            check_alone(native, case, LIMITS.get(case.family, 1e-5))
            batch = feeds(expected(case))
            ours, theirs = python.run(batch, case.name), native.run(batch, case.name)
            assert theirs.labels == ours.labels
            for name, array in ours.items():
                assert difference(theirs[name], array, batch["attention_mask"]) <= 1e-6
        check_mixed(native, served, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(engines: Engines, case: Golden) -> None:
    """Whatever the bundle has slots for; a base that serves nothing here is checked against BERT's."""
    group = case.group if case.group in GROUPS else (case.library, "bert", "feature-extraction")
    engine = engines[group]
    before = engine.adapters()
    with pytest.raises(AdapterError) as caught:
        engine.bind("refused", case.path)
    assert engine.adapters() == before
    for problem in caught.value.problems:
        assert problem.subject
        assert problem.got or problem.cause, problem


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bert", "llama"])
def test_base_rows_beside_every_slot(engines: Engines, base: str, tmp_path: Path) -> None:
    """With every kind of slot in the graph, a row without an adapter is the plain base's."""
    bundle = engines["adapterhub", base, "feature-extraction"].bundle.root
    every = BuildOptions(slots=("lora", "bias", "scale", "bottleneck"), targets=r".*")
    lower_again(bundle, tmp_path / "every", options=every, adapters=False)
    lower_again(bundle, tmp_path / "plain", options=BuildOptions(slots=()), adapters=False)
    tensors = load_file(GOLDEN / "adapterhub" / base / "base.safetensors")
    batch = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    names = [None, "compacter", None, "dora"]
    with Engine.open(tmp_path / "plain", threads=1) as plain, Engine.open(tmp_path / "every") as engine:
        for name in ("compacter", "dora"):
            engine.bind(name, GOLDEN / "adapterhub" / base / name)
        expected, got = plain.run(batch), engine.run(batch, names)
    for row in (0, 2):
        real = batch["attention_mask"][row].astype(bool)
        for output in expected:
            found = np.abs(got[output][row] - expected[output][row])
            assert (found[real] if found.ndim == 2 else found).max() <= 1e-6, output
