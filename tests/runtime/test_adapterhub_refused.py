"""Bottlenecks of AdapterHub that no slot carries, and bad files: refused by the names of all culprits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from adexport_runtime.errors import Code

from .adapterhub_files import (
    DOWN,
    FAST,
    FEATURES,
    JSON,
    KEYS,
    NAME,
    OUTPUT,
    SEQ_BN,
    WEIGHTS,
    at,
    compacter,
    culprits,
    document,
    edit,
    problems,
    read,
    seq_bn,
)
from .spoiled_headers import WRONG_TYPES


class TestRefused:
    @pytest.mark.parametrize("name", WRONG_TYPES)
    def test_headers_with_values_of_other_types(self, tmp_path: Path, name: str) -> None:
        folder = seq_bn(tmp_path / "a")
        (folder / WEIGHTS).write_bytes(WRONG_TYPES[name])
        assert culprits(folder) == {(Code.DAMAGED, str(folder / WEIGHTS))}

    @pytest.mark.parametrize(
        ("config", "key"),
        [
            ({"use_gating": True}, "use_gating"),
            ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}, "inv_adapter"),
            ({"inv_adapter": "glow"}, "inv_adapter"),
            ({"architecture": "prefix_tuning"}, "architecture"),
            ({"architecture": "prompt_tuning"}, "architecture"),
            ({"architecture": "reft"}, "architecture"),
            ({"architecture": "mtl_lora"}, "architecture"),
            ({"architecture": "union"}, "architecture"),
            ({"architecture": "of tomorrow"}, "architecture"),
            ({"architecture": ["lora"]}, "architecture"),
            ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
            ({"original_ln_before": False, "residual_before_ln": "post_add"}, "residual_before_ln"),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_settings_that_no_slot_carries(self, tmp_path: Path, config: dict[str, Any], key: str) -> None:
        folder = seq_bn(tmp_path / "a", **config)
        assert culprits(folder) == {(Code.UNSUPPORTED, key)}
        assert problems(folder)[0].cause

    @pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2", "vit"])
    def test_post_add_without_a_norm(self, tmp_path: Path, model_type: str) -> None:
        modules = {KEYS[model_type][1].format(0): 4}
        folder = at(tmp_path / "a", modules, {"model_type": model_type}, residual_before_ln="post_add")
        assert culprits(folder) == {(Code.UNSUPPORTED, "residual_before_ln")}

    def test_all_culprits_at_once(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a", non_linearity="mish", use_gating=True, scaling="learned")
        edit(folder, **{f"{OUTPUT.format(0)}.adapters.{NAME}.scaling": None})
        assert culprits(folder) == {
            (Code.UNSUPPORTED, "non_linearity"),
            (Code.UNSUPPORTED, "use_gating"),
            (Code.HALF_MISSING, OUTPUT.format(0)),
        }

    def test_keys_that_say_nothing(self, tmp_path: Path) -> None:
        config = {
            "attention_type": "sent-lvl-dynamic",
            "new_attention_norm": False,
            "a_key_of_tomorrow": None,
        }
        read(seq_bn(tmp_path / "a", {"config_id": "9076f36a74755ac4", "trained_by": "us"}, **config))

    @pytest.mark.parametrize("scaling", [2, True, "other", None, [1.0]])
    def test_scaling_that_the_library_does_not_take(self, tmp_path: Path, scaling: Any) -> None:
        found = culprits(seq_bn(tmp_path / "a", scaling=scaling))
        assert {code for code, _ in found} == {Code.BAD_CONFIG}

    def test_cross_attention(self, tmp_path: Path) -> None:
        """Only where there is any; BERT has none."""
        read(seq_bn(tmp_path / "a", cross_adapter=True))
        folder = at(
            tmp_path / "b", {"encoder.block.0.layer.1": 4}, {"model_type": "t5"}, cross_adapter=True
        )
        assert culprits(folder) == {(Code.UNSUPPORTED, "cross_adapter")}

    def test_shapes(self, tmp_path: Path) -> None:
        up = f"{OUTPUT.format(1)}.adapters.{NAME}.adapter_up.weight"
        cut = {DOWN.format(0): np.ones((4, 15), np.float32), up: np.ones((FEATURES, 4, 1), np.float32)}
        assert culprits(edit(seq_bn(tmp_path / "a"), **cut)) == {
            (Code.WRONG_SHAPE, DOWN.format(0)),
            (Code.WRONG_SHAPE, up),
        }

    def test_integers(self, tmp_path: Path) -> None:
        folder = edit(seq_bn(tmp_path / "a"), **{DOWN.format(0): np.ones((4, FEATURES), np.int32)})
        assert (Code.WRONG_DTYPE, DOWN.format(0)) in culprits(folder)

    def test_a_name_that_is_none(self, tmp_path: Path) -> None:
        assert culprits(seq_bn(tmp_path / "a", {"name": 7})) == {(Code.BAD_CONFIG, "name")}

    def test_only_a_pickle(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "imdb")
        (folder / WEIGHTS).rename(folder / "pytorch_adapter.bin")
        assert culprits(folder) == {(Code.NOT_SAFETENSORS, "pytorch_adapter.bin")}
        assert problems(folder)[0].mend.startswith(f"adexport convert {folder} ")

    def test_the_pickle_beside_is_not_read(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a")
        (folder / "pytorch_adapter.bin").write_bytes(b"no pickle")
        read(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "adapter_fusion_config.json",
            "pytorch_model_adapter_fusion.bin",
            "model_adapter_fusion.safetensors",
            "adapter_setup.json",
            "embedding.pt",
        ],
    )
    def test_files_of_more_than_one_adapter(self, tmp_path: Path, name: str) -> None:
        folder = seq_bn(tmp_path / "a")
        (folder / name).write_text("{}")
        assert culprits(folder) == {(Code.UNSUPPORTED, name)}
        (folder / "adapter_config.json").unlink()
        assert culprits(folder) == {(Code.UNSUPPORTED, name)}


class TestBadFiles:
    """Whatever is in them, what comes out is an adapter with problems or an :class:`AdapterError`."""

    @FAST
    @given(changes=st.dictionaries(st.sampled_from([*SEQ_BN, "architecture", "x"]), JSON, max_size=3))
    def test_settings(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        folder = seq_bn(tmp_path / "a")
        (folder / "adapter_config.json").write_text(json.dumps(document({**SEQ_BN, **changes})))
        problems(folder)

    @FAST
    @given(changes=st.dictionaries(st.sampled_from([*document({}), "type"]), JSON, min_size=1, max_size=3))
    def test_the_document(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        folder = seq_bn(tmp_path / "a")
        (folder / "adapter_config.json").write_text(json.dumps({**document(SEQ_BN), **changes}))
        problems(folder)

    @FAST
    @given(
        phm=st.booleans(),
        changes=st.dictionaries(
            st.sampled_from([DOWN.format(0), f"bert.shared_parameters.{NAME}.phm_rule", "a.0.b", "."])
            | st.text("abc.0", min_size=1, max_size=12),
            st.lists(st.integers(1, 4), max_size=4),
            max_size=3,
        ),
    )
    def test_tensors(self, tmp_path: Path, phm: bool, changes: dict[str, list[int]]) -> None:
        folder = (compacter if phm else seq_bn)(tmp_path / "a")
        shapes = {key: list(tensor.shape) for key, tensor in load_file(folder / WEIGHTS).items()}
        edit(folder, **{key: np.ones(shape, np.float32) for key, shape in changes.items()})
        wrong = [key for key, shape in changes.items() if shapes.get(key) != shape]
        assert bool(wrong) == bool(problems(folder))
