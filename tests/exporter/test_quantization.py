"""Quantized bases: what becomes integers and what does not, and how near the outputs stay."""

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
from adexport.quality import Comparison, Quality
from adexport.quantization import choose_quantization
from adexport.slots.kinds import FACTORS
from adexport.verify import verify_bundle
from adexport_runtime import BuildError, Bundle, Code, Engine, bind_into_bundle
from adexport_runtime.backends import onnxruntime as backend
from adexport_runtime.backends.onnxruntime import open_session
from adexport_runtime.bundle import MODEL_FILE, TRACE_FILE
from adexport_runtime.quantization import Quantization
from adexport_runtime.tensors import read_tensors

from ..conftest import MakeLora
from .families import BARE, CAUSAL, FAMILIES, TEXT, build_family
from .test_build import tree

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


class TestTheChoice:
    def test_by_task(self) -> None:
        asked = BuildOptions(quantize="int8")
        assert choose_quantization(asked, TEXT, "fp32") == DYNAMIC
        assert choose_quantization(asked, CAUSAL, "fp32") == BLOCKS[8]
        assert choose_quantization(BuildOptions(quantize="int4"), CAUSAL, "fp32") == BLOCKS[4]
        assert choose_quantization(BuildOptions(), CAUSAL, "fp32") is None

    def test_what_is_left_open_stays(self) -> None:
        known = BLOCKS[4].model_copy(update={"embeddings": True, "lm_head": False})
        assert choose_quantization(BuildOptions(), TEXT, "fp32", known) == known
        wider = choose_quantization(BuildOptions(quantize="int8"), TEXT, "fp32", known)
        assert wider == known.model_copy(update={"bits": 8})
        assert choose_quantization(BuildOptions(quantize="none"), TEXT, "fp32", known) is None

    @pytest.mark.parametrize(
        ("options", "task", "dtype", "subjects"),
        [
            ({"quantize": "int4"}, TEXT, "fp32", ["--quantize int4"]),
            ({"quantize": "int4"}, TEXT, "fp16", ["--quantize int4", "--dtype fp16"]),
            ({"quantize": "int8"}, CAUSAL, "bf16", ["--dtype bf16"]),
            ({"quantize": "int8", "min_cosine": 1.5}, TEXT, "fp32", ["--min-cosine"]),
            ({"quantize": "int8", "quantize_also": ("norms",)}, TEXT, "fp32", ["--quantize-also"]),
            ({"min_cosine": 0.9, "quantize_also": ()}, TEXT, "fp32", ["--quantize-also", "--min-cosine"]),
        ],
    )
    def test_what_cannot_be_had(
        self, options: dict[str, Any], task: str, dtype: str, subjects: list[str]
    ) -> None:
        with pytest.raises(BuildError) as caught:
            choose_quantization(BuildOptions(**options), task, dtype)
        assert [problem.subject for problem in caught.value.problems] == subjects
        assert all(problem.got and problem.expected for problem in caught.value.problems)


