"""Bundles in other shapes, and the check that a refusal leaves everything as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from adexport.build import build_model, lower_again
from adexport.options import TOLERANCE, BuildOptions
from adexport_runtime import AdapterError, Bundle, Code, Engine, bind_into_bundle
from tests.conftest import TINY, MakeLora

from .simulated_engine import Graph, lowered_graph
from .support import GOLDEN_PEFT, hidden, ids, subjects


@pytest.fixture(scope="session")
def other_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base with the shapes of ``tiny_bert``."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "other-bert"
    BertModel(BertConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_bundle(other_bert: Path, bundles: Path) -> Path:
    """A bundle of ``other_bert``. Shared, not to be changed."""
    build_model(str(other_bert), bundles / "other.bundle", options=BuildOptions(max_rank=16))
    return bundles / "other.bundle"


@pytest.fixture(scope="session")
def classifier_bundle(tiny_classifier: Path, bundles: Path) -> Path:
    """A bundle of the tiny BERT with a head. Shared, not to be changed."""
    build_model(str(tiny_classifier), bundles / "classifier.bundle", options=BuildOptions(max_rank=16))
    return bundles / "classifier.bundle"


@pytest.fixture(scope="session")
def bf16_bundle(tiny_bundle: Path, bundles: Path) -> Path:
    """``tiny_bundle`` in bfloat16, which no CPU runs. Shared, not to be changed."""
    options = BuildOptions(dtype="bf16", tolerance=TOLERANCE["bf16"])
    lower_again(tiny_bundle, bundles / "bf16.bundle", options=options)
    return bundles / "bf16.bundle"


@pytest.fixture(scope="session")
def plain_bundle(tiny_bundle: Path, bundles: Path) -> Path:
    """``tiny_bundle`` without slots. Shared, not to be changed."""
    lower_again(tiny_bundle, bundles / "plain.bundle", options=BuildOptions(slots=()))
    return bundles / "plain.bundle"


@pytest.fixture(scope="session")
def narrow_bundle(tiny_bundle: Path, bundles: Path) -> Path:
    """``tiny_bundle`` with slots on the queries only, up to rank 2. Shared, not to be changed."""
    options = BuildOptions(targets=["query"], max_rank=2)
    lower_again(tiny_bundle, bundles / "narrow.bundle", options=options)
    return bundles / "narrow.bundle"


@pytest.fixture(scope="session")
def good_lora(make_lora: MakeLora) -> Path:
    """An adapter that fits; not to be changed."""
    return make_lora("good", seed=77)


Refuse = Callable[..., AdapterError]


@pytest.fixture(scope="session")
def native_graph(tiny_bundle: Path, bundles: Path) -> Graph:
    """``tiny_bundle`` as it is lowered for TensorRT, for a simulated engine."""
    folder = bundles / "native"
    folder.mkdir()
    return lowered_graph(tiny_bundle, folder)


@pytest.fixture(scope="session")
def ranked(make_lora: MakeLora) -> dict[str, Path]:
    """Adapters of ranks 2, 5 and 16."""
    ranks = {"a": 2, "b": 5, "c": 16}
    return {
        name: make_lora(name, seed=seed, r=rank, std=0.2) for seed, (name, rank) in enumerate(ranks.items())
    }


@pytest.fixture
def ranked_cpu(tiny_bundle: Path, ranked: dict[str, Path]) -> Iterator[Engine]:
    """``tiny_bundle`` on the CPU with these adapters."""
    with Engine.open(tiny_bundle, threads=1) as engine:
        for name, folder in ranked.items():
            engine.bind(name, folder)
        yield engine


@pytest.fixture
def refuse(bundle_copy: Path, good_lora: Path) -> Refuse:
    """``refuse(source, {code: culprits})``: refused by engine and bundle, and nothing else changed.

    The culprits are all subjects that the error must name under the code, no more and no fewer.
    """
    bundle = Bundle.open(bundle_copy)
    bind_into_bundle(bundle, good_lora, "tenant")
    engine = Engine.open(bundle_copy)
    engine.bind("tenant", good_lora)

    def check(source: Path, expected: Mapping[Code, Set[str]]) -> AdapterError:
        rows: list[str | None] = ["tenant", None, "tenant"]
        stored = bundle.adapter_path("tenant").read_bytes()
        files = sorted(bundle_copy.rglob("*"))
        before = hidden(engine, ids(), rows)
        with pytest.raises(AdapterError) as by_engine:
            engine.bind("tenant", source)
        with pytest.raises(AdapterError) as by_bundle:
            bind_into_bundle(bundle, source, "tenant", replace=True)
        for error in (by_engine.value, by_bundle.value):
            assert {code: subjects(error, code) for code in error.codes} == dict(expected)
        assert bundle.adapter_path("tenant").read_bytes() == stored
        assert sorted(bundle_copy.rglob("*")) == files
        np.testing.assert_array_equal(hidden(engine, ids(), rows), before)
        return by_engine.value

    return check


GoldenCopy = Callable[[str], Path]


@pytest.fixture
def golden(tmp_path: Path) -> GoldenCopy:
    """``golden("dora")`` or ``golden("llama/dora")``: a copy of a PEFT adapter that a test may change."""

    def copy(case: str) -> Path:
        base, _, name = case.rpartition("/")
        return Path(shutil.copytree(GOLDEN_PEFT / (base or "bert") / name, tmp_path / name))

    return copy
