"""What PEFT readers refuse beside what they serve: every culprit is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adexport_runtime import AdapterError, Code
from adexport_runtime.adapters import FrozenLinear, NeutralAdapter, read_adapter

from .conftest import GoldenCopy
from .spoiled_headers import WRONG_TYPES
from .support import (
    GOLDEN_PEFT,
    QUERY,
    VALUE,
    WEIGHTS,
    Tensors,
    culprits,
    edit_config,
    edit_tensors,
    names_in,
)

PREFIX = "base_model.model."
Q0 = QUERY.format(0)
SITES = {form.format(n) for form in (QUERY, VALUE) for n in (0, 1)}


def solved(adapter: NeutralAdapter, module: str, base: FrozenLinear) -> dict[Code, set[str]]:
    """All problems of computing a layer's factors."""
    assert adapter.problems == ()
    with pytest.raises(AdapterError) as caught:
        adapter.linears[module].solve(lambda: base)
    return {p.code: {p.subject} for p in caught.value.problems}


def layer(out: int = 16, into: int = 16, bias: bool = True) -> FrozenLinear:
    random = np.random.default_rng(0)
    weight = random.standard_normal((out, into)).astype(np.float32)
    return FrozenLinear(weight, np.ones(out, np.float32) if bias else None)


class TestTensors:
    @pytest.mark.parametrize("name", WRONG_TYPES)
    def test_headers_with_values_of_other_types(self, golden: GoldenCopy, name: str) -> None:
        folder = golden("lora")
        (folder / WEIGHTS).write_bytes(WRONG_TYPES[name])
        assert culprits(folder) == {Code.DAMAGED: {str(folder / WEIGHTS)}}

    @pytest.mark.parametrize(
        ("case", "part"),
        [
            ("lora", "lora_B.weight"),
            ("lora-bias", "lora_B.bias"),
            ("dora", "lora_magnitude_vector"),
            ("adalora", "lora_E"),
            ("vera", "vera_lambda_d"),
            ("loha", "hada_w2_b"),
            ("lokr-products", "lokr_w1_a"),
            ("lokr-products", "lokr_w2_b"),
            ("delora", "delora_w_norm"),
            ("delora", "delora_lambda"),
            ("vblora", "vblora_logits_A"),
            ("vblora-topk", "vblora_logits_B_topk_indices"),
        ],
    )
    def test_a_lost_tensor(self, golden: GoldenCopy, case: str, part: str) -> None:
        def drop(tensors: Tensors) -> None:
            del tensors[f"{PREFIX}{Q0}.{part}"]

        assert culprits(edit_tensors(golden(case), drop)) == {Code.HALF_MISSING: {Q0}}

    @pytest.mark.parametrize(("case", "name"), [("vera", "vera_A"), ("vblora", "vblora_vector_bank")])
    def test_a_lost_tensor_of_all_layers(self, golden: GoldenCopy, case: str, name: str) -> None:
        def drop(tensors: Tensors) -> None:
            del tensors[f"base_model.{name}"]

        assert culprits(edit_tensors(golden(case), drop)) == {Code.ABSENT: {f"base_model.{name}"}}

    @pytest.mark.parametrize(
        "case", ["lora", "ia3", "adalora", "vera", "loha", "lokr", "miss", "hra", "delora", "vblora"]
    )
    def test_a_lost_layer_is_still_claimed(self, golden: GoldenCopy, case: str) -> None:
        layer = "encoder.layer.1.attention.self.value"

        def drop(tensors: Tensors) -> None:
            for name in [name for name in tensors if layer in name]:
                del tensors[name]

        adapter = read_adapter(edit_tensors(golden(case), drop))
        assert adapter.problems == ()
        assert layer not in adapter.modules
        assert adapter.covers is not None
        assert adapter.covers(layer)

    @pytest.mark.parametrize(
        ("case", "part"),
        [
            ("lora", "lora_A.weight"),
            ("dora", "lora_magnitude_vector"),
            ("adalora", "lora_E"),
            ("ia3", "ia3_l"),
            ("vera", "vera_lambda_b"),
            ("loha", "hada_w1_a"),
            ("lokr", "lokr_w2"),
            ("miss", "miss_block"),
            ("hra", "hra_u"),
            ("delora", "delora_w_norm"),
            ("vblora", "vblora_logits_B"),
        ],
    )
    def test_a_wrong_shape_and_a_wrong_type(self, golden: GoldenCopy, case: str, part: str) -> None:
        module = Q0 if case != "ia3" else "encoder.layer.0.attention.self.key"
        name = f"{PREFIX}{module}.{part}"

        def deepen(tensors: Tensors) -> None:
            tensors[name] = tensors[name][None]

        def truncate(tensors: Tensors) -> None:
            tensors[name] = tensors[name][0].astype(np.int32)

        folder = golden(case)
        assert culprits(edit_tensors(folder, deepen)) == {Code.WRONG_SHAPE: {name}}
        assert culprits(edit_tensors(folder, truncate)) == {Code.WRONG_DTYPE: {name}}

    @pytest.mark.parametrize(
        ("case", "name"),
        [
            ("lora", f"{PREFIX}{Q0}.lora_magnitude_vector"),
            ("lora", f"{PREFIX}{Q0}.lora_B.bias"),
            ("lora", f"{PREFIX}{Q0}.lora_velora_embed"),
            ("lora", f"{PREFIX}{Q0}.base_layer.bias"),
            ("lora", f"{PREFIX}{Q0}.lora_A.default.weight"),
            ("lora", f"{PREFIX}embeddings.word_embeddings.weight"),
            ("vblora", f"{PREFIX}{Q0}.vblora_logits_A_topk_weights"),
            ("lokr", f"{PREFIX}{Q0}.lokr_w1_a"),
            ("miss", f"{PREFIX}{Q0}.lora_A.weight"),
        ],
    )
    def test_a_tensor_that_the_config_leaves_no_room_for(
        self, golden: GoldenCopy, case: str, name: str
    ) -> None:
        def add(tensors: Tensors) -> None:
            tensors[name] = np.ones(16, np.float32)

        assert culprits(edit_tensors(golden(case), add)) == {Code.UNKNOWN_TENSOR: {name}}

    def test_factors_of_a_convolution(self, golden: GoldenCopy) -> None:
        names = {f"{PREFIX}{Q0}.hada_t1", f"{PREFIX}{Q0}.hada_t2"}

        def add(tensors: Tensors) -> None:
            tensors.update({name: np.ones((2, 2, 3, 3), np.float32) for name in names})

        assert culprits(edit_tensors(golden("loha"), add)) == {Code.UNSUPPORTED: names}

    def test_factors_that_no_machine_has_room_for(self, golden: GoldenCopy) -> None:
        def swell(tensors: Tensors) -> None:
            for part in ("lokr_w1", "lokr_w2"):
                tensors[f"{PREFIX}{Q0}.{part}"] = np.ones((200, 200), np.float32)

        assert culprits(edit_tensors(golden("lokr"), swell)) == {Code.RANK_ABOVE_MAX: {Q0}}

    def test_layers_that_were_not_pruned_have_elements(self, golden: GoldenCopy) -> None:
        folder = golden("adalora-pruned")
        value = VALUE.format(1)
        names = {f"{PREFIX}{value}.{part}" for part in ("lora_A", "lora_B", "lora_E")}
        assert value in read_adapter(folder).modules
        assert value not in read_adapter(folder).linears
        edit_config(folder, rank_pattern=None, init_r=4)
        assert value in culprits(folder)[Code.RANK_MISMATCH]

        def empty(tensors: Tensors) -> None:
            for name in names:
                tensors[name] = np.zeros((0, 0), np.float32)

        assert culprits(edit_tensors(folder, empty))[Code.EMPTY_TENSOR] == names

    def test_columns_that_gram_and_schmidt_cannot_part(self, golden: GoldenCopy) -> None:
        name = f"{PREFIX}{Q0}.hra_u"

        def double(tensors: Tensors) -> None:
            tensors[name][:, 1] = tensors[name][:, 0]

        assert culprits(edit_tensors(golden("hra-gram-schmidt"), double)) == {Code.UNSUPPORTED: {name}}

    def test_equal_logits(self, golden: GoldenCopy) -> None:
        name = f"{PREFIX}{Q0}.vblora_logits_A"

        def level(tensors: Tensors) -> None:
            tensors[name][0, 0] = 1

        assert culprits(edit_tensors(golden("vblora"), level)) == {Code.UNSUPPORTED: {name}}

    @pytest.mark.parametrize("fault", ["twice", "outside", "weights"])
    def test_vectors_that_cannot_be(self, golden: GoldenCopy, fault: str) -> None:
        indices, weights = (f"{PREFIX}{Q0}.vblora_logits_A_topk_{what}" for what in ("indices", "weights"))

        def spoil(tensors: Tensors) -> None:
            if fault == "weights":
                tensors[weights][0, 0] = 0.9
            else:
                tensors[indices][0, 0, 0] = 10 if fault == "outside" else tensors[indices][0, 0, 1]

        found = culprits(edit_tensors(golden("vblora-topk"), spoil))
        assert found == {Code.BAD_INPUT: {f"{indices}, {weights}"}}

    def test_a_vector_that_could_be_either(self, golden: GoldenCopy) -> None:
        """A layer of one output: its (IA)3 vector is told from the input's by the config alone."""

        def shrink(tensors: Tensors) -> None:
            for name in tensors:
                tensors[name] = np.ones((1, 1), np.float32)

        folder = edit_tensors(golden("ia3"), shrink)
        adapter = read_adapter(folder)
        kinds = {module: set(update.kinds) for module, update in adapter.linears.items()}
        assert kinds["encoder.layer.0.attention.self.key"] == {"scale_out"}
        assert kinds["encoder.layer.0.output.dense"] == {"scale_in"}
        found = culprits(edit_config(folder, feedforward_modules=None))
        assert found == {Code.WRONG_SHAPE: names_in(folder)}

    def test_a_vector_on_the_other_side(self, golden: GoldenCopy) -> None:
        folder = edit_config(golden("ia3"), feedforward_modules=["key"])
        sides = ("attention.self.key", "attention.output.dense", "output.dense")
        expected = {f"{PREFIX}encoder.layer.{n}.{side}.ia3_l" for n in (0, 1) for side in sides} & names_in(
            folder
        )
        assert culprits(folder) == {Code.WRONG_SHAPE: expected}


