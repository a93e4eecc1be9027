"""The trace: one target-free graph whose ops, names and sizes are those of the format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from adexport.architectures import architecture_of
from adexport.model import load_model, model_fingerprint
from adexport.slots.modules import TracedLinear
from adexport.slots.rewrite import traced_linears
from adexport.trace import Trace, trace_model


@pytest.fixture(scope="module")
def trace(tiny_bert: Path) -> Trace:
    loaded = load_model(str(tiny_bert))
    rules = architecture_of(loaded.config)
    return trace_model(
        loaded.model, rules.inputs(loaded.model), rules.outputs(loaded.model, loaded.task), 23
    )


def test_linears_and_attention_are_opaque(trace: Trace) -> None:
    ops = Counter(f"{node.domain}::{node.op_type}" for node in trace.graph.graph)
    assert ops["adexport::Linear"] == 13
    assert ops["adexport::Attention"] == 2
    assert ops["adexport::AttentionMask"] == 1
    assert not ops["::MatMul"]
    assert not trace.eager_reasons


def test_weights_keep_their_module_paths(trace: Trace, tiny_bert: Path) -> None:
    parameters = dict(load_model(str(tiny_bert)).model.named_parameters())
    assert sorted(trace.weights) == sorted(parameters)
    weight = trace.graph.graph.initializers["encoder.layer.0.intermediate.dense.weight"]
    assert weight.const_value is not None
    expected = parameters["encoder.layer.0.intermediate.dense.weight"].T
    assert torch.equal(torch.from_numpy(weight.const_value.numpy().copy()), expected)


def test_sizes_are_named(trace: Trace) -> None:
    graph = trace.graph.graph
    assert [value.name for value in graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    for node in graph:
        if node.op_type == "Linear":
            assert node.inputs[0] is not None
            assert node.inputs[0].shape is not None
            pooled = node.attributes["site"].as_string() == "pooler.dense"
            sizes = [str(size) for size in node.inputs[0].shape]
            assert sizes[:-1] == (["batch"] if pooled else ["batch", "seq"])


def test_nothing_of_this_machine_is_left(trace: Trace, tmp_path: Path) -> None:
    ir.save(trace.graph, tmp_path / "trace.onnx", external_data="weights.bin")
    content = (tmp_path / "trace.onnx").read_bytes()
    for word in (b"site-packages", str(Path.cwd()).encode(), b"modeling_bert"):
        assert word not in content


def test_the_model_is_left_as_it_was(tiny_bert: Path) -> None:
    loaded = load_model(str(tiny_bert))
    before = loaded.model.config._attn_implementation
    rules = architecture_of(loaded.config)
    trace_model(loaded.model, rules.inputs(loaded.model), rules.outputs(loaded.model, loaded.task), 23)
    assert loaded.model.config._attn_implementation == before
    assert not any(isinstance(module, TracedLinear) for module in loaded.model.modules())


def test_a_failed_trace_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    layers = list(model)
    with pytest.raises(ZeroDivisionError), traced_linears(model):
        assert isinstance(model[0], TracedLinear)
        raise ZeroDivisionError
    assert list(model) == layers


def test_a_shared_layer_is_one_site() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Module()
    model.first, model.second = shared, shared
    with traced_linears(model) as sites:
        assert list(sites) == ["first"]
        assert model.first is model.second
        assert isinstance(model.second, TracedLinear)


def test_the_fingerprint_tells_bases_apart(trace: Trace, tiny_bert: Path) -> None:
    one = load_model(str(tiny_bert)).model
    other = load_model(str(tiny_bert)).model
    assert model_fingerprint(one, trace.weights) == model_fingerprint(other, trace.weights)
    assert model_fingerprint(one.to(torch.float64), trace.weights) == model_fingerprint(
        other, trace.weights
    )
    with torch.no_grad():
        other.encoder.layer[1].output.dense.bias[3] += 1e-3
    assert model_fingerprint(one, trace.weights) != model_fingerprint(other, trace.weights)