class TestTheJudgement:
    @staticmethod
    def compared(got: Any, expected: Any, name: str = "logits", mask: Any = None) -> Quality:
        comparison = Comparison()
        sides = [{name: np.asarray(value, np.float32)} for value in (got, expected)]
        comparison.add(*sides, None if mask is None else np.asarray(mask))
        return comparison.result(texts=True)

    def test_the_smallest_cosine_counts(self) -> None:
        found = self.compared([[1, 0], [1, 1], [0, 0]], [[2, 0], [1, 0], [0, 0]], "last_hidden_state")
        assert found.cosine == pytest.approx(np.sqrt(0.5))
        assert (found.top1, found.compared) == (None, 3)

    def test_logits_are_compared_around_their_mean(self) -> None:
        """A softmax does not see what is added to all of them."""
        logits = np.random.default_rng(0).normal(size=(2, 3, 40))
        assert self.compared(logits + 7, logits).cosine == pytest.approx(1, abs=1e-6)
        assert self.compared(logits + 7, logits, "last_hidden_state").cosine < 0.5

    def test_few_labels_are_compared_together(self) -> None:
        """Between two labels that are near a tie, a small change turns the direction around."""
        found = self.compared([[5, -5], [0.1, -0.1]], [[5, -5], [-0.1, 0.1]])
        assert found.cosine > 0.99
        assert found.top1 == 0.5

    def test_padding_does_not_count_and_nan_does(self) -> None:
        expected = np.random.default_rng(0).normal(size=(1, 3, 40))
        got = expected.copy()
        got[0, 2] = np.nan
        assert self.compared(got, expected, mask=[[1, 1, 0]]).cosine == pytest.approx(1)
        assert self.compared(got, expected, mask=[[1, 1, 1]]).cosine == -1

    def test_a_build_under_the_floor_is_not_published(self, bundle_copy: Path) -> None:
        before = tree(bundle_copy)
        with pytest.raises(BuildError) as caught:
            lower_again(bundle_copy, options=BuildOptions(quantize="int8", min_cosine=1.0))
        assert caught.value.codes == {Code.PARITY}
        for problem in caught.value.problems:
            assert "a cosine of 0.9999" in problem.got
            assert problem.expected == "at least 1"
            assert "--quantize-method weight-only" in problem.mend
        assert tree(bundle_copy) == before


