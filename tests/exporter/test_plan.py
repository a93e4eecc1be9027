"""Which layers become sites: ``--targets`` and ``--like`` as PEFT means them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import BertConfig, BertModel

from adexport.options import BuildOptions
from adexport.slots.plan import Places, Plan, make_plan
from adexport.slots.targets import in_block, parse_targets
from adexport_runtime.errors import AdapterError, BuildError, Code
from adexport_runtime.matching import matches
from adexport_runtime.slots import Location

from ..conftest import TINY, MakeLora
from ..runtime.support import GOLDEN_HUB

LAYERS = {
    f"encoder.layer.{i}.{name}": True
    for i in range(2)
    for name in ("attention.self.query", "attention.self.value", "output.dense")
} | {"pooler.dense": True}


def plan(targets: str | None = None, max_rank: int | None = None, **options: object) -> Plan:
    chosen = BuildOptions(targets=parse_targets(targets), max_rank=max_rank, **options)  # type: ignore[arg-type]
    return make_plan(Places(LAYERS), chosen)


def test_default_is_every_layer_of_the_blocks() -> None:
    assert tuple(plan().sites) == tuple(path for path in LAYERS if "layer" in path)
    assert set(plan().sites.values()) == {frozenset({"lora_A", "lora_B"})}
    assert plan().max_rank == 64
    assert plan("all-linear") == plan()


def test_names_and_regexes() -> None:
    assert tuple(plan("query").sites) == tuple(path for path in LAYERS if path.endswith("query"))
    assert tuple(plan("pooler.dense").sites) == ("pooler.dense",)
    assert tuple(plan(r".*layer\.1\..*(query|value)", 8).sites) == (
        "encoder.layer.1.attention.self.query",
        "encoder.layer.1.attention.self.value",
    )


def test_every_wrong_target_is_named() -> None:
    with pytest.raises(BuildError) as caught:
        plan("query,quary,vale")
    assert [problem.subject for problem in caught.value.problems] == ["quary", "vale"]


def test_layers_without_the_batch_first() -> None:
    layers = {**LAYERS, "encoder.layer.0.attention.self.query": False}
    left = make_plan(Places(layers), BuildOptions())
    assert left.left_out == ("encoder.layer.0.attention.self.query",)
    assert left.left_out[0] not in left.sites
    with pytest.raises(BuildError) as caught:
        make_plan(Places(layers), BuildOptions(targets=["query"]))
    assert caught.value.codes == {Code.UNSUPPORTED}


def test_like_takes_sites_and_rank(make_lora: MakeLora) -> None:
    one = make_lora(r=3, target_modules=["query"], layers_to_transform=[1])
    two = make_lora(r=6, target_modules=["value"], layers_to_transform=[0])
    found = plan(like=(one, two))
    assert tuple(found.sites) == (
        "encoder.layer.0.attention.self.value",
        "encoder.layer.1.attention.self.query",
    )
    assert found.max_rank == 6
    assert plan(like=(one,), max_rank=9).max_rank == 9
    with pytest.raises(BuildError) as caught:
        plan(like=(two,), max_rank=4)
    assert caught.value.codes == {Code.RANK_ABOVE_MAX}


def test_kinds_beside_a_like_that_has_none_of_them() -> None:
    """An adapter of bottlenecks says nothing of linear layers: kinds that were asked for go everywhere."""
    seq_bn = GOLDEN_HUB / "bert" / "seq_bn"
    ends: dict[str, tuple[int, Location]] = {
        f"encoder.layer.{layer}.output.dense": (layer, "output") for layer in range(2)
    }
    options = BuildOptions(like=(seq_bn,), slots=("lora",))
    found = make_plan(Places(LAYERS, ends), options)
    assert found.sites == plan().sites
    assert found.slots == ("lora", "bottleneck")
    assert make_plan(Places(LAYERS, ends), BuildOptions(like=(seq_bn,))).slots == ("bottleneck",)


def test_like_of_another_base(make_lora: MakeLora, tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig(**{**TINY, "num_hidden_layers": 3})).save_pretrained(tmp_path / "deeper")
    with pytest.raises(BuildError) as caught:
        plan(like=(make_lora(model=tmp_path / "deeper", target_modules=["query"]),))
    assert [problem.subject for problem in caught.value.problems] == [
        "encoder.layer.2.attention.self.query"
    ]


def test_like_of_a_refused_adapter(make_lora: MakeLora) -> None:
    with pytest.raises(AdapterError):
        plan(like=(make_lora(bias="all"),))


def test_blocks_are_numbered() -> None:
    assert in_block("h.0.attn.c_attn")
    assert not in_block("pooler.dense")
    assert not in_block("layer2.dense")


@given(st.lists(st.sampled_from(["query", "self.value", "dense", "layer", "er.layer.0", "pooler.dense"])))
def test_names_match_as_in_peft(names: list[str]) -> None:
    config = LoraConfig(target_modules=names or ["nothing"])
    for path in LAYERS:
        assert matches(names or ["nothing"], path) == bool(check_target_module_exists(config, path))
