"""Quantization as a pass: what becomes integers and what does not, and what is computed with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from adexport.build import build_model, lower_again
from adexport.lower import LowerOptions, lower, slot_candidates
from adexport.lower.quantization import find_frozen, lower_quantization, pack
from adexport.ops import DOMAIN, LINEAR
from adexport.options import BuildOptions
from adexport.slots.kinds import FACTORS
from adexport_runtime import BuildError, Code, Engine
from adexport_runtime.backends import onnxruntime as backend
from adexport_runtime.backends.onnxruntime import open_session
from adexport_runtime.bundle import MODEL_FILE, TRACE_FILE
from adexport_runtime.quantization import Quantization

from .families import BARE, CAUSAL, FAMILIES, build_family

Array = np.ndarray[Any, Any]

PRECISE = "session.x64quantprecision"

DYNAMIC = Quantization(
    method="dynamic", bits=8, block_size=None, accuracy_level=None, embeddings=False, lm_head=False
)
BLOCKS = {
    bits: Quantization(
        method="weight-only", bits=bits, block_size=32, accuracy_level=4, embeddings=False, lm_head=True
    )
    for bits in (8, 4)
}
EVERY = [DYNAMIC, BLOCKS[8], BLOCKS[4]]
NAMES = ["dynamic", "int8", "int4"]
PRODUCT = {"dynamic": "MatMulIntegerToFloat", "weight-only": "MatMulNBits"}


def trace_of(bundle: Path) -> ir.Model:
    return ir.load(bundle / TRACE_FILE)


def products(nodes: Any) -> Counter[str]:
    """Of the nodes, those that multiply matrices."""
    kinds = {"MatMul", *PRODUCT.values()}
    return Counter(node.op_type for node in nodes if node.op_type in kinds)


def everywhere(model: ir.Model) -> Counter[str]:
    return products(ir.traversal.RecursiveGraphIterator(model.graph))


def one_layer(matrix: Array, quantization: Quantization, path: Path) -> ort.InferenceSession:
    """A session of ``y = x · matrix``, quantized."""
    into, out = matrix.shape
    tensor = ir.Tensor(matrix, name="w")
    weight = ir.Value(
        name="w", const_value=tensor, shape=ir.Shape([into, out]), type=ir.TensorType(tensor.dtype)
    )
    x, y = (
        ir.Value(name=name, shape=ir.Shape(["n", "t", size]), type=ir.TensorType(ir.DataType.FLOAT))
        for name, size in (("x", into), ("y", out))
    )
    node = ir.Node(DOMAIN, LINEAR, [x, weight], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 23}, name="one")
    model = ir.Model(graph, ir_version=10)
    frozen = find_frozen(model)
    node.op_type, node.domain = "MatMul", ""
    lower_quantization(model, quantization, frozen)
    ir.save(model, path)
    return open_session(path, threads=1, integers=True)


@pytest.fixture(scope="module")
def matrix() -> Array:
    """A frozen weight whose outputs differ in size, with a column of zeros; no whole number of blocks."""
    values = np.random.default_rng(0).normal(size=(72, 24)) * np.logspace(-3, 2, 24)
    values[:, 5] = 0
    return values.astype(np.float32)


class TestThePass:
    @pytest.mark.parametrize("quantization", EVERY, ids=NAMES)
    def test_every_frozen_layer_and_no_slot(self, tiny_bundle: Path, quantization: Quantization) -> None:
        """With all factors, frozen layers stand inside the branches of guards too."""
        trace = trace_of(tiny_bundle)
        options = LowerOptions(dict.fromkeys(slot_candidates(trace), FACTORS))
        plain = lower(trace, options).graph
        made = lower(trace, LowerOptions(options.sites, quantization=quantization)).graph
        assert everywhere(plain)["MatMul"] > products(plain.graph)["MatMul"]  # some are inside
        assert everywhere(made) == {PRODUCT[quantization.method]: everywhere(plain)["MatMul"]}
        # slots multiply in functions, and those are the same
        slots = {key: [n.op_type for n in f] for key, f in plain.functions.items()}
        assert {key: [n.op_type for n in f] for key, f in made.functions.items()} == slots
        assert sum(names.count("MatMul") for names in slots.values()) == 2
        floats = {n for n, v in made.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
        assert not floats & find_frozen(trace).linears
        assert [value.name for value in made.graph.inputs] == [v.name for v in plain.graph.inputs]

    def test_nothing_is_quantized_unasked(self, tiny_bundle: Path) -> None:
        graph = lower(trace_of(tiny_bundle), LowerOptions()).graph
        assert set(everywhere(graph)) == {"MatMul"}
        assert "com.microsoft" not in graph.graph.opset_imports

    @pytest.mark.parametrize("bits", [8, 4])
    def test_blocks_are_rounded_to_the_nearest(self, matrix: Array, bits: int, tmp_path: Path) -> None:
        """What ONNX Runtime computes from unit vectors is the weight that the integers stand for."""
        packed, scales = pack(matrix, bits, 32)
        integers = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
        steps = integers.reshape(24, 3, 32).astype(np.float32) - 2 ** (bits - 1)
        stored = (steps * scales[..., None]).reshape(24, 96)[:, :72].T
        half = np.repeat(np.abs(scales), 32, axis=1)[:, :72].T / 2
        # the largest of a block may be cut by one step: there is one integer more below zero than above
        assert (np.abs(stored - matrix) <= 2 * half * (1 + 1e-5)).all()
        assert (np.abs(stored - matrix) <= half * (1 + 1e-5)).mean() > 0.9
        session = one_layer(matrix, BLOCKS[bits], tmp_path / "m.onnx")
        found = session.run(None, {"x": np.eye(72, dtype=np.float32)[None]})[0][0]
        np.testing.assert_allclose(found, stored, rtol=2e-5, atol=1e-6 * float(np.abs(matrix).max()))

    def test_dynamic_is_what_its_equation_says(self, matrix: Array, tmp_path: Path) -> None:
        session = one_layer(matrix, DYNAMIC, tmp_path / "m.onnx")
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-30) / 127
        integers = np.rint(matrix / scale)
        found = session.run(None, {"x": np.eye(72, dtype=np.float32)[None]})[0][0]
        np.testing.assert_allclose(found, integers * scale, rtol=1e-6)
        x = np.random.default_rng(1).normal(size=(3, 5, 72)).astype(np.float32)
        largest = np.abs(x).max(axis=-1, keepdims=True)
        expected = largest / 127 * (np.rint(x / largest * 127) @ integers) * scale
        found = session.run(None, {"x": x})[0]
        # a quotient next to a half may be rounded the other way: one step of one feature
        assert (
            np.quantile(np.abs(found - expected) / np.abs(expected).max(axis=(0, 1)).clip(1e-9), 0.99)
            < 1e-5
        )
        np.testing.assert_allclose(found, x @ matrix, atol=0.02 * float(np.abs(x @ matrix).max()))

    @pytest.mark.parametrize("quantization", EVERY, ids=NAMES)
    @pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30, 0.0])
    def test_a_token_sees_no_other(
        self, matrix: Array, quantization: Quantization, poison: float, tmp_path: Path
    ) -> None:
        """One scale for a whole tensor would end or blur all the others."""
        session = one_layer(matrix, quantization, tmp_path / "m.onnx")
        x = np.random.default_rng(2).normal(size=(4, 6, 72)).astype(np.float32)
        expected = session.run(None, {"x": x})[0]
        others = np.ones((4, 6), bool)
        others[1, 2] = False
        for features in (slice(3, 4), slice(None)):
            x[1, 2, features] = poison
            found = session.run(None, {"x": x})[0]
            np.testing.assert_array_equal(found[others], expected[others])
        if np.isnan(poison):
            assert np.isnan(found[1, 2]).all()
        alone = session.run(None, {"x": x[2:3, :1]})[0]
        np.testing.assert_array_equal(alone[0, 0], found[2, 0])

    def test_a_token_of_zeros_stays_zero(self, matrix: Array, tmp_path: Path) -> None:
        for quantization, name in zip(EVERY, NAMES, strict=True):
            session = one_layer(matrix, quantization, tmp_path / f"{name}.onnx")
            assert not session.run(None, {"x": np.zeros((1, 2, 72), np.float32)})[0].any()

    def test_sums_fit_where_onnxruntime_does_not_help(self, tiny_bundle: Path) -> None:
        """It changes int8 weights for CPUs that saturate, but not those inside branches."""
        trace = trace_of(tiny_bundle)
        options = LowerOptions(dict.fromkeys(slot_candidates(trace), FACTORS), quantization=DYNAMIC)
        largest: dict[bool, int] = {True: 0, False: 0}
        graph = lower(trace, options).graph.graph
        for node in ir.traversal.RecursiveGraphIterator(graph):
            if node.op_type == "MatMulIntegerToFloat":
                tensor = node.inputs[1].const_value
                inside = node.graph is not graph
                largest[inside] = max(largest[inside], int(np.abs(tensor.numpy().astype(int)).max()))
        assert largest == {False: 127, True: 64}
        assert 2 * 255 * largest[True] < 2**15

    @pytest.mark.parametrize("poor", [True, False])
    def test_onnxruntime_is_told_of_a_cpu_that_saturates(
        self, tiny_bundle: Path, matrix: Array, poor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend, "saturates", lambda ort: poor)
        lower_again(tiny_bundle, tmp_path / "b", options=BuildOptions(quantize="int8"))
        with Engine.open(tmp_path / "b") as engine:
            options = engine._backend._session.get_session_options()  # type: ignore[union-attr]
            if poor:
                assert options.get_session_config_entry(PRECISE) == "1"
            else:
                with pytest.raises(RuntimeError):
                    options.get_session_config_entry(PRECISE)
        # and it computes the same
        session = one_layer(matrix, DYNAMIC, tmp_path / "m.onnx")
        plain = open_session(tmp_path / "m.onnx", threads=1)
        x = np.random.default_rng(0).normal(size=(4, 6, 72)).astype(np.float32)
        pair = [each.run(None, {"x": x})[0] for each in (session, plain)]
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5 * float(np.abs(pair[1]).max()))


class TestTheHeadOfADecoder:
    @pytest.fixture(scope="class")
    @classmethod
    def tied(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A Llama whose lm_head is the table of its embeddings."""
        folder = tmp_path_factory.mktemp("tied")
        FAMILIES["Llama"].save(CAUSAL, folder / "model", tie_word_embeddings=True)
        build_model(str(folder / "model"), folder / "bundle")
        return folder / "bundle"

    def lowered(self, bundle: Path, **changes: Any) -> ir.Model:
        quantization = BLOCKS[8].model_copy(update=changes)
        return lower(trace_of(bundle), LowerOptions(quantization=quantization)).graph

    def test_a_tied_head_is_quantized_and_the_table_is_not(self, tied: Path) -> None:
        made = self.lowered(tied)
        assert set(everywhere(made)) == {"MatMulNBits"}
        assert max(n.attributes["N"].as_int() for n in made.graph if n.op_type == "MatMulNBits") == 97
        tables = [
            n.inputs[0].dtype for n in made.graph if n.op_type == "Gather" and n.inputs[0].is_initializer()
        ]
        assert tables.count(ir.DataType.FLOAT) == 1

    def test_it_can_stay(self, tied: Path) -> None:
        assert everywhere(self.lowered(tied, lm_head=False))["MatMul"] == 1

    def test_the_table_can_go_along(self, tied: Path) -> None:
        made = self.lowered(tied, embeddings=True)
        assert sum(node.op_type == "GatherBlockQuantized" for node in made.graph) == 1
        sizes = [
            v.const_value.size for v in made.graph.initializers.values() if v.dtype == ir.DataType.FLOAT
        ]
        assert max(sizes) < 97 * 32

    @pytest.mark.parametrize("quantize", ["int8", "int4"])
    def test_it_is_served(self, tied: Path, quantize: str, tmp_path: Path) -> None:
        options = BuildOptions(quantize=quantize, quantize_also=("embeddings", "lm_head"))
        result = lower_again(tied, tmp_path / "b", options=options)
        assert result.quality is not None
        assert result.quality.top1 is not None
        assert result.quality.top1 >= 0.9
        assert (tmp_path / "b" / "weights" / f"{quantize}.bin").exists()
        ids = {"input_ids": [[5, 6, 7]]}
        with Engine.open(tied) as exact, Engine.open(tmp_path / "b") as engine:
            pair = [side.run(ids)["logits"][0] for side in (exact, engine)]
        assert not np.array_equal(*pair)
        np.testing.assert_allclose(pair[1], pair[0], atol=0.1 * float(np.abs(pair[0]).max()))

    def test_a_narrow_table(self, tmp_path: Path) -> None:
        FAMILIES["Electra"].save("feature-extraction", tmp_path / "model")
        with pytest.raises(BuildError) as caught:
            build_model(
                str(tmp_path / "model"),
                tmp_path / "b",
                options=BuildOptions(quantize="int8", quantize_also=("embeddings",)),
            )
        assert caught.value.codes == {Code.UNSUPPORTED}
        assert "rows of 16 values" in str(caught.value)
        assert not (tmp_path / "b").exists()

    def test_a_classifier_stays_float_unless_asked_for(self, tiny_classifier: Path, tmp_path: Path) -> None:
        built = build_model(str(tiny_classifier), tmp_path / "b", options=BuildOptions(quantize="int8"))
        assert built.quality is not None
        assert built.quality.top1 is not None
        trace = trace_of(tmp_path / "b")
        assert find_frozen(trace).logits == {"classifier.weight"}
        counts = []
        for lm_head in (False, True):
            quantization = DYNAMIC.model_copy(update={"lm_head": lm_head})
            counts.append(everywhere(lower(trace, LowerOptions(quantization=quantization)).graph)["MatMul"])
        assert counts == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path: Path) -> None:
    """With every slot that it can have, its own head or its language model, and each method."""
    family = FAMILIES[name]
    task = CAUSAL if family.decoder else BARE
    built = build_family(name, task, tmp_path)
    bundle = built.result.bundle.root
    for method in PRODUCT:
        options = BuildOptions(quantize="int8", quantize_method=method, min_cosine=0.98)
        result = lower_again(bundle, tmp_path / method, options=options)
        assert result.quality is not None
        assert result.quality.cosine < 1 - 1e-9
        made = ir.load(tmp_path / method / MODEL_FILE)
        floats = {n for n, v in made.graph.initializers.items() if v.dtype == ir.DataType.FLOAT}
        frozen = find_frozen(trace_of(bundle))
        tables = {n.inputs[0].name for n in made.graph if n.op_type == "Gather" and n.inputs[0] is not None}
        assert floats & frozen.linears <= tables | (frozen.logits if method == "dynamic" else set())
