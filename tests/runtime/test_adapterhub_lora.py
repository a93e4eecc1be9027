"""AdapterHub's LoRA, IA3, VeRA and DoRA as factors of linear slots, against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from adexport_runtime.adapters import FrozenLinear, LinearRecipe, LinearWeights
from adexport_runtime.errors import AdapterError, Code

from .adapterhub_files import (
    FAST,
    FEATURES,
    INTERFACE,
    JSON,
    LORA,
    NAME,
    culprits,
    document,
    edit,
    loras,
    problems,
    randoms,
    read,
    tensors_of,
    write,
)

QUERY = "encoder.layer.{}.attention.self.query"
VALUE = "encoder.layer.{}.attention.self.value"
PAIR = {"lora_A": (2, FEATURES), "lora_B": (FEATURES, 2)}
C_ATTN = "transformer.h.0.attn.c_attn"
GPT2 = {"model_type": "gpt2"}


def bert(folder: Path, top: Any = None, parts: Any = None, **config: Any) -> Path:
    """LoRA on the queries and values of two layers."""
    modules = {path.format(layer): parts or PAIR for path in (QUERY, VALUE) for layer in (0, 1)}
    return loras(folder, modules, top, **config)


def part(folder: Path, module: str, name: str) -> torch.Tensor:
    return torch.from_numpy(tensors_of(folder)[f"{module}.loras.{NAME}.{name}"]).double()


def factors(folder: Path, module: str) -> dict[str, torch.Tensor]:
    update = read(folder).linears[module]
    assert isinstance(update, LinearWeights)
    assert all(array.dtype == np.float32 for array in update.factors.values())
    return {name: torch.from_numpy(array).double() for name, array in update.factors.items()}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class TestLora:
    @pytest.mark.parametrize(("alpha", "scaling"), [(3, 1.5), (2, 1.0), (0, 0.0), (2.5, 1.25)])
    def test_scaling(self, tmp_path: Path, alpha: float, scaling: float) -> None:
        folder = bert(tmp_path / "a", alpha=alpha)
        found = factors(folder, VALUE.format(1))
        assert found.keys() == {"lora_A", "lora_B"}
        a, b = (part(folder, VALUE.format(1), name) for name in ("lora_A", "lora_B"))
        close((found["lora_A"] @ found["lora_B"]).T, scaling * (b @ a))
        assert read(folder).linears[VALUE.format(1)].rank == 2

    @pytest.mark.parametrize(
        ("version", "alpha"),
        [
            ("adapters.1.0.1", 2),
            ("adapters.1.1.0.dev0", 2),
            ("adapters.1.1.0rc1", 2),
            ("adapters.1.1", 3),
            ("adapters.1.1.0.post1", 3),
            ("adapters.10.0", 3),
            ("3.2.1", 3),
            (None, 3),
        ],
    )
    def test_versions_that_scaled_wrong(self, tmp_path: Path, version: str | None, alpha: float) -> None:
        folder = bert(tmp_path / "a", {"version": version})
        b = part(folder, QUERY.format(0), "lora_B")
        close(factors(folder, QUERY.format(0))["lora_B"].T, alpha / 2 * b)

    def test_what_the_config_covers(self, tmp_path: Path) -> None:
        adapter = read(bert(tmp_path / "a", leave_out=[3]))
        assert adapter.source_type == "adapterhub:lora"
        assert adapter.covers is not None
        found = {
            path: adapter.covers(path)
            for path in (
                *(QUERY.format(layer) for layer in (0, 3, 4)),
                f"bert.{VALUE.format(9)}",
                "encoder.layer.0.attention.self.key",
                "encoder.layer.0.attention.output.dense",
                "encoder.layer.0.intermediate.dense",
                "encoder.layer.0.output.dense",
                "pooler.dense",
            )
        }
        assert [path for path, there in found.items() if there] == [
            QUERY.format(0),
            QUERY.format(4),
            f"bert.{VALUE.format(9)}",
        ]

    def test_flags_of_the_feed_forward_part(self, tmp_path: Path) -> None:
        modules = {
            "encoder.layer.0.intermediate.dense": {"lora_A": (2, 16), "lora_B": (24, 2)},
            "encoder.layer.0.output.dense": {"lora_A": (2, 24), "lora_B": (16, 2)},
        }
        flags = {"selfattn_lora": False, "intermediate_lora": True}
        assert (
            read(loras(tmp_path / "a", modules, **flags, output_lora=True)).linears.keys() == modules.keys()
        )
        first = f"encoder.layer.0.output.dense.loras.{NAME}.lora_A and 1 more"
        assert culprits(loras(tmp_path / "b", modules, **flags)) == {(Code.UNKNOWN_TENSOR, first)}

    def test_llamas_names_are_swapped(self, tmp_path: Path) -> None:
        llama = {"model_type": "llama"}
        down = {"model.layers.0.mlp.down_proj": {"lora_A": (2, 24), "lora_B": (16, 2)}}
        flags = {"selfattn_lora": False, "intermediate_lora": True}
        adapter = read(loras(tmp_path / "a", down, llama, **flags))
        assert adapter.covers is not None
        paths = [f"layers.0.mlp.{name}_proj" for name in ("down", "up", "gate")]
        assert [adapter.covers(path) for path in paths] == [True, False, False]

    def test_behind_an_interface(self, tmp_path: Path) -> None:
        modules = {"layers.0.self_attn.q_proj": PAIR, "layers.0.self_attn.v_proj": PAIR}
        folder = loras(tmp_path / "a", modules, {"model_type": "qwen3"})
        (folder / "adapter_interface.json").write_text(json.dumps({"interface": INTERFACE}))
        adapter = read(folder)
        assert adapter.linears.keys() == modules.keys()
        assert adapter.covers is not None
        assert adapter.covers("model.layers.7.self_attn.v_proj")

    def test_llama_behind_an_interface_is_not_swapped(self, tmp_path: Path) -> None:
        up = {"layers.0.mlp.up_proj": {"lora_A": (2, 16), "lora_B": (24, 2)}}
        flags = {"selfattn_lora": False, "intermediate_lora": True}
        folder = loras(tmp_path / "a", up, {"model_type": "llama"}, **flags)
        assert {code for code, _ in culprits(folder)} == {Code.UNKNOWN_TENSOR}
        (folder / "adapter_interface.json").write_text(json.dumps({"interface": INTERFACE}))
        assert read(folder).linears.keys() == up.keys()


class TestFused:
    """GPT-2's ``c_attn``, as ``LoRAMergedLinear`` computes it: a grouped convolution, then padding."""

    @pytest.mark.parametrize("matrices", [["q"], ["v", "q"], ["k"], ["q", "k", "v"], ["q", "k", "v", "o"]])
    def test_lora(self, tmp_path: Path, matrices: list[str]) -> None:
        enabled = [name in matrices for name in "qkv"]
        pairs = sum(enabled)
        shapes = {"lora_A": (2 * pairs, FEATURES), "lora_B": (FEATURES * pairs, 2)}
        folder = loras(tmp_path / "a", {C_ATTN: shapes}, GPT2, attn_matrices=matrices)
        x = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(0)).double()
        after_a = functional.linear(x, part(folder, C_ATTN, "lora_A"))
        b = part(folder, C_ATTN, "lora_B").unsqueeze(-1)
        after_b = functional.conv1d(after_a.T.unsqueeze(0), b, groups=pairs).squeeze(0).T
        expected = torch.zeros(5, 3, FEATURES, dtype=torch.float64)
        expected[:, enabled] = 1.5 * after_b.reshape(5, pairs, FEATURES)
        found = factors(folder, C_ATTN)
        close(x @ found["lora_A"] @ found["lora_B"], expected.reshape(5, 3 * FEATURES))
        assert found["lora_A"].shape == (FEATURES, 2 * pairs)

    @pytest.mark.parametrize("alpha", [1, 3])
    def test_ia3_scales_the_other_thirds_too(self, tmp_path: Path, alpha: float) -> None:
        folder = loras(
            tmp_path / "a",
            {C_ATTN: {"lora_B": (2 * FEATURES, 1)}},
            GPT2,
            composition_mode="scale",
            r=1,
            alpha=alpha,
            attn_matrices=["k", "v"],
        )
        ones = torch.ones(FEATURES, dtype=torch.float64)
        expected = alpha * torch.cat([ones, part(folder, C_ATTN, "lora_B")[:, 0]])
        close(factors(folder, C_ATTN)["scale_out"], expected)

    def test_rows_that_are_no_thirds(self, tmp_path: Path) -> None:
        shapes = {"lora_A": (4, FEATURES), "lora_B": (33, 2)}
        folder = loras(tmp_path / "a", {C_ATTN: shapes}, GPT2)
        assert culprits(folder) == {(Code.WRONG_SHAPE, f"{C_ATTN}.loras.{NAME}.lora_B")}

    def test_other_matrices_than_the_config_says(self, tmp_path: Path) -> None:
        shapes = {"lora_A": (4, FEATURES), "lora_B": (2 * FEATURES, 2)}
        folder = loras(tmp_path / "a", {C_ATTN: shapes}, GPT2, attn_matrices=["q"])
        assert culprits(folder) == {(Code.RANK_MISMATCH, C_ATTN)}