class TestBiases:
    def test_a_lost_bias(self, golden: GoldenCopy) -> None:
        """Whether a layer had one is known with the base."""

        def drop(tensors: Tensors) -> None:
            del tensors[f"{PREFIX}{Q0}.base_layer.bias"]

        adapter = read_adapter(edit_tensors(golden("bias-lora-only"), drop))
        assert solved(adapter, Q0, layer()) == {Code.HALF_MISSING: {Q0}}
        assert adapter.linears[Q0].solve(lambda: layer(bias=False)).kinds == {"lora_A", "lora_B"}

    def test_a_bias_alone(self, golden: GoldenCopy) -> None:
        def drop(tensors: Tensors) -> None:
            for part in "AB":
                del tensors[f"{PREFIX}{Q0}.lora_{part}.weight"]

        assert culprits(edit_tensors(golden("bias-lora-only"), drop)) == {Code.HALF_MISSING: {Q0}}

    @pytest.mark.parametrize("base", [layer(bias=False), layer(out=8)], ids=["none", "shorter"])
    def test_a_bias_of_another_base(self, golden: GoldenCopy, base: FrozenLinear) -> None:
        adapter = read_adapter(golden("bias-lora-only"))
        name = f"{PREFIX}{Q0}.base_layer.bias"
        assert solved(adapter, Q0, base) == {Code.WRONG_SHAPE: {name}}


