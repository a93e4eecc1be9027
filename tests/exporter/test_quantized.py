"""Bundles with a quantized base: what can be had, how they are judged, whom they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adexport.build import lower_again
from adexport.options import BuildOptions
from adexport.quality import Comparison, Quality
from adexport.quantization import choose_quantization
from adexport.verify import verify_bundle
from adexport_runtime import BuildError, Bundle, Code, Engine, bind_into_bundle
from adexport_runtime.bundle import MODEL_FILE
from adexport_runtime.tensors import read_tensors

from ..conftest import MakeLora
from .families import CAUSAL, TEXT
from .test_build import tree
from .test_quantization import BLOCKS, DYNAMIC

Array = np.ndarray[Any, Any]


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

    def test_the_mean_counts_and_the_smallest_is_told(self) -> None:
        found = self.compared([[1, 0], [1, 1], [0, 0]], [[2, 0], [1, 0], [0, 0]], "last_hidden_state")
        assert found.cosine == pytest.approx((2 + np.sqrt(0.5)) / 3)
        assert found.smallest == pytest.approx(np.sqrt(0.5))
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
            assert "a mean cosine of 0.9999" in problem.got
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
        assert [problem.subject for problem in caught.value.problems] == ["all rows"]
        with pytest.raises(BuildError) as caught:
            verify_bundle(tiny_bundle, adapters, min_cosine=0.5)
        assert caught.value.codes == {Code.BAD_INPUT}


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