IA3 = {"composition_mode": "scale", "r": 1, "alpha": 2, "init_weights": "ia3"}


class TestIa3:
    def test_scales_the_output(self, tmp_path: Path) -> None:
        folder = bert(tmp_path / "a", parts={"lora_B": (FEATURES, 1)}, **IA3)
        found = factors(folder, QUERY.format(1))
        assert found.keys() == {"scale_out"}
        close(found["scale_out"], 2 * part(folder, QUERY.format(1), "lora_B")[:, 0])
        assert read(folder).source_type == "adapterhub:ia3"

    @pytest.mark.parametrize("change", [{"r": 2}, {"use_dora": True}], ids=str)
    def test_what_the_library_fails_with(self, tmp_path: Path, change: dict[str, Any]) -> None:
        folder = bert(tmp_path / "a", parts={"lora_B": (FEATURES, 1)}, **{**IA3, **change})
        assert culprits(folder) == {(Code.UNSUPPORTED, "composition_mode")}


def vera(folder: Path, **config: Any) -> Path:
    parts: dict[str, tuple[int, ...]] = {"vera_D": (2, 2), "vera_B": (FEATURES, FEATURES)}
    if config.get("use_dora"):
        parts["m.weight"] = (FEATURES, 1)
    bert(folder, parts=parts, vera_d=0.1, vera_b=0.0, **config)
    shared = {f"bert.shared_parameters.{NAME}.{name}": shape for name, shape in PAIR.items()}
    return edit(folder, **randoms(shared, seed=1))


