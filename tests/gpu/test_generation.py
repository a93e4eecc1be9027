"""Decoders: the tokens of a mixed batch are those of transformers and PEFT, and of each request alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adexport.build import build_model
from adexport.options import BuildOptions
from adexport_runtime import Engine, ProviderError
from tests.exporter.families import FAMILIES, Family
from tests.exporter.generators import GENERATORS, Reference, Tenants, make_prompts, make_tenants

from .backends import GPUS, Gpu
from .conftest import NEAR, Open, bind_all, far

LENGTHS = (3, 12, 2, 6, 1)
ROWS = ["tenant0", None, "tenant1", "tenant0", "tenant1"]
NEW = 12


@pytest.fixture(scope="session")
def family() -> Family:
    return GENERATORS["Llama, wide"]


@pytest.fixture(scope="session")
def talkers(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    return make_tenants(family, tmp_path_factory.mktemp("talkers"))


@pytest.fixture(scope="session")
def decoder(talkers: Tenants, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("decoder") / "decoder.bundle"
    build_model(str(talkers.model), target, options=BuildOptions(max_rank=16))
    return target


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return make_prompts(FAMILIES["Llama"].settings["vocab_size"], LENGTHS)


@pytest.fixture
def engine(gpu: Gpu, serve: Open, decoder: Path, talkers: Tenants) -> Engine:
    if not gpu.generates:
        pytest.skip(f"{gpu.name} takes no graph with ONNX Runtime's attention over caches")
    return bind_all(serve(decoder, batch=(1, 4, 8)), talkers.adapters)


def test_a_mixed_batch_says_what_peft_says(
    engine: Engine, talkers: Tenants, prompts: list[list[int]]
) -> None:
    reference = Reference(talkers)
    for result, prompt, row in zip(
        engine.generate(prompts, ROWS, max_new_tokens=NEW, eos=()), prompts, ROWS, strict=True
    ):
        reference.check(prompt, row, result.ids)
    assert reference.close <= 1


def test_logits_at_every_place(
    engine: Engine, decoder: Path, talkers: Tenants, prompts: list[list[int]]
) -> None:
    given = {"input_ids": np.array([prompts[1]] * 3)}
    with Engine.open(decoder, threads=1) as cpu:
        bind_all(cpu, talkers.adapters)
        for rows in (ROWS[:3], "tenant1", None):
            found, wanted = (each.run(given, rows)["logits"] for each in (engine, cpu))
            assert far(found, wanted) <= NEAR["fp32"]


def test_requests_that_join_and_leave(engine: Engine, talkers: Tenants, prompts: list[list[int]]) -> None:
    """Fewer rows than requests, prompts in pieces, one bound anew and one unbound meanwhile."""
    reference = Reference(talkers)
    with engine.session(2, 32, prompt_tokens=4) as session:
        streams = [
            session.submit(prompt, row, max_new_tokens=limit, eos=())
            for prompt, row, limit in zip(prompts, ROWS, (1, NEW, 3, 9, 6), strict=True)
        ]
        found = [stream.result(120).ids for stream in streams]
        assert [len(ids) for ids in found] == [1, NEW, 3, 9, 6]
        for ids, prompt, row in zip(found, prompts, ROWS, strict=True):
            reference.check(prompt, row, ids)
        running = session.submit(prompts[0], "tenant0", max_new_tokens=NEW, eos=())
        next(running.tokens())
        engine.bind("tenant0", talkers.adapters["tenant1"])
        later = session.submit(prompts[0], "tenant0", max_new_tokens=NEW, eos=())
        engine.unbind("tenant1")
        reference.check(prompts[0], "tenant0", running.result(120).ids)
        reference.check(prompts[0], "tenant1", later.result(120).ids)


def test_a_tenant_that_is_nan_ends_alone(engine: Engine, prompts: list[list[int]]) -> None:
    manifest = engine.bundle.manifest
    nan = {}
    for site in manifest.sites:
        assert site.linear.lora_A is not None
        assert site.linear.lora_B is not None
        nan[site.linear.lora_A.name] = np.full((site.in_features, 4), np.nan, np.float32)
        nan[site.linear.lora_B.name] = np.full((4, site.out_features), np.nan, np.float32)
    engine._bank.put("bad", nan)
    before = engine.generate(prompts[:2], ["tenant0", None], max_new_tokens=NEW, eos=())
    after = engine.generate(prompts[:3], ["tenant0", None, "bad"], max_new_tokens=NEW, eos=())
    assert [result.ids for result in after[:2]] == [result.ids for result in before]
    assert after[2].reason == "error"
    (again,) = engine.generate(prompts[2:3], ["tenant1"], max_new_tokens=NEW, eos=())
    assert again.reason == "length"


@pytest.mark.parametrize("gpu", [one for one in GPUS if not one.generates], ids=lambda one: one.name)
def test_decoders_are_refused_where_they_do_not_run(gpu: Gpu, decoder: Path) -> None:
    with pytest.raises(ProviderError, match="generation"):
        Engine.open(decoder, gpu.name)
