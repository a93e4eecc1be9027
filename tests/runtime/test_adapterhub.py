"""AdapterHub's bottlenecks: config to form, tensors to factors, and everything else refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adexport_runtime.adapters import NeutralAdapter, read_adapter
from adexport_runtime.errors import AdapterError, Code, Problem
from adexport_runtime.slots import BottleneckForm

from .adapterhub_files import (
    FEATURES,
    NAME,
    SEQ_BN,
    WEIGHTS,
    document,
    edit,
    randoms,
    seq_bn,
    tensors_of,
    write,
)

OUTPUT = "encoder.layer.{}.output"
DOWN = OUTPUT + f".adapters.{NAME}.adapter_down.0.weight"

#: what differs from SeqBnConfig -> what differs from the plainest form
FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"input": "normed"}),
    ({"original_ln_before": False}, {}),
    ({"original_ln_before": False, "residual_before_ln": False}, {}),
    ({"residual_before_ln": False}, {"input": "normed", "skip": "input"}),
    ({"residual_before_ln": "post_add"}, {"input": "normed", "skip": "sum"}),
    ({"original_ln_after": False}, {"input": "normed", "close": False}),
    (
        {"original_ln_after": False, "residual_before_ln": False},
        {"input": "normed", "skip": "input", "close": False},
    ),
    ({"ln_before": True}, {"input": "normed", "norm_before": True}),
    ({"ln_after": True}, {"input": "normed", "norm_after": "update"}),
    ({"ln_after": True, "adapter_residual_before_ln": True}, {"input": "normed", "norm_after": "sum"}),
    ({"adapter_residual_before_ln": True}, {"input": "normed"}),
    ({"is_parallel": True}, {"input": "residual"}),
    (
        {"is_parallel": True, "ln_after": True, "adapter_residual_before_ln": True},
        {"input": "residual", "norm_after": "update"},
    ),
    (
        {"is_parallel": True, "original_ln_before": False, "residual_before_ln": False},
        {"input": "residual"},
    ),
    ({"is_parallel": True, "residual_before_ln": "post_add"}, {"input": "residual"}),
    ({"is_parallel": True, "original_ln_after": False}, {"input": "residual", "close": False}),
    ({"is_parallel": True, "ln_before": True}, {"input": "residual", "norm_before": True}),
]


def read(folder: Path) -> NeutralAdapter:
    """An adapter without problems."""
    adapter = read_adapter(folder)
    assert adapter.problems == ()
    return adapter


def culprits(folder: Path) -> set[tuple[Code, str]]:
    """What is wrong with an adapter: raised, or gathered for ``bind``."""
    return {(problem.code, problem.subject) for problem in problems(folder)}


def problems(folder: Path) -> tuple[Problem, ...]:
    try:
        return read_adapter(folder).problems
    except AdapterError as error:
        return error.problems


@pytest.mark.parametrize(("config", "form"), FORMS, ids=lambda value: json.dumps(value))
def test_forms(tmp_path: Path, config: dict[str, Any], form: dict[str, Any]) -> None:
    adapter = read(seq_bn(tmp_path / "a", **config))
    assert adapter.style is not None
    assert adapter.style.form == BottleneckForm(**form)
    assert adapter.style.activation == "relu"
    norms = {"norm_before": config.get("ln_before"), "norm_after": config.get("ln_after")}
    expected = {f"{norm}_{half}" for norm, on in norms.items() if on for half in ("weight", "bias")}
    for weights in adapter.bottlenecks.values():
        assert set(weights.factors) == {"down", "down_bias", "up", "up_bias"} | expected


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("relu", "relu"),
        ("ReLU", "relu"),
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_new"),
        ("gelu_accurate", "gelu_new"),
        ("gelu_fast", "gelu_new"),
        ("gelu_python_tanh", "gelu_new"),
        ("gelu_pytorch_tanh", "gelu_new"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("tanh", "tanh"),
        ("linear", "linear"),
    ],
)
def test_activations_compute_the_same(tmp_path: Path, name: str, activation: str) -> None:
    from transformers.activations import ACT2FN

    adapter = read(seq_bn(tmp_path / "a", non_linearity=name))
    assert adapter.style is not None
    assert adapter.style.activation == activation
    x = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(ACT2FN[name.lower()](x), ACT2FN[activation](x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["leaky_relu", "leakyrelu", "gelu_10", "quick_gelu", "sigmoid", "nonsense"]
)
def test_other_activations(tmp_path: Path, name: str) -> None:
    folder = seq_bn(tmp_path / "a", non_linearity=name)
    assert culprits(folder) == {(Code.UNSUPPORTED, "non_linearity")}
    assert read_adapter(folder).bottlenecks == {}


class TestFactors:
    def test_orientation_and_places(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a", mh_adapter=True)
        adapter, tensors = read(folder), tensors_of(folder)
        assert set(adapter.bottlenecks) == {(i, place) for i in (0, 1) for place in ("mh", "output")}
        for layer in (0, 1):
            for place, path in (("mh", f"encoder.layer.{layer}.attention.output"), ("output", OUTPUT)):
                weights = adapter.bottlenecks[layer, place]  # type: ignore[index]
                module = f"{path.format(layer)}.adapters.{NAME}"
                assert weights.width == 4
                for factor, part in (
                    ("down", "adapter_down.0.weight"),
                    ("down_bias", "adapter_down.0.bias"),
                    ("up", "adapter_up.weight"),
                    ("up_bias", "adapter_up.bias"),
                ):
                    np.testing.assert_array_equal(weights.factors[factor], tensors[f"{module}.{part}"].T)
                    assert weights.factors[factor].dtype == np.float32

    @pytest.mark.parametrize("scaling", [0.5, 4.0, "learned", "channel"])
    def test_scaling_is_folded_into_up(self, tmp_path: Path, scaling: float | str) -> None:
        folder = seq_bn(tmp_path / "a", scaling=scaling, ln_after=True)
        factors, tensors = read(folder).bottlenecks[1, "output"].factors, tensors_of(folder)
        module = f"{OUTPUT.format(1)}.adapters.{NAME}"
        scale = tensors[f"{module}.scaling"] if isinstance(scaling, str) else np.float32(scaling)
        np.testing.assert_allclose(
            factors["up"], tensors[f"{module}.adapter_up.weight"].T * scale, rtol=1e-6
        )
        np.testing.assert_allclose(
            factors["up_bias"], tensors[f"{module}.adapter_up.bias"] * scale, rtol=1e-6
        )
        np.testing.assert_array_equal(factors["down"], tensors[f"{module}.adapter_down.0.weight"].T)

    def test_the_norm_before_has_two_names(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a", ln_before=True)
        module = f"{OUTPUT.format(0)}.adapters.{NAME}"
        weight = tensors_of(folder)[f"{module}.adapter_norm_before.weight"]
        edit(folder, **{f"{module}.adapter_down.0.weight": weight})
        np.testing.assert_array_equal(
            read(folder).bottlenecks[0, "output"].factors["norm_before_weight"], weight
        )
        edit(folder, **{f"{module}.adapter_down.0.weight": weight + 1})
        assert culprits(folder) == {(Code.DUPLICATE_KEY, f"{module}.adapter_down.0.weight")}

    def test_narrow_types(self, tmp_path: Path) -> None:
        folder = seq_bn(tmp_path / "a")
        halves = {name: array.astype(np.float16) for name, array in tensors_of(folder).items()}
        save_file(halves, folder / WEIGHTS)
        down = read(folder).bottlenecks[0, "output"].factors["down"]
        np.testing.assert_array_equal(down, halves[DOWN.format(0)].T.astype(np.float32))

    def test_claims(self, tmp_path: Path) -> None:
        adapter = read_adapter(seq_bn(tmp_path / "a", mh_adapter=True, leave_out=[2]))
        assert adapter.claims is not None
        assert [adapter.claims(layer, "mh") for layer in (0, 1, 2, 3)] == [True, True, False, True]
        outputs = read_adapter(seq_bn(tmp_path / "b"))
        assert outputs.claims is not None
        assert (outputs.claims(0, "mh"), outputs.claims(0, "output")) == (False, True)


#: of the keys of every family, one location after the other
KEYS: dict[str, tuple[str, str]] = {
    "bert": ("bert.encoder.layer.{}.attention.output", "bert.encoder.layer.{}.output"),
    "roberta": ("encoder.layer.{}.attention.output", "encoder.layer.{}.output"),
    "xlm-roberta": ("roberta.encoder.layer.{}.attention.output", "roberta.encoder.layer.{}.output"),
    "electra": ("electra.encoder.layer.{}.attention.output", "electra.encoder.layer.{}.output"),
    "deberta-v2": ("deberta.encoder.layer.{}.attention.output", "deberta.encoder.layer.{}.output"),
    "distilbert": ("transformer.layer.{}.attention_adapters", "transformer.layer.{}.output_adapters"),
    "llama": ("model.layers.{}.attention_adapters", "model.layers.{}.output_adapters"),
    "mistral": ("layers.{}.attention_adapters", "layers.{}.output_adapters"),
    "gpt2": ("transformer.h.{}.attention_adapters", "transformer.h.{}.output_adapters"),
    "vit": ("encoder.layer.{}.attention_adapters", "encoder.layer.{}.output.output_adapters"),
    "t5": ("encoder.block.{}.layer.0", "encoder.block.{}.layer.1"),
    "bart": ("encoder.layers.{}.attention_adapters", "encoder.layers.{}.output_adapters"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.{}.attention.attention_adapters",
        "encoder.albert_layer_groups.0.albert_layers.{}.output_adapters",
    ),
}


def bottleneck(module: str, name: str = NAME, width: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.adapters.{name}.adapter_down.0.weight": (width, FEATURES),
        f"{module}.adapters.{name}.adapter_down.0.bias": (width,),
        f"{module}.adapters.{name}.adapter_up.weight": (FEATURES, width),
        f"{module}.adapters.{name}.adapter_up.bias": (FEATURES,),
    }


def at(
    folder: Path, modules: Mapping[str, int], top: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """Bottlenecks at the given modules, of the given widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module, width in modules.items():
        shapes |= bottleneck(module, (top or {}).get("name", NAME), width)
    return write(folder, document({**SEQ_BN, **config}, **(top or {})), randoms(shapes))


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

    @pytest.mark.parametrize("name", ["adapters", "loras", "a b", "café", "x_adapters"])
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