class TestVera:
    def test_shared_factors(self, tmp_path: Path) -> None:
        folder = vera(tmp_path / "a")
        a, b = (
            torch.from_numpy(tensors_of(folder)[f"bert.shared_parameters.{NAME}.{half}"]).double()
            for half in ("lora_A", "lora_B")
        )
        d, e = (part(folder, QUERY.format(1), name) for name in ("vera_D", "vera_B"))
        found = factors(folder, QUERY.format(1))
        close((found["lora_A"] @ found["lora_B"]).T, 1.5 * (e @ b @ d @ a))
        assert read(folder).source_type == "adapterhub:vera"

    def test_the_library_forgot_what_is_shared(self, tmp_path: Path) -> None:
        folder = vera(tmp_path / "a")
        edit(folder, **{f"bert.shared_parameters.{NAME}.{half}": None for half in ("lora_A", "lora_B")})
        assert culprits(folder) == {(Code.HALF_MISSING, "shared_parameters")}

    def test_not_on_fused_projections(self, tmp_path: Path) -> None:
        folder = loras(tmp_path / "a", {C_ATTN: PAIR}, GPT2, vera_d=0.1, vera_b=0.1)
        assert culprits(folder) == {(Code.UNSUPPORTED, "vera_d")}


class TestDora:
    @pytest.mark.parametrize("kind", ["dora", "dvora"])
    def test_magnitudes_over_the_norm_of_the_merged_weight(self, tmp_path: Path, kind: str) -> None:
        """The norm is of W + BA without the scaling, unlike PEFT's (``compute_dora_norm``)."""
        module = QUERY.format(0)
        parts = {**PAIR, "m.weight": (FEATURES, 1)}
        folder = tmp_path / "a"
        folder = bert(folder, parts=parts, use_dora=True) if kind == "dora" else vera(folder, use_dora=True)
        adapter = read(folder)
        assert adapter.source_type == f"adapterhub:{kind}"
        recipe = adapter.linears[module]
        assert isinstance(recipe, LinearRecipe)
        assert (recipe.kinds, recipe.rank) == ({"lora_A", "lora_B", "scale_out"}, 2)
        frozen = np.random.default_rng(3).standard_normal((FEATURES, FEATURES), np.float32)
        solved = recipe.solve(lambda: FrozenLinear(frozen, None))
        assert solved.kinds == recipe.kinds
        a, b, g = (
            torch.from_numpy(solved.factors[name]).double() for name in ("lora_A", "lora_B", "scale_out")
        )
        update = (a @ b).T
        norm = torch.linalg.norm(torch.from_numpy(frozen).double() + update / 1.5, dim=1)
        close(g, part(folder, module, "m.weight")[:, 0] / norm)
        if kind == "dora":
            close(update, 1.5 * part(folder, module, "lora_B") @ part(folder, module, "lora_A"))

    def test_another_base(self, tmp_path: Path) -> None:
        folder = bert(tmp_path / "a", parts={**PAIR, "m.weight": (FEATURES, 1)}, use_dora=True)
        recipe = read(folder).linears[QUERY.format(0)]
        with pytest.raises(AdapterError) as caught:
            recipe.solve(lambda: FrozenLinear(np.ones((FEATURES, 8), np.float32), None))
        assert caught.value.codes == {Code.WRONG_SHAPE}

    def test_not_on_gpt2(self, tmp_path: Path) -> None:
        folder = loras(tmp_path / "a", {C_ATTN: PAIR}, GPT2, use_dora=True)
        assert culprits(folder) == {(Code.UNSUPPORTED, "use_dora")}


