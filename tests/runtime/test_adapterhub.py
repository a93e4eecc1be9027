"""AdapterHub's bottlenecks: config to form and tensors to factors, for files of every version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from adexport_runtime.adapters import read_adapter
from adexport_runtime.errors import Code
from adexport_runtime.slots import BottleneckForm

from .adapterhub_files import (
    DOWN,
    FEATURES,
    NAME,
    OUTPUT,
    WEIGHTS,
    culprits,
    document,
    edit,
    randoms,
    read,
    seq_bn,
    tensors_of,
    write,
)

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