PHM: dict[str, dict[str, Any]] = {
    "compacter": {},
    "own rule": {"shared_phm_rule": False},
    "factorized rule": {"factorized_phm_rule": True},
    "own factorized rule": {"shared_phm_rule": False, "factorized_phm_rule": True},
    "full W": {"factorized_phm_W": False},
    "shared W": {"shared_W_phm": True},
    "all shared": {"shared_W_phm": True, "factorized_phm_rule": True},
    "rank 3": {"phm_rank": 3},
    "no bias": {"phm_bias": False},
    "dimension 2": {"phm_dim": 2},
}


def compacter(folder: Path, top: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A hypercomplex bottleneck of width 8 in two layers."""
    config = {**SEQ_BN, "phm_layer": True, "reduction_factor": 2, **changes}
    n, rank = config["phm_dim"], config["phm_rank"]

    def rule(path: str) -> dict[str, tuple[int, ...]]:
        if config["factorized_phm_rule"]:
            return {f"{path}_left": (n, n, 1), f"{path}_right": (n, 1, n)}
        return {path: (n, n, n)}

    def matrix(path: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
        if config["factorized_phm_W"]:
            return {f"{path}_left": (n, into // n, rank), f"{path}_right": (n, rank, out // n)}
        return {path: (n, into // n, out // n)}

    sides = {"down": (FEATURES, 8), "up": (8, FEATURES)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (0, 1):
        for side, path in (("down", "adapter_down.0"), ("up", "adapter_up")):
            where = f"bert.{OUTPUT.format(layer)}.adapters.{NAME}.{path}"
            if not config["shared_phm_rule"]:
                shapes |= rule(f"{where}.phm_rule")
            if not config["shared_W_phm"]:
                shapes |= matrix(f"{where}.W", *sides[side])
            if config["phm_bias"]:
                shapes[f"{where}.b"] = (sides[side][1],)
    shared = f"bert.shared_parameters.{NAME}"
    if config["shared_phm_rule"]:
        shapes |= rule(f"{shared}.phm_rule")
    if config["shared_W_phm"]:
        for side, (into, out) in sides.items():
            shapes |= matrix(f"{shared}.W_{side}", into, out)
    return write(folder, document(config, **(top or {})), randoms(shapes))


class TestHypercomplex:
    @pytest.mark.parametrize("name", PHM)
    def test_is_the_sum_of_kronecker_products(self, tmp_path: Path, name: str) -> None:
        folder = compacter(tmp_path / "a", **PHM[name])
        tensors = {key: torch.from_numpy(array).double() for key, array in tensors_of(folder).items()}
        config = {**SEQ_BN, **PHM[name]}

        def stack(own: str, shared: str, is_shared: bool) -> torch.Tensor:
            path = f"bert.shared_parameters.{NAME}.{shared}" if is_shared else own
            if path in tensors:
                return tensors[path]
            return torch.bmm(tensors[f"{path}_left"], tensors[f"{path}_right"])

        for layer in (0, 1):
            factors = read(folder).bottlenecks[layer, "output"].factors
            for side, part in (("down", "adapter_down.0"), ("up", "adapter_up")):
                where = f"bert.{OUTPUT.format(layer)}.adapters.{NAME}.{part}"
                rules = stack(f"{where}.phm_rule", "phm_rule", config["shared_phm_rule"])
                matrices = stack(f"{where}.W", f"W_{side}", config["shared_W_phm"])
                expected = sum(torch.kron(r, w) for r, w in zip(rules, matrices, strict=True))
                np.testing.assert_allclose(factors[side], expected, rtol=1e-6, atol=1e-6)
                bias = tensors[f"{where}.b"] if config["phm_bias"] else torch.zeros(factors[side].shape[1])
                np.testing.assert_array_equal(factors[f"{side}_bias"], bias.float())

    def test_the_library_forgot_what_is_shared(self, tmp_path: Path) -> None:
        folder = compacter(tmp_path / "a")
        edit(folder, **{f"bert.shared_parameters.{NAME}.phm_rule": None})
        assert culprits(folder) == {(Code.HALF_MISSING, "shared_parameters")}
        assert "BertAdapterModel" in problems(folder)[0].cause
        assert read_adapter(folder).bottlenecks == {}

    def test_shared_tensors_that_nothing_uses(self, tmp_path: Path) -> None:
        name = f"bert.shared_parameters.{NAME}.phm_rule"
        folder = edit(seq_bn(tmp_path / "a"), **{name: np.ones((4, 4, 4), np.float32)})
        assert culprits(folder) == {(Code.UNKNOWN_TENSOR, name)}

    def test_a_dimension_that_divides_nothing(self, tmp_path: Path) -> None:
        assert (Code.BAD_CONFIG, "phm_dim") in culprits(compacter(tmp_path / "a", phm_dim=3))

    def test_what_the_library_fails_with(self, tmp_path: Path) -> None:
        folder = compacter(tmp_path / "a", shared_W_phm=True, factorized_phm_W=False)
        assert culprits(folder) == {(Code.UNSUPPORTED, "shared_W_phm")}


class TestVersions:
    def test_gelu_without_a_version(self, tmp_path: Path) -> None:
        for version, name, activation in (
            (None, "gelu", "gelu_new"),
            (None, "gelu_orig", "gelu"),
            ("3.2.1", "gelu", "gelu"),
            ("adapters.0.1.0", "gelu", "gelu"),
        ):
            adapter = read(seq_bn(tmp_path / f"{version}{name}", {"version": version}, non_linearity=name))
            assert adapter.style is not None
            assert adapter.style.activation == activation

    @pytest.mark.parametrize("kind", ["text_task", "text_lang"])
    def test_old_tensor_names(self, tmp_path: Path, kind: str) -> None:
        folder = seq_bn(tmp_path / "a", mh_adapter=True)
        before = read(folder)
        renamed = {
            key.replace(
                "attention.output.adapters.", f"attention.output.attention_{kind}_adapters."
            ).replace("output.adapters.", f"output.layer_{kind}_adapters."): array
            for key, array in tensors_of(folder).items()
        }
        assert not renamed.keys() & tensors_of(folder).keys()
        save_file(renamed, folder / WEIGHTS)
        after = read(folder)
        for place, weights in before.bottlenecks.items():
            np.testing.assert_array_equal(after.bottlenecks[place].factors["up"], weights.factors["up"])

    def test_old_and_new_name_of_one_tensor(self, tmp_path: Path) -> None:
        old = DOWN.format(0).replace(".adapters.", ".layer_text_task_adapters.")
        folder = edit(seq_bn(tmp_path / "a"), **{old: np.ones((4, FEATURES), np.float32)})
        assert culprits(folder) == {(Code.DUPLICATE_KEY, old)}

    def test_task_adapters_of_old_name_an_invertible_one_that_they_do_not_have(
        self, tmp_path: Path
    ) -> None:
        old = {"invertible_adapter": {"block_type": "nice", "reduction_factor": 2}}
        assert read(seq_bn(tmp_path / "a", {"type": "text_task"}, **old)).problems == ()
        assert culprits(seq_bn(tmp_path / "b", {"type": "text_lang"}, **old)) == {
            (Code.UNSUPPORTED, "invertible_adapter")
        }
        name = f"invertible_adapters.{NAME}.F.0.weight"
        folder = edit(
            seq_bn(tmp_path / "c", {"type": "text_task"}, **old), **{name: np.ones((2, 2), np.float32)}
        )
        assert (Code.UNKNOWN_TENSOR, name) in culprits(folder)

    @pytest.mark.parametrize("version", [7, "adapters.", "adapters.new", "adapters.1.3.0junk", ["1"]])
    def test_no_version(self, tmp_path: Path, version: Any) -> None:
        assert culprits(seq_bn(tmp_path / "a", {"version": version})) == {(Code.BAD_CONFIG, "version")}

    def test_settings_by_name_only(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", document({}) | {"config": "pfeiffer"}, randoms({"x": (1,)}))
        assert culprits(folder) == {(Code.BAD_CONFIG, "config")}


class TestRefused:
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


#: ``adapter_interface.json`` of Qwen2
INTERFACE = {
    "attn_k_proj": "k_proj",
    "attn_q_proj": "q_proj",
    "attn_qkv_proj": None,
    "attn_v_proj": "v_proj",
    "layer_cross_attn": None,
    "layer_intermediate_proj": "mlp.up_proj",
    "layer_ln_1": None,
    "layer_ln_2": None,
    "layer_output_proj": "mlp.down_proj",
    "layer_pre_ffn": "post_attention_layernorm",
    "layer_pre_self_attn": "input_layernorm",
    "layer_self_attn": "self_attn",
}


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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
        edit(folder, **{key: np.ones(shape, np.float32) for key, shape in changes.items()})
        assert bool(changes) == bool(problems(folder))