class TestRefused:
    def test_gating(self, tmp_path: Path) -> None:
        folder = bert(tmp_path / "a", parts={**PAIR, "gate.weight": (1, FEATURES), "gate.bias": (1,)})
        found = culprits(folder)
        assert len(found) == 8
        assert {code for code, _ in found} == {Code.UNKNOWN_TENSOR}
        gated = bert(tmp_path / "b", parts={**PAIR, "gate.weight": (1, FEATURES)}, use_gating=True)
        assert culprits(gated) == {(Code.UNSUPPORTED, "use_gating")}

    def test_half_of_a_pair(self, tmp_path: Path) -> None:
        folder = edit(bert(tmp_path / "a"), **{f"{QUERY.format(1)}.loras.{NAME}.lora_B": None})
        assert culprits(folder) == {(Code.HALF_MISSING, QUERY.format(1))}

    def test_another_rank(self, tmp_path: Path) -> None:
        folder = bert(tmp_path / "a", r=3)
        assert culprits(folder) == {
            (Code.RANK_MISMATCH, p.format(i)) for p in (QUERY, VALUE) for i in (0, 1)
        }

    def test_a_bottleneck_in_a_lora(self, tmp_path: Path) -> None:
        name = f"encoder.layer.0.output.adapters.{NAME}.adapter_up.bias"
        folder = edit(bert(tmp_path / "a"), **{name: np.ones(FEATURES, np.float32)})
        assert culprits(folder) == {(Code.UNKNOWN_TENSOR, name)}

    @pytest.mark.parametrize("module", ["encoder.layer.0.attention.output.dense", "pooler.dense"])
    def test_where_the_library_puts_none(self, tmp_path: Path, module: str) -> None:
        folder = loras(tmp_path / "a", {module: PAIR})
        assert culprits(folder) == {(Code.UNKNOWN_TENSOR, f"{module}.loras.{NAME}.lora_A and 1 more")}

    @pytest.mark.parametrize(
        "change",
        [
            {"r": 0},
            {"r": 2.5},
            {"r": None},
            {"alpha": "8"},
            {"composition_mode": "mul"},
            {"attn_matrices": "qv"},
            {"leave_out": None},
        ],
        ids=str,
    )
    def test_bad_settings(self, tmp_path: Path, change: dict[str, Any]) -> None:
        assert culprits(bert(tmp_path / "a", **change)) == {(Code.BAD_CONFIG, next(iter(change)))}

    def test_what_overflows_is_infinite(self, tmp_path: Path) -> None:
        """``bind`` refuses it as not finite."""
        found = factors(bert(tmp_path / "a", alpha=1e42), QUERY.format(0))
        assert torch.isinf(found["lora_B"]).all()

    @FAST
    @given(
        model=st.sampled_from(["bert", "gpt2", "albert", "t5", "x"]),
        changes=st.dictionaries(st.sampled_from([*LORA]), JSON, max_size=3),
        shapes=st.dictionaries(
            st.sampled_from([*PAIR, "m.weight", "vera_D", "vera_B"]),
            st.lists(st.integers(1, 4), max_size=3),
            min_size=1,
        ),
    )
    def test_any_bad_file(self, tmp_path: Path, model: str, changes: Any, shapes: Any) -> None:
        module = C_ATTN if model == "gpt2" else QUERY.format(0)
        tensors = {
            f"{module}.loras.{NAME}.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()
        }
        write(tmp_path / "a", document({**LORA, "r": 1, **changes}, model_type=model), tensors)
        problems(tmp_path / "a")
