"""Lowerings of one trace: they differ in form, never in numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adexport.lower import LowerOptions, lora_at, lower, slot_candidates
from adexport.lower.attention import lower_attention
from adexport.lower.bottleneck import lower_residuals
from adexport.lower.linear import lower_linears
from adexport_runtime.bundle import TRACE_FILE

IDS = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def trace_of(bundle: Path) -> ir.Model:
    return ir.load(bundle / TRACE_FILE)


def run(model: ir.Model, path: Path, **feeds: Any) -> np.ndarray[Any, Any]:
    ir.save(model, path, external_data=f"{path.name}.bin")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    known = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": IDS * 0, **feeds}
    return np.asarray(session.run(None, {name: known[name] for name in names})[0])


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))


def test_the_trace_is_not_changed(tiny_bundle: Path) -> None:
    trace = trace_of(tiny_bundle)
    before = ops(trace)
    lower(trace, LowerOptions(lora_at(slot_candidates(trace)), dtype="fp16"))
    assert ops(trace) == before
    assert all(value.dtype != ir.DataType.FLOAT16 for value in trace.graph.initializers.values())


def test_a_base_without_slots_has_nothing_of_ours(tiny_bundle: Path) -> None:
    graph = lower(trace_of(tiny_bundle), LowerOptions()).graph
    assert {node.domain for node in graph.graph} == {""}
    assert not graph.functions
    assert [value.name for value in graph.graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


def test_slots_are_local_functions(tiny_bundle: Path) -> None:
    trace = trace_of(tiny_bundle)
    sites = slot_candidates(trace)[:3]
    lowered = lower(trace, LowerOptions(lora_at(sites)))
    assert [site.path for site in lowered.slots.sites] == list(sites)
    assert ops(lowered.graph)["LoraBiasAddIf"] == 3
    assert not ops(lowered.graph)["If"]
    names = [value.name for value in lowered.graph.graph.inputs]
    halves = [f"{site}.lora_{half}" for site in sites for half in "AB"]
    assert names[3:] == ["adapter_ids", "adapter_uses.linear", *halves]


def test_a_slot_that_no_row_uses_is_skipped(tiny_bundle: Path, tmp_path: Path) -> None:
    """Weights in the bank do nothing for rows whose guard says that they have none."""
    trace = trace_of(tiny_bundle)
    sites = slot_candidates(trace)
    lowered = lower(trace, LowerOptions(lora_at(sites)))
    random = np.random.default_rng(0)
    banks = {}
    for slot in (slot for site in lowered.slots.sites for slot in site.linear.factors.values()):
        sizes = [3 if isinstance(size, str) else size for size in slot.shape[1:]]
        banks[slot.name] = random.normal(size=(2, *sizes)).astype(np.float32)
    base = run(lower(trace, LowerOptions()).graph, tmp_path / "base.onnx")

    def outputs(uses: list[int], ids: list[int]) -> np.ndarray[Any, Any]:
        feeds = {"adapter_ids": np.array(ids), "adapter_uses.linear": np.array(uses), **banks}
        return run(lower(trace, LowerOptions(lora_at(sites))).graph, tmp_path / "slots.onnx", **feeds)

    np.testing.assert_array_equal(outputs([0, 0], [1, 1]), base)
    np.testing.assert_array_equal(outputs([0, 1], [0, 0]), base)
    assert np.abs(outputs([0, 1], [0, 1]) - base)[1].max() > 1e-3


def test_slots_can_stand_without_a_guard(tiny_bundle: Path) -> None:
    trace = trace_of(tiny_bundle)
    lowered = lower(trace, LowerOptions(lora_at(slot_candidates(trace)), guarded=False))
    assert lowered.slots.guards is None
    assert "If" not in ops(lowered.graph)


@pytest.mark.parametrize("opset", [20, 23])
def test_fused_and_primitive_attention_agree(tiny_bundle: Path, tmp_path: Path, opset: int) -> None:
    outputs = []
    for fused in (True, False):
        model = trace_of(tiny_bundle).clone()
        lower_attention(model, fused=lambda _, fused=fused: fused)
        lower_linears(model, {}, None)
        lower_residuals(model, None, None)
        assert (ops(model)["Attention"] > 0) == fused
        outputs.append(run(model, tmp_path / f"{fused}.onnx"))
    np.testing.assert_allclose(outputs[0][MASK == 1], outputs[1][MASK == 1], atol=2e-6)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_precision_reaches_weights_slots_and_not_the_outputs(tiny_bundle: Path, dtype: str) -> None:
    trace = trace_of(tiny_bundle)
    graph = lower(trace, LowerOptions(lora_at(slot_candidates(trace)), dtype=dtype)).graph.graph
    narrow = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[dtype]
    floats = {v.dtype for v in graph.initializers.values()} - {ir.DataType.INT64}
    assert floats == {narrow}
    assert {v.dtype for v in graph.inputs} == {ir.DataType.INT64, narrow}
    assert {v.dtype for v in graph.outputs} == {ir.DataType.FLOAT}


def test_a_weight_that_overflows_is_refused(tiny_bundle: Path) -> None:
    from adexport_runtime.errors import BuildError, Code

    trace = trace_of(tiny_bundle)
    name = "encoder.layer.0.output.dense.bias"
    value = trace.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0] = 1e6
    value.const_value = ir.Tensor(array, name=name)
    with pytest.raises(BuildError) as caught:
        lower(trace, LowerOptions(dtype="fp16"))
    assert caught.value.codes == {Code.OVERFLOW}
    assert [problem.subject for problem in caught.value.problems] == [name]
    lower(trace, LowerOptions(dtype="bf16"))


def test_one_id_serves_the_whole_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    trace = trace_of(tiny_bundle)
    lowered = lower(trace, LowerOptions(lora_at(slot_candidates(trace))))
    random = np.random.default_rng(0)
    banks = {}
    for site in lowered.slots.sites:
        banks[site.linear.lora_A.name] = random.normal(size=(3, site.in_features, 2)).astype(np.float32)
        banks[site.linear.lora_B.name] = random.normal(size=(3, 2, site.out_features)).astype(np.float32)
    banks["adapter_uses.linear"] = np.array([0, 1, 1])
    each = run(lowered.graph, tmp_path / "a.onnx", adapter_ids=np.array([2, 2]), **banks)
    one = run(lowered.graph, tmp_path / "b.onnx", adapter_ids=np.array([2]), **banks)
    np.testing.assert_allclose(each, one, atol=1e-6)