class TestBase:
    """What is known with the frozen layer only."""

    @pytest.mark.parametrize(
        ("case", "part"),
        [
            ("pissa", "lora_A.weight"),
            ("olora", "lora_A.weight"),
            ("dora", "lora_A.weight"),
            ("hra", "hra_u"),
        ],
    )
    def test_other_inputs(self, golden: GoldenCopy, case: str, part: str) -> None:
        found = solved(read_adapter(golden(case)), Q0, layer(into=12))
        assert found == {Code.WRONG_SHAPE: {f"{PREFIX}{Q0}.{part}"}}

    @pytest.mark.parametrize(
        ("case", "part"), [("dora", "lora_B.weight"), ("vera", "vera_lambda_b"), ("miss", "miss_block")]
    )
    def test_other_outputs(self, golden: GoldenCopy, case: str, part: str) -> None:
        found = solved(read_adapter(golden(case)), Q0, layer(out=12))
        assert found == {Code.WRONG_SHAPE: {f"{PREFIX}{Q0}.{part}"}}

    def test_projections_that_are_too_small(self, golden: GoldenCopy) -> None:
        adapter = read_adapter(golden("vera"))
        assert solved(adapter, Q0, layer(into=99)) == {Code.WRONG_SHAPE: {"base_model.vera_A"}}

        def cut(tensors: Tensors) -> None:
            tensors["base_model.vera_B"] = np.ascontiguousarray(tensors["base_model.vera_B"][:15])

        found = culprits(edit_tensors(golden("vera-bias"), cut))
        assert found == {Code.WRONG_SHAPE: {"base_model.vera_B"}}

    def test_columns_that_do_not_divide_the_outputs(self, golden: GoldenCopy) -> None:
        found = solved(read_adapter(golden("miss-mini")), Q0, layer(out=15))
        assert found == {Code.WRONG_SHAPE: {f"{PREFIX}{Q0}.miss_block"}}

    @pytest.mark.parametrize("case", ["pissa", "olora"])
    def test_a_base_that_does_not_determine_what_is_taken_out(self, golden: GoldenCopy, case: str) -> None:
        weight = np.zeros((16, 16), np.float32)
        found = solved(read_adapter(golden(case)), Q0, FrozenLinear(weight, None))
        assert found == {Code.UNSUPPORTED: {Q0}}

    def test_a_decomposition_that_peft_cannot_do(self, golden: GoldenCopy) -> None:
        def narrow(tensors: Tensors) -> None:
            for name in [name for name in tensors if name.endswith("lora_A.weight")]:
                tensors[name] = np.ascontiguousarray(tensors[name][:, :12])

        folder = edit_tensors(golden("olora"), narrow)
        base = layer(into=12)
        read_adapter(folder).linears[Q0].solve(lambda: base)
        stored = replace(base, transposed=True)
        assert solved(read_adapter(folder), Q0, stored) == {Code.UNSUPPORTED: {Q0}}

    @pytest.mark.parametrize("case", ["pissa", "olora", "lora"])
    def test_a_start_that_changes_the_embedding_too(self, golden: GoldenCopy, case: str) -> None:
        def rename(tensors: Tensors) -> None:
            for name in [name for name in tensors if Q0 in name]:
                tensors[name.replace(Q0, "cls.lm_head")] = tensors.pop(name)

        expected = {} if case == "lora" else {Code.UNSUPPORTED: {"cls.lm_head"}}
        assert culprits(edit_tensors(golden(case), rename)) == expected

    def test_not_finite_factors_come_through(self, golden: GoldenCopy) -> None:
        """They are refused by their values, where all values are."""

        def spoil(tensors: Tensors) -> None:
            tensors[f"{PREFIX}{Q0}.hra_u"][:, 1] = 0

        adapter = read_adapter(edit_tensors(golden("hra"), spoil))
        assert adapter.problems == ()
        weights = adapter.linears[Q0].solve(layer)
        assert np.isnan(weights.factors["lora_A"]).any()
        assert weights.names["lora_A"] == f"{PREFIX}{Q0}.hra_u"