class TestABundle:
    def test_it_keeps_its_quantization_until_it_is_taken_off(self, bundle_copy: Path) -> None:
        model = (bundle_copy / MODEL_FILE).read_bytes()
        fingerprint = Bundle.open(bundle_copy).manifest.base.fingerprint
        lower_again(bundle_copy, options=BuildOptions(quantize="int8"))
        again = lower_again(bundle_copy, options=BuildOptions(max_rank=8))
        base = again.bundle.manifest.base
        assert (base.quantization, base.dtype, base.fingerprint) == (DYNAMIC, "fp32", fingerprint)
        assert again.quality is not None
        assert {path.name for path in (bundle_copy / "weights").iterdir()} == {
            "fp32.bin",
            "small.bin",
            "int8.bin",
        }
        again.bundle.check_files()
        plain = lower_again(bundle_copy, options=BuildOptions(quantize="none"))
        assert (plain.bundle.manifest.base.quantization, plain.quality) == (None, None)
        assert not (bundle_copy / "weights" / "int8.bin").exists()
        assert (bundle_copy / MODEL_FILE).read_bytes() == model

    @pytest.mark.parametrize(
        "options",
        [{"quantize": "int8"}, {"quantize": "int4", "quantize_method": "weight-only"}],
        ids=["dynamic", "int4"],
    )
    def test_adapters_of_the_float_base_are_served(
        self, tiny_bundle: Path, options: dict[str, Any], make_lora: MakeLora, tmp_path: Path
    ) -> None:
        """DoRA's factors depend on the frozen weights: those are read as float, quantized or not."""
        lower_again(
            tiny_bundle, tmp_path / "b", options=BuildOptions(slots=("lora", "scale", "bias"), max_rank=16)
        )
        for name, lora in (
            ("lora", make_lora("lora", std=0.3)),
            ("dora", make_lora("dora", use_dora=True)),
        ):
            bind_into_bundle(Bundle.open(tmp_path / "b"), lora, name)
        rows = [None, "lora", "dora", "lora"]
        inputs = {"input_ids": np.arange(20).reshape(4, 5) + 4}
        with Engine.open(tmp_path / "b") as engine:
            expected = engine.run(inputs, rows)["last_hidden_state"]
        lower_again(tmp_path / "b", options=BuildOptions(**options))
        bundle = Bundle.open(tmp_path / "b")
        again = bind_into_bundle(bundle, make_lora("dora", use_dora=True), "again")
        assert again.name == "again"
        paths = [bundle.adapter_path(name) for name in ("dora", "again")]
        first, second = (read_tensors(path).tensors for path in paths)
        for name, tensor in first.items():
            np.testing.assert_array_equal(tensor, second[name])
        with Engine.open(tmp_path / "b") as engine:
            found = engine.run(inputs, rows)["last_hidden_state"]
        comparison = Comparison()
        comparison.add({"x": found}, {"x": expected}, None)
        assert comparison.result(texts=False).cosine > 0.99
        assert not np.array_equal(found, expected)
        # what the adapters change is much more than what quantization does
        with Engine.open(tmp_path / "b") as engine:
            bare = engine.run(inputs)["last_hidden_state"]
        changed, lost = (np.abs(found - other)[1:].mean() for other in (bare, expected))
        assert changed > 3 * lost

    @pytest.mark.parametrize(
        "options",
        [{"quantize": "int8"}, {"quantize": "int8", "quantize_method": "weight-only"}],
        ids=["dynamic", "weight-only"],
    )
    @pytest.mark.parametrize("poison", [np.nan, np.inf, 1e6])
    def test_a_tenants_values_stay_its_own(
        self, tiny_bundle: Path, options: dict[str, Any], poison: float, make_lora: MakeLora, tmp_path: Path
    ) -> None:
        """Rows of others are bit-equal whatever a tenant's weights are."""
        lower_again(tiny_bundle, tmp_path / "b", options=BuildOptions(**options))
        rows = [None, "bad", "good", "bad"]
        inputs = {"input_ids": np.arange(20).reshape(4, 5) + 4}
        with Engine.open(tmp_path / "b") as engine:
            for name in ("bad", "good"):
                engine.bind(name, make_lora(name, seed=len(name)))
            before = engine.run(inputs, rows)["last_hidden_state"]
            with engine._bank.lease({"bad"}) as lease:
                row = lease.rows["bad"]
                for name, array in lease.arrays.items():
                    if name.endswith(".lora_B"):
                        array[row] = poison
            after = engine.run(inputs, rows)["last_hidden_state"]
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
        if np.isnan(poison):
            assert np.isnan(after[[1, 3]]).all()
        else:
            assert not np.array_equal(after[[1, 3]], before[[1, 3]])

    def test_verify_judges_by_cosine(self, tiny_bundle: Path, make_lora: MakeLora, tmp_path: Path) -> None:
        lower_again(tiny_bundle, tmp_path / "b", options=BuildOptions(quantize="int8"))
        adapters = [make_lora("one", r=3)]
        report = verify_bundle(tmp_path / "b", adapters)
        assert report.min_cosine == 0.98
        assert report.cosine is not None
        assert 0.999 < report.cosine < 1
        assert report.worst > 1e-5  # a float bundle would be refused for it
        assert max(row.alone for row in report.rows) <= 1e-3
        assert report.top1 is None
        with pytest.raises(BuildError) as caught:
            verify_bundle(tmp_path / "b", adapters, min_cosine=1)
        assert len(caught.value.problems) == len(report.rows)
        with pytest.raises(BuildError) as caught:
            verify_bundle(tiny_bundle, adapters, min_cosine=0.5)
        assert caught.value.codes == {Code.BAD_INPUT}


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


@pytest.mark.slow
def test_minilm_on_real_texts(
    minilm_bundle: Path, minilm: Path, make_lora: MakeLora, tmp_path: Path
) -> None:
    result = lower_again(minilm_bundle, tmp_path / "b", options=BuildOptions(quantize="int8"))
    assert result.quality is not None
    assert result.quality.texts
    assert result.quality.cosine >= 0.985
    report = verify_bundle(tmp_path / "b", [make_lora("one", model=minilm, std=0.02)], model=str(minilm))
    assert report.cosine is not None
    assert report.cosine >= 0.985
    assert max(row.alone for row in report.rows) <= 1e-3
    assert len({row.tokens for row in report.rows}) > 1
