"""The graph for TensorRT, run in ONNX Runtime on the CPU: the same numbers in standard ops alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adexport.build import build_model
from adexport.check import check_model
from adexport.lower import TENSORRT, LowerOptions, lora_at, lower, slot_candidates
from adexport.options import BuildOptions
from adexport.reference import load_reference
from adexport.slots.again import plan_again
from adexport_runtime import BuildError, Bundle, Code
from adexport_runtime.bundle import REFERENCE_FILE, TRACE_FILE
from adexport_runtime.graph_io import engine_inputs, graph_outputs
from adexport_runtime.quantization import Quantization

from .conftest import BuiltOf, GeneratorOf
from .families import BARE, FAMILIES, HEADS
from .generators import GENERATORS

Array = np.ndarray[Any, Any]

ROOM = 24


def lowering(bundle: Bundle, dtype: str = "fp32", **changes: Any) -> tuple[ir.Model, LowerOptions]:
    """The trace, and options with the slots that the bundle has."""
    options = plan_again(bundle, BuildOptions()).lowering(dtype)
    return ir.load(bundle.root / TRACE_FILE), replace(options, **changes)


def check(bundle: Bundle, folder: Path, dtype: str = "fp32", **changes: Any) -> dict[str, float]:
    """Lower for TensorRT and compare with ONNX Runtime's own graph; see :func:`check_model`."""
    trace, options = lowering(bundle, dtype, **changes)
    path = folder / "tensorrt.onnx"
    ir.save(lower(trace, options, TENSORRT).graph, path, external_data="tensorrt.bin")
    cases = load_reference(bundle.root / REFERENCE_FILE)
    return check_model(path, trace, options, cases, 1e-5, bundle.manifest.generation, TENSORRT)


def ops(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(graph.graph))


def of_family(built_of: BuiltOf, name: str, task: str = BARE) -> Bundle:
    return built_of(name, task).result.bundle


class TestEveryFamily:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "task"), [*((name, BARE) for name in FAMILIES), *HEADS])
    def test_the_same_numbers(self, name: str, task: str, built_of: BuiltOf, tmp_path: Path) -> None:
        """Mixed, ragged rows and every kind of slot, to 1e-5 of the largest value."""
        found = check(of_family(built_of, name, task), tmp_path)
        assert {"fp32 mixed", "fp32 factors", "fp32 one_row"} <= found.keys()

    @pytest.mark.parametrize("name", GENERATORS)
    def test_the_same_numbers_with_caches(
        self, name: str, generator_of: GeneratorOf, tmp_path: Path
    ) -> None:
        """At once, and in steps, by copies and in place."""
        bundle = generator_of(name)[1].result.bundle
        for in_place in (None, 64):
            found = check(bundle, tmp_path, in_place=in_place)
            assert {"fp32 mixed", "fp32 mixed in steps"} <= found.keys()

    @pytest.mark.parametrize("dtype", ["fp16", "bf16"])
    @pytest.mark.parametrize("name", ["Bert", "ModernBert", "T5"])
    def test_half_precision_of_weights(
        self, name: str, dtype: str, built_of: BuiltOf, tmp_path: Path
    ) -> None:
        """In float32 arithmetic as near as ONNX Runtime's graph must be: 5e-3, and 4e-2 in bfloat16."""
        assert f"{dtype} mixed" in check(of_family(built_of, name), tmp_path, dtype)

    def test_half_precision_of_all(self, tiny_bundle: Path, tmp_path: Path) -> None:
        """In float16 arithmetic, as ONNX Runtime rounds it: within 1e-2 of the largest value."""
        bundle = Bundle.open(tiny_bundle)
        outputs = []
        for dtype in ("fp32", "fp16"):
            trace, options = lowering(bundle, dtype, sites={})
            path = tmp_path / f"{dtype}.onnx"
            ir.save(lower(trace, options, TENSORRT).graph, path, external_data=f"{dtype}.bin")
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            inputs = load_reference(bundle.root / REFERENCE_FILE)["base"].inputs
            outputs.append(session.run(None, dict(inputs))[0][inputs["attention_mask"] == 1])
        assert outputs[1].dtype == np.float32
        difference = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
        assert 1e-5 < difference < 1e-2

    @pytest.mark.parametrize("dtype", ["fp16", "bf16"])
    @pytest.mark.parametrize("name", ["Llama, wide", "Gemma2, wide"])
    def test_half_precision_with_caches(
        self, name: str, dtype: str, generator_of: GeneratorOf, tmp_path: Path
    ) -> None:
        found = check(generator_of(name)[1].result.bundle, tmp_path, dtype)
        assert f"{dtype} mixed in steps" in found


