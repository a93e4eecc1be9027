"""Where AdapterHub's bottlenecks are, and how wide, on every family of models and behind interfaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport_runtime.errors import Code
from adexport_runtime.slots import BottleneckForm

from .adapterhub_files import (
    DOWN,
    FEATURES,
    INTERFACE,
    KEYS,
    NAME,
    OUTPUT,
    at,
    culprits,
    edit,
    problems,
    read,
    seq_bn,
)


class TestPlaces:
    @pytest.mark.parametrize("family", KEYS)
    def test_keys_of_every_family(self, tmp_path: Path, family: str) -> None:
        modules = {key.format(layer): 4 for key in KEYS[family] for layer in (0, 11)}
        adapter = read(at(tmp_path / "a", modules, {"model_type": family}, mh_adapter=True))
        assert set(adapter.bottlenecks) == {(i, place) for i in (0, 11) for place in ("mh", "output")}
        assert adapter.modules == frozenset(modules)

    def test_albert_counts_across_its_groups(self, tmp_path: Path) -> None:
        key = "encoder.albert_layer_groups.{}.albert_layers.{}.output_adapters"
        modules = {key.format(group, inner): 4 for group in (0, 1, 2) for inner in (0, 1)}
        top = {"model_type": "albert"}
        assert [layer for layer, _ in read(at(tmp_path / "a", modules, top)).bottlenecks] == [
            0,
            1,
            2,
            3,
            4,
            5,
        ]
        # a layer left out in the last place of every group would shift the numbers
        folder = at(tmp_path / "b", {key.format(g, 0): 4 for g in (0, 1, 2)}, top, leave_out=[1, 3, 5])
        assert culprits(folder) == {(Code.UNSUPPORTED, "leave_out")}

    @pytest.mark.parametrize("name", ["adapters", "loras", "en/wiki@ukp", "a b", "café", "x_adapters"])
    def test_names_that_look_like_keys(self, tmp_path: Path, name: str) -> None:
        adapter = read(at(tmp_path / "a", {OUTPUT.format(0): 4, OUTPUT.format(1): 4}, {"name": name}))
        assert len(adapter.bottlenecks) == 2

    def test_a_tensor_of_another_adapter(self, tmp_path: Path) -> None:
        other = DOWN.format(1).replace(NAME, "other")
        folder = edit(seq_bn(tmp_path / "a"), **{other: np.ones((4, FEATURES), np.float32)})
        assert culprits(folder) == {(Code.UNKNOWN_TENSOR, other)}

    @pytest.mark.parametrize(
        "module",
        [
            "encoder.layer.2.crossattention.output",
            "encoder.layer.2.intermediate",
            "encoder.layer.2.attention.output",
            "pooler",
        ],
    )
    def test_where_no_bottleneck_can_be(self, tmp_path: Path, module: str) -> None:
        folder = at(tmp_path / "a", {OUTPUT.format(0): 4, module: 4})
        assert culprits(folder) == {
            (Code.UNKNOWN_TENSOR, f"{module}.adapters.{NAME}.adapter_down.0.bias and 3 more")
        }

    def test_two_stacks_of_blocks(self, tmp_path: Path) -> None:
        """The library numbers the decoder's blocks behind the encoder's, however many those are."""
        folder = at(tmp_path / "a", {"decoder.layer.0.output": 4, OUTPUT.format(0): 4})
        assert culprits(folder) == {(Code.UNSUPPORTED, "decoder.layer and encoder.layer")}

    def test_a_decoder_behind_an_encoder(self, tmp_path: Path) -> None:
        modules = {"decoder.block.0.layer.0": 4, "decoder.block.0.layer.1": 4}
        folder = at(tmp_path / "a", modules, {"model_type": "t5"}, mh_adapter=True)
        assert {code for code, _ in culprits(folder)} == {Code.UNKNOWN_TENSOR}
        assert len(problems(folder)) == 2

    def test_a_layer_that_the_config_leaves_out(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a", leave_out=[1])
        assert culprits(folder) == {
            (Code.UNKNOWN_TENSOR, DOWN.format(1).replace("weight", "bias") + " and 3 more")
        }


class TestWidths:
    @pytest.mark.parametrize(
        ("factor", "widths"),
        [
            (4, [4, 4]),
            (3.2, [4, 4]),
            (16, [1, 1]),
            (100, [1, 1]),
            (0.5, [32, 32]),
            ({"0": 2, "1": 16}, [8, 1]),
            ({"1": 8, "default": 4}, [4, 2]),
        ],
        ids=str,
    )
    def test_of_the_config(self, tmp_path: Path, factor: Any, widths: list[int]) -> None:
        modules = {OUTPUT.format(layer): width for layer, width in enumerate(widths)}
        adapter = read(at(tmp_path / "a", modules, reduction_factor=factor))
        assert [weights.width for weights in adapter.bottlenecks.values()] == widths

    def test_other_than_the_config_says(self, tmp_path: Path) -> None:
        folder = at(tmp_path / "a", {OUTPUT.format(0): 4, OUTPUT.format(1): 5})
        assert culprits(folder) == {(Code.RANK_MISMATCH, OUTPUT.format(1))}

    def test_sizes_beyond_all_bounds(self, tmp_path: Path) -> None:
        found = culprits(seq_bn(tmp_path / "a", {"hidden_size": 10**400}))
        assert found == {(Code.BAD_CONFIG, "reduction_factor")}

    def test_no_factor_for_a_layer(self, tmp_path: Path) -> None:
        assert culprits(seq_bn(tmp_path / "a", reduction_factor={"0": 4})) == {
            (Code.BAD_CONFIG, "reduction_factor")
        }

    @pytest.mark.parametrize("factor", [0, -4, True, "16", None, [4], 5e-324])
    def test_no_factor_at_all(self, tmp_path: Path, factor: Any) -> None:
        found = culprits(seq_bn(tmp_path / "a", reduction_factor=factor))
        assert {code for code, _ in found} == {Code.BAD_CONFIG}
        assert all(subject.startswith("reduction_factor") for _, subject in found)

    def test_the_hidden_size_is_the_files_where_the_config_has_none(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a", {"hidden_size": None})
        assert len(read(folder).bottlenecks) == 2
        wrong = seq_bn(tmp_path / "b", {"hidden_size": 20}, reduction_factor=5)
        assert {code for code, _ in culprits(wrong)} == {Code.WRONG_SHAPE}


class TestInterfaces:
    def qwen(self, folder: Path, model_type: str = "qwen2", interface: Any = None, **config: Any) -> Path:
        at(folder, {"layers.0.output_adapters": 4}, {"model_type": model_type}, **config)
        text = json.dumps({"interface": {**INTERFACE, **(interface or {})}, "model_type": model_type})
        (folder / "adapter_interface.json").write_text(text)
        return folder

    def test_behind_an_interface(self, tmp_path: Path) -> None:
        adapter = read(self.qwen(tmp_path / "a"))
        assert adapter.style is not None
        assert adapter.style.form == BottleneckForm(input="normed")

    def test_without_the_file(self, tmp_path: Path) -> None:
        folder = self.qwen(tmp_path / "a")
        (folder / "adapter_interface.json").unlink()
        assert culprits(folder) == {(Code.UNSUPPORTED, "model_type")}

    @pytest.mark.parametrize(
        ("interface", "config", "key"),
        [
            ({"layer_ln_1": "mlp_norm"}, {}, "original_ln_before"),
            ({"layer_ln_2": "norm"}, {}, "original_ln_before"),
            ({}, {"original_ln_after": False}, "original_ln_after"),
            ({"layer_pre_ffn": None}, {}, "original_ln_before"),
            ({"layer_pre_ffn": None}, {"is_parallel": True}, "is_parallel"),
            ({"layer_cross_attn": "cross_attn"}, {}, "layer_cross_attn"),
            ({"attn_qkv_proj": "Wqkv"}, {}, "attn_qkv_proj"),
        ],
        ids=str,
    )
    def test_what_the_library_does_otherwise(
        self, tmp_path: Path, interface: dict[str, Any], config: dict[str, Any], key: str
    ) -> None:
        assert culprits(self.qwen(tmp_path / "a", interface=interface, **config)) == {
            (Code.UNSUPPORTED, key)
        }

    def test_what_does_not_need_the_norm(self, tmp_path: Path) -> None:
        norms = {"layer_ln_1": "mlp_norm", "layer_pre_ffn": None}
        read(self.qwen(tmp_path / "a", interface=norms, original_ln_before=False))
        read(self.qwen(tmp_path / "b", interface={"layer_ln_1": "mlp_norm"}, is_parallel=True))

    def test_a_model_whose_norms_are_unknown(self, tmp_path: Path) -> None:
        folder = self.qwen(tmp_path / "a", "of_tomorrow")
        assert culprits(folder) == {(Code.UNSUPPORTED, "original_ln_before")}
        read(self.qwen(tmp_path / "b", "of_tomorrow", original_ln_before=False))

    def test_an_interface_comes_before_the_librarys_own_wrapping(self, tmp_path: Path) -> None:
        """BERT behind an interface: the same places under other names."""
        folder = self.qwen(tmp_path / "a", "bert", original_ln_before=False)
        assert read(folder).bottlenecks.keys() == {(0, "output")}
        folder = self.qwen(tmp_path / "b", "bert", residual_before_ln="post_add")
        assert culprits(folder) == {
            (Code.UNSUPPORTED, "residual_before_ln"),
            (Code.UNSUPPORTED, "original_ln_before"),
        }

    @pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
    def test_norms_between_the_layer_and_the_addition(self, tmp_path: Path, model_type: str) -> None:
        folder = self.qwen(tmp_path / "a", model_type, original_ln_before=False)
        assert culprits(folder) == {(Code.UNSUPPORTED, "model_type")}

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"interface": 1}', '{"interface": {"a": 1}}', '{"a": 1, "a": 2}']
    )
    def test_a_bad_file(self, tmp_path: Path, text: str) -> None:
        folder = self.qwen(tmp_path / "a")
        (folder / "adapter_interface.json").write_text(text)
        (found,) = problems(folder)
        assert found.code in (Code.BAD_CONFIG, Code.DUPLICATE_KEY)
        assert "adapter_interface.json" in found.subject
