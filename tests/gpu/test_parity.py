"""What a backend computes is what the CPU, PEFT and AdapterHub's library compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Engine
from tests.contract import golden
from tests.runtime.support import hidden, ids

from .conftest import NEAR, Open, bind_all, far

LENGTHS = (9, 1, 4, 7, 2, 9, 3, 5)
ROWS = ["r1", None, "r16", "r2", None, "r5", "r8", "r16"]


def batch() -> tuple[dict[str, np.ndarray], np.ndarray]:
    mask = (np.arange(9)[None] < np.array(LENGTHS)[:, None]).astype(np.int64)
    return {"input_ids": ids(len(LENGTHS), 9, seed=3), "attention_mask": mask}, mask.astype(bool)


def test_mixed_rows_are_those_of_peft(
    serve: Open, precisions: dict[str, Path], tenants: dict[str, Path], tiny_bert: Path, dtype: str
) -> None:
    feeds, mask = batch()
    base = AutoModel.from_pretrained(tiny_bert)
    model = None
    for name, folder in tenants.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder, adapter_name=name).eval()
        else:
            model.load_adapter(folder, adapter_name=name)
    assert model is not None
    with torch.no_grad():
        wanted = model(
            **{name: torch.from_numpy(value) for name, value in feeds.items()},
            adapter_names=[name or "__base__" for name in ROWS],
        ).last_hidden_state.numpy()
    engine = bind_all(serve(precisions[dtype]), tenants)
    found = hidden(engine, feeds, ROWS)
    assert far(found[mask], wanted[mask]) <= NEAR[dtype]
    assert np.abs(found[2] - hidden(engine, feeds)[2]).max() > 0.1  # adapters do something


def test_mixed_rows_are_those_of_the_cpu(
    serve: Open, precisions: dict[str, Path], tenants: dict[str, Path], dtype: str
) -> None:
    """A batch, a single row, one adapter for all rows, none, and a batch as large as the profile holds."""
    feeds, _ = batch()
    many = {name: np.concatenate([value] * 5) for name, value in feeds.items()}
    engine = bind_all(serve(precisions[dtype]), tenants)
    with Engine.open(precisions["fp32"], threads=1) as cpu:
        bind_all(cpu, tenants)
        for given, rows in (
            (feeds, ROWS),
            ({name: value[:1] for name, value in feeds.items()}, ["r5"]),
            (feeds, "r8"),
            (feeds, None),
            (many, ROWS * 5),
            ({"input_ids": ids(3, 40)}, ["r1", "r2", None]),
            ({"input_ids": ids(2, 1)}, ["r16", None]),
        ):
            wanted = hidden(cpu, given, rows)
            mask = given.get("attention_mask", np.ones(wanted.shape[:2])).astype(bool)
            assert far(hidden(engine, given, rows)[mask], wanted[mask]) <= NEAR[dtype]


@pytest.mark.parametrize("rank", [1, 16])
def test_one_adapter_alone_in_the_bank(
    serve: Open, tiny_bundle: Path, tenants: dict[str, Path], rank: int
) -> None:
    """Arrays as narrow as they get, and no rank at all."""
    engine = serve(tiny_bundle)
    with Engine.open(tiny_bundle, threads=1) as cpu:
        for names in ((), (f"r{rank}",)):
            for each in (engine, cpu):
                bind_all(each, {name: tenants[name] for name in names})
            for rows in (None, [None, *names], *names):
                given = ids(len(rows) if isinstance(rows, list) else 2, 6)
                assert far(hidden(engine, given, rows), hidden(cpu, given, rows)) <= NEAR["fp32"]


#: of AdapterHub's adapters, by task: starts of names of cases, of which each has one at least
KINDS = {
    "feature-extraction": ("lora", "ia3", "dora", "double_seq_bn", "seq_bn", "adapter_plus", "ln_after"),
    "text-classification": ("head-classification",),
}


def chosen(task: str) -> list[golden.Golden]:
    served = [case for case in golden.cases("adapterhub", "serve") if case.group[1:] == ("bert", task)]
    first = [next(case for case in served if case.case.startswith(start)) for start in KINDS[task]]
    return first + [c for c in served if c.case.startswith(KINDS[task]) and c not in first][:6]


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``golden_bundle(task)``: a bundle for AdapterHub's adapters of a task, built once."""

    @cache
    def build(task: str) -> Path:
        target = tmp_path_factory.mktemp("golden") / "golden.bundle"
        like = tuple(case.path for case in chosen(task))
        slots = None if task == "feature-extraction" else ("head",)
        options = BuildOptions(like=like, slots=slots, max_rank=64, max_width=64)
        return build_model(
            str(golden.GOLDEN / "adapterhub" / "bases" / "bert"), target, task=task, options=options
        ).bundle.root

    return build


@pytest.mark.parametrize("task", KINDS)
def test_every_kind_of_slot(serve: Open, golden_bundle: Callable[[str], Path], task: str) -> None:
    """LoRA, biases, scales, bottlenecks and heads, held to what AdapterHub's library computed."""
    engine = serve(golden_bundle(task), mid=(1, 16, 16))
    cases = chosen(task)
    for case in cases:
        engine.bind(case.name, case.path)
    for case in cases:
        golden.check_alone(engine, case, NEAR["fp32"])
    golden.check_mixed(engine, cases, NEAR["fp32"])