class TestTheGraph:
    @pytest.mark.parametrize(
        ("name", "task"), [("Bert", BARE), ("Bert", HEADS[0][1]), ("ViT", HEADS[8][1])]
    )
    def test_standard_ops_and_the_inputs_of_the_manifest(
        self, name: str, task: str, built_of: BuiltOf
    ) -> None:
        bundle = of_family(built_of, name, task)
        trace, options = lowering(bundle)
        graph = lower(trace, options, TENSORRT).graph
        assert not graph.functions
        assert {node.domain for node in ir.traversal.RecursiveGraphIterator(graph.graph)} == {""}
        assert not ops(graph).keys() & {"If", "NonZero", "Attention"}
        self.agrees(graph, bundle)

    def test_a_graph_with_caches(self, generator_of: GeneratorOf) -> None:
        bundle = generator_of("Llama, wide")[1].result.bundle
        for in_place in (None, ROOM):
            trace, options = lowering(bundle, "fp16", in_place=in_place)
            graph = lower(trace, options, TENSORRT).graph
            assert {node.domain for node in graph.graph} == {""}
            self.agrees(graph, bundle, "fp16", in_place)
            found = ops(graph)
            assert found["Attention"] == 2
            assert (found["TensorScatter"], found["ScatterElements"]) == (
                (0, 4) if in_place is None else (4, 0)
            )
            assert graph.graph.opset_imports[""] == (23 if in_place is None else 24)

    @staticmethod
    def agrees(graph: ir.Model, bundle: Bundle, dtype: str = "fp32", room: int | None = None) -> None:
        """Names, types and shapes are those that the manifest gives an engine."""
        base = bundle.manifest.base.model_copy(update={"dtype": dtype})
        manifest = bundle.manifest.model_copy(update={"base": base})
        types = {"fp32": "FLOAT", "fp16": "FLOAT16", "int64": "INT64"}

        def sizes(shape: Any) -> list[Any]:
            found = [getattr(size, "value", size) for size in shape]
            return ["room" if size == room else size for size in found]

        inputs = {value.name: (value.dtype, sizes(value.shape)) for value in graph.graph.inputs}
        expected = {tensor.name: tensor for tensor in engine_inputs(manifest)}
        assert {
            name: (ir.DataType[types[tensor.dtype]], list(tensor.shape))
            for name, tensor in expected.items()
        } == inputs
        outputs = {value.name: value.dtype for value in graph.graph.outputs}
        assert outputs == {t.name: ir.DataType[types[t.dtype]] for t in graph_outputs(manifest)}

    @pytest.mark.parametrize(
        ("name", "fused"),
        [("Bert", False), ("ModernBert", False), ("Bert, wide", True), ("ModernBert, wide", True)],
    )
    def test_the_attention_op_only_where_no_query_can_see_nothing(
        self, name: str, fused: bool, tmp_path: Path
    ) -> None:
        """NaN of padding would reach all rows of the next layer; heads of 8 have no kernel."""
        from adexport.build import build_model

        family = FAMILIES[name.removesuffix(", wide")]
        wide = {"hidden_size": 64} if name.endswith("wide") else {}
        model = family.save(BARE, tmp_path / "model", **wide)
        bundle = build_model(str(model), tmp_path / "bundle").bundle
        trace, options = lowering(bundle, "fp16")
        count = ops(lower(trace, options, TENSORRT).graph)["Attention"]
        assert count == (1 if fused else 0)  # the second block of ModernBert has a window
        trace, options = lowering(bundle)
        assert ops(lower(trace, options, TENSORRT).graph)["Attention"] == 0


class TestCaches:
    def test_what_lies_behind_a_text_never_matters(self, generator_of: GeneratorOf, tmp_path: Path) -> None:
        """Not even NaN, which a tenant before may have left there."""
        bundle = generator_of("Mistral, wide")[1].result.bundle
        generation = bundle.manifest.generation
        assert generation is not None
        trace, options = lowering(bundle, sites={})
        path = tmp_path / "graph.onnx"
        ir.save(lower(trace, options, TENSORRT).graph, path, external_data="graph.bin")
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        random = np.random.default_rng(0)
        past = np.array([3, 0, 9])
        outputs = []
        for behind in (0.0, np.nan, np.inf):
            caches = {}
            random = np.random.default_rng(0)
            for cache in generation.caches:
                for name in (cache.past_key, cache.past_value):
                    values = random.normal(size=(3, cache.kv_heads, ROOM, cache.size)).astype(np.float32)
                    for row, tokens in enumerate(past):
                        values[row, :, tokens:] = behind
                    caches[name] = values
            feeds = {
                "input_ids": np.array([[5, 6], [7, 8], [9, 10]]),
                generation.lengths: np.array([2, 2, 2]),
                generation.past_lengths: past,
                generation.logits_at: np.array([[0, 1]] * 3),
            }
            outputs.append(session.run(None, feeds | caches))
        for other in outputs[1:]:
            for one, two in zip(outputs[0], other, strict=True):
                np.testing.assert_array_equal(one, two)
        assert np.isfinite(outputs[0][0]).all()


