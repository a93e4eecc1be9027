"""The configs of PEFT's methods: every key is used, ignored or refused, and values are checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import peft
import pytest

from adexport_runtime import Code
from adexport_runtime.adapters.peft import METHODS
from adexport_runtime.adapters.peft.config import IGNORED

from .conftest import GoldenCopy
from .support import QUERY, VALUE, culprits, edit_config

Q0 = QUERY.format(0)
SITES = {form.format(n) for form in (QUERY, VALUE) for n in (0, 1)}

CONFIGS = {
    "LORA": peft.LoraConfig,
    "ADALORA": peft.AdaLoraConfig,
    "IA3": peft.IA3Config,
    "VERA": peft.VeraConfig,
    "LOHA": peft.LoHaConfig,
    "LOKR": peft.LoKrConfig,
    "MISS": peft.MissConfig,
    "HRA": peft.HRAConfig,
    "DELORA": peft.DeloraConfig,
    "VBLORA": peft.VBLoRAConfig,
}


@pytest.mark.parametrize("kind", METHODS)
def test_every_key_of_peft_is_used_ignored_or_refused(kind: str) -> None:
    ours = METHODS[kind].config
    known = IGNORED | ours.ignored | ours.refused.keys() | ours.model_fields.keys()
    assert {field.name for field in dataclasses.fields(CONFIGS[kind])} <= known


@pytest.mark.parametrize("kind", METHODS)
def test_no_key_is_used_and_ignored(kind: str) -> None:
    ours = METHODS[kind].config
    used = ours.model_fields.keys()
    assert not (ours.ignored | IGNORED) & used
    assert not ours.refused.keys() & (used | ours.ignored)


@pytest.mark.parametrize(
    "case", ["ia3", "adalora", "vera", "loha", "lokr", "miss", "hra", "delora", "vblora"]
)
def test_an_unknown_key_that_says_something(golden: GoldenCopy, case: str) -> None:
    folder = edit_config(golden(case), a_key_of_tomorrow=3)
    assert culprits(folder) == {Code.UNSUPPORTED: {"a_key_of_tomorrow"}}
    assert culprits(edit_config(folder, a_key_of_tomorrow=False)) == {}


@pytest.mark.parametrize(
    ("case", "changes", "culprit"),
    [
        ("lora", {"init_lora_weights": "of_tomorrow"}, "init_lora_weights"),
        ("lora", {"use_dora": True, "velora_config": {"num_groups": 2}}, "use_dora and velora_config"),
        ("dora", {"lora_bias": True}, "use_dora and lora_bias"),
        ("bdlora", {"init_lora_weights": "mica"}, "use_bdlora and mica"),
        ("miss", {"init_weights": "of_tomorrow"}, "init_weights"),
        ("adalora", {"use_dora": True}, "use_dora"),
        ("vera", {"bias": "all"}, "bias"),
        ("delora", {"bias": "some"}, "bias"),
    ],
)
def test_values(golden: GoldenCopy, case: str, changes: dict[str, Any], culprit: str) -> None:
    assert culprit in culprits(edit_config(golden(case), **changes))[Code.UNSUPPORTED]


@pytest.mark.parametrize(
    ("case", "changes", "culprit"),
    [
        ("loha", {"alpha": "much"}, "alpha"),
        ("vblora", {"topk": 0}, "topk"),
        ("adalora", {"init_r": None}, "init_r"),
        ("ia3", {"feedforward_modules": "("}, "feedforward_modules '('"),
        ("lora", {"modules_to_save": ["("]}, "modules_to_save '('"),
        ("lora", {"layers_to_transform": [0], "layers_pattern": ["("]}, "layers_pattern '('"),
    ],
)
def test_bad_values(golden: GoldenCopy, case: str, changes: dict[str, Any], culprit: str) -> None:
    assert culprit in culprits(edit_config(golden(case), **changes))[Code.BAD_CONFIG]


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("adalora", {"init_r": 3}),
        ("vera", {"r": 6}),
        ("loha", {"rank_pattern": {"query": 3}}),
        ("lokr-products", {"r": 2}),
        ("miss", {"r": 2}),
        ("hra", {"r": 2}),
        ("delora", {"rank_pattern": {"query": 2}}),
        ("vblora", {"r": 4}),
        ("bdlora", {"r": 8}),
    ],
)
def test_another_rank_than_the_files(golden: GoldenCopy, case: str, changes: dict[str, Any]) -> None:
    found = culprits(edit_config(golden(case), **changes))
    assert found.keys() == {Code.RANK_MISMATCH}
    assert Q0 in found[Code.RANK_MISMATCH]


def test_the_config_of_another_vector_bank(golden: GoldenCopy) -> None:
    folder = edit_config(golden("vblora"), num_vectors=11)
    assert culprits(folder) == {Code.WRONG_SHAPE: SITES}
    folder = edit_config(folder, num_vectors=10, vector_length=4)
    assert culprits(folder) == {Code.WRONG_SHAPE: SITES}
    folder = edit_config(folder, vector_length=8, topk=11)
    assert culprits(folder) == {Code.WRONG_SHAPE: SITES}


def test_a_method_of_tomorrow(golden: GoldenCopy) -> None:
    folder = golden("lora")
    for kind in ("FOO", None, ["LORA"]):
        assert culprits(edit_config(folder, peft_type=kind)) == {Code.UNSUPPORTED: {"peft_type"}}