class TestModulesSavedWhole:
    def test_a_lost_head(self, golden: GoldenCopy) -> None:
        def drop(tensors: Tensors) -> None:
            for name in [name for name in tensors if "classifier" in name]:
                del tensors[name]

        folder = edit_tensors(golden("bert-classifier/lora"), drop)
        names = {f"modules_to_save {name!r}" for name in ("classifier", "score")}
        assert culprits(folder) == {Code.ABSENT: names}

    def test_a_lost_layer_of_a_head(self, golden: GoldenCopy) -> None:
        def drop(tensors: Tensors) -> None:
            for part in ("weight", "bias"):
                del tensors[f"{PREFIX}pre_classifier.{part}"]

        folder = edit_tensors(golden("distilbert-classifier/lora"), drop)
        assert culprits(folder) == {Code.ABSENT: {"modules_to_save 'pre_classifier'"}}

    def test_halves_and_shapes(self, golden: GoldenCopy) -> None:
        weight, bias = (f"{PREFIX}classifier.{part}" for part in ("weight", "bias"))

        def cut(tensors: Tensors) -> None:
            tensors[bias] = np.ones(7, np.float32)

        def drop(tensors: Tensors) -> None:
            del tensors[weight]

        folder = golden("bert-classifier/lora")
        assert culprits(edit_tensors(folder, cut)) == {Code.WRONG_SHAPE: {bias}}
        assert culprits(edit_tensors(folder, drop)) == {Code.HALF_MISSING: {"classifier"}}

    @pytest.mark.parametrize(
        ("case", "what"),
        [
            ("bert/saved-embedding", "embedding"),
            ("bert/saved-layer-norm", "norm"),
            ("llama/saved-norm", "norm"),
        ],
    )
    def test_what_is_no_linear_layer(self, case: str, what: str) -> None:
        problems = read_adapter(GOLDEN_PEFT / case).problems
        assert {problem.code for problem in problems} == {Code.NO_SLOT}
        assert all(what in problem.cause for problem in problems)