def weight_only(bits: Any, **changes: Any) -> Quantization:
    given = {"embeddings": False, "lm_head": True, **changes}
    return Quantization(method="weight-only", bits=bits, block_size=32, accuracy_level=1, **given)


class TestQuantization:
    @staticmethod
    def run(graph: ir.Model, folder: Path, feeds: Mapping[str, Array], output: str = "logits") -> Array:
        path = folder / "graph.onnx"
        ir.save(graph, path, external_data="graph.bin")
        options = ort.SessionOptions()  # else products behind DequantizeLinear would take int8 activations
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([output], dict(feeds))[0])

    @pytest.mark.parametrize("embeddings", [False, True])
    @pytest.mark.parametrize("bits", [8, 4])
    def test_as_near_as_onnx_runtime(
        self, bits: int, embeddings: bool, generator_of: GeneratorOf, tmp_path: Path
    ) -> None:
        """Layers of 64 and of 48 inputs, so that a last block is padded; float arithmetic in both.

        Integers of 4 bits are the same, so outputs are too.
        """
        bundle = generator_of("Llama, wide")[1].result.bundle
        generation = bundle.manifest.generation
        assert generation is not None
        trace, options = lowering(bundle, sites={}, quantization=weight_only(bits, embeddings=embeddings))
        feeds = {
            "input_ids": np.array([[5, 6, 7, 8], [9, 10, 11, 12]]),
            generation.lengths: np.array([4, 4]),
            generation.past_lengths: np.array([0, 0]),
            generation.logits_at: np.array([[0, 1, 2, 3]] * 2),
        }
        for cache in generation.caches:
            empty = np.zeros((2, cache.kv_heads, ROOM, cache.size), np.float32)
            feeds |= {cache.past_key: empty, cache.past_value: empty}
        graph = lower(trace, options, TENSORRT).graph
        integers = ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
        assert {node.domain for node in graph.graph} == {""}
        assert ops(graph)["DequantizeLinear"] == 2 * 7 + 1 + embeddings
        stored = [v for name, v in graph.graph.initializers.items() if name.endswith(f".int{bits}")]
        assert {value.dtype for value in stored} == {integers}
        mine = self.run(graph, tmp_path, feeds)
        theirs = self.run(lower(trace, options).graph, tmp_path, feeds)
        exact = self.run(lower(trace, replace(options, quantization=None)).graph, tmp_path, feeds)
        largest = np.abs(theirs).max()
        errors = [float(np.abs(other - exact).max()) for other in (mine, theirs)]
        if bits == 4:
            assert np.abs(mine - theirs).max() <= 1e-5 * largest
        else:
            assert errors[0] < 1.5 * errors[1]
        assert errors[0] > 1e-3 * largest
        for name in (v.name for v in stored):
            scales = graph.graph.initializers[f"{name.removesuffix(f'.int{bits}')}.scales"].const_value
            assert scales is not None
            assert (scales.numpy() > 0).all() or bits == 4

    @pytest.mark.parametrize("bits", [8, 4])
    def test_of_an_older_opset(self, bits: int, tiny_bert: Path, tmp_path: Path) -> None:
        bundle = build_model(str(tiny_bert), tmp_path / "b", opset=20).bundle
        trace = ir.load(bundle.root / TRACE_FILE)
        assert trace.opset_imports[""] == 20
        options = LowerOptions(lora_at(slot_candidates(trace)), quantization=weight_only(bits))
        graph = lower(trace, options, TENSORRT).graph
        ir.save(graph, tmp_path / "graph.onnx", external_data="graph.bin")
        onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)
        exact = lower(trace, replace(options, quantization=None), TENSORRT).graph
        assert exact.opset_imports[""] == 20
        feeds = {"input_ids": np.array([[5, 6, 7, 8]]), "attention_mask": np.ones((1, 4), np.int64)}
        feeds["token_type_ids"] = np.zeros((1, 4), np.int64)
        feeds["adapter_ids"] = np.zeros(1, np.int64)
        for name, value in ((str(v.name), v) for v in graph.graph.inputs):
            if name not in feeds:
                shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
                feeds[name] = np.zeros(shape, np.float32)
        mine, theirs = (self.run(made, tmp_path, feeds, "last_hidden_state") for made in (graph, exact))
        assert 0 < np.abs(mine - theirs).max() < (0.05 if bits == 8 else 0.5)

    def test_a_scale_for_each_token_is_refused(self, tiny_bundle: Path) -> None:
        trace = ir.load(tiny_bundle / TRACE_FILE)
        dynamic = Quantization(
            method="dynamic", bits=8, block_size=None, accuracy_level=None, embeddings=False, lm_head=False
        )
        options = LowerOptions(lora_at(slot_candidates(trace)), quantization=dynamic)
        with pytest.raises(BuildError, match="weight-only") as caught:
            lower(trace, options, TENSORRT)
        assert caught.value.codes == {Code.UNSUPPORTED}
