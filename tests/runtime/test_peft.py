"""PEFT LoRA adapters: bound exactly as PEFT computes them, or refused with every culprit named."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification

from adexport_runtime import AdapterError, Bundle, Code, Engine, bind_into_bundle, load_adapter
from tests.conftest import MakeLora

from .conftest import Refuse
from .support import (
    CONFIG,
    QUERY,
    VALUE,
    WEIGHTS,
    edit_config,
    edit_tensors,
    entry,
    hidden,
    ids,
    names_in,
    raw_safetensors,
    subjects,
)

PREFIX = "base_model.model."

EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 1": {"r": 1},
    "largest rank": {"r": 16},
    "rsLoRA": {"r": 8, "lora_alpha": 3, "use_rslora": True},
    "alpha 0": {"lora_alpha": 0},
    "rank_pattern": {"rank_pattern": {"query": 7, r"layer\.1\..*value": 2}},
    "alpha_pattern": {"alpha_pattern": {"layer.0.attention.self.query": 1, "value": 31}},
    "both patterns and rsLoRA": {
        "rank_pattern": {"key": 9},
        "alpha_pattern": {"key": 5, "^encoder.layer.1.output.dense": 2},
        "use_rslora": True,
        "target_modules": ["key", "output.dense"],
    },
    "one site": {"target_modules": ["encoder.layer.1.attention.self.key"]},
    "a regex": {"target_modules": r".*layer\.0\.(attention\.self\.(query|key)|.*dense)"},
    "layers_to_transform": {"layers_to_transform": [1]},
    "layers_pattern": {"layers_to_transform": 0, "layers_pattern": "layer"},
    "exclude_modules": {"exclude_modules": ["encoder.layer.0.attention.self.query"]},
    "all blocks": {
        "target_modules": ["query", "key", "value", "dense"],
        "exclude_modules": ["pooler.dense"],
    },
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora", "lora_alpha": 3},
    "dropout": {"lora_dropout": 0.5},
}


def peft_output(model: Path, folder: Path, given: np.ndarray) -> np.ndarray:
    """What PEFT computes."""
    base = AutoModel.from_pretrained(model)
    with torch.no_grad():
        output = PeftModel.from_pretrained(base, folder).eval()(input_ids=torch.from_numpy(given))
    return output.last_hidden_state.float().numpy()


@pytest.mark.parametrize("name", EXACT)
def test_equals_peft(tiny_bundle: Path, tiny_bert: Path, make_lora: MakeLora, name: str) -> None:
    folder = make_lora("exact", std=0.2, seed=len(name), **EXACT[name])
    with Engine.open(tiny_bundle) as engine:
        engine.bind("a", folder)
        found = hidden(engine, ids(), "a")
        base = hidden(engine, ids())
    assert np.abs(found - peft_output(tiny_bert, folder, ids())).max() <= 1e-5
    assert (np.abs(found - base).max() > 1e-4) == (name != "alpha 0")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_of_other_dtypes(
    tiny_bundle: Path, tiny_bert: Path, make_lora: MakeLora, dtype: torch.dtype
) -> None:
    folder = make_lora("narrow", dtype=dtype, std=0.2, use_rslora=True)
    with Engine.open(tiny_bundle) as engine:
        engine.bind("a", folder)
        found = hidden(engine, ids(), "a")
    assert np.abs(found - peft_output(tiny_bert, folder, ids())).max() <= 1e-5


def test_without_the_library_prefix(bundle_copy: Path, make_lora: MakeLora) -> None:
    folder = make_lora("bare")
    with Engine.open(bundle_copy) as engine:
        engine.bind("a", folder)
        before = hidden(engine, ids(), "a")

        def strip(tensors: dict[str, np.ndarray]) -> None:
            for key in list(tensors):
                tensors[key.removeprefix(PREFIX)] = tensors.pop(key)

        engine.bind("b", edit_tensors(folder, strip))
        np.testing.assert_array_equal(hidden(engine, ids(), "b"), before)


def test_trained_under_a_head_bound_to_the_bare_base(
    tiny_bundle: Path, tiny_classifier: Path, make_lora: MakeLora, tiny_bert: Path
) -> None:
    """``bert.encoder…`` and ``encoder…`` are the same modules."""
    bare = make_lora("bare", seed=3)
    headed = make_lora("headed", model=tiny_classifier, auto=AutoModelForSequenceClassification, seed=3)
    assert any(".bert.encoder." in name for name in names_in(headed))
    bundle = Bundle.open(tiny_bundle)
    one, other = (load_adapter("a", folder, bundle).tensors for folder in (bare, headed))
    assert one.keys() == other.keys()


def test_trained_bare_bound_under_a_head(
    classifier_bundle: Path, tiny_classifier: Path, make_lora: MakeLora
) -> None:
    bare = make_lora("bare", seed=3, std=0.3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    model.bert = PeftModel.from_pretrained(model.bert, bare).eval()
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.from_numpy(ids())).logits.numpy()
    with Engine.open(classifier_bundle) as engine:
        engine.bind("a", bare)
        found = engine.run({"input_ids": ids()}, "a")["logits"]
        assert np.abs(found - expected).max() <= 1e-5
        assert np.abs(found - engine.run({"input_ids": ids()})["logits"]).max() > 1e-4


def test_the_weights_file_alone(bundle_copy: Path, make_lora: MakeLora) -> None:
    folder = make_lora("alone")
    bundle = Bundle.open(bundle_copy)
    by_folder = bind_into_bundle(bundle, folder, "folder")
    by_file = bind_into_bundle(bundle, folder / WEIGHTS, "file")
    assert bind_into_bundle(bundle, folder / WEIGHTS).name == "alone"
    for key, tensor in by_folder.tensors.items():
        np.testing.assert_array_equal(by_file.tensors[key], tensor)


def test_narrow_bundles_hold_the_rounded_values(
    fp16_bundle: Path, tiny_bert: Path, make_lora: MakeLora
) -> None:
    folder = make_lora("half", std=0.1)
    with Engine.open(fp16_bundle) as engine:
        engine.bind("a", folder)
        found = hidden(engine, ids(), "a")
    assert found.dtype == np.float32
    assert np.abs(found - peft_output(tiny_bert, folder, ids())).max() <= 5e-3 * 4


class TestRefused:
    """Each also proves that what was bound before still serves, and that no file changed."""

    def test_half_of_the_tensors_missing(self, make_lora: MakeLora, refuse: Refuse) -> None:
        def drop(tensors: dict[str, np.ndarray]) -> None:
            for key in [key for key in tensors if "lora_B" in key]:
                del tensors[key]

        refuse(
            edit_tensors(make_lora(), drop),
            {Code.HALF_MISSING: {form.format(n) for form in (QUERY, VALUE) for n in (0, 1)}},
        )

    def test_sites_that_the_config_claims_are_lost(self, make_lora: MakeLora, refuse: Refuse) -> None:
        def drop(tensors: dict[str, np.ndarray]) -> None:
            for key in [key for key in tensors if "layer.1" in key]:
                del tensors[key]

        refuse(edit_tensors(make_lora(), drop), {Code.SITE_MISSING: {QUERY.format(1), VALUE.format(1)}})

    def test_tensors_that_no_slot_takes(self, make_lora: MakeLora, refuse: Refuse) -> None:
        def add(tensors: dict[str, np.ndarray]) -> None:
            tensors[PREFIX + "encoder.layer.0.strange.weight"] = np.ones(3, np.float32)
            tensors[PREFIX + "encoder.layer.7.attention.self.query.lora_A.weight"] = np.ones(
                (4, 32), np.float32
            )
            tensors[PREFIX + "encoder.layer.7.attention.self.query.lora_B.weight"] = np.ones(
                (32, 4), np.float32
            )
            tensors[PREFIX + "classifier.weight"] = np.ones((2, 32), np.float32)

        lora = PREFIX + "encoder.layer.7.attention.self.query.lora_{}.weight"
        refuse(
            edit_tensors(make_lora(), add),
            {
                Code.UNKNOWN_TENSOR: {
                    PREFIX + "encoder.layer.0.strange.weight",
                    PREFIX + "classifier.weight",
                },
                Code.UNKNOWN_SITE: {f"{lora.format('A')} and {lora.format('B')}"},
            },
        )

    def test_a_site_without_a_slot(self, narrow_bundle: Path, make_lora: MakeLora) -> None:
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", make_lora(r=2), Bundle.open(narrow_bundle))
        assert subjects(caught.value, Code.UNKNOWN_SITE) == {VALUE.format(0), VALUE.format(1)}
        assert "--targets" in str(caught.value)

    def test_wrong_shapes(self, make_lora: MakeLora, refuse: Refuse) -> None:
        a = PREFIX + QUERY.format(0) + ".lora_A.weight"
        b = PREFIX + VALUE.format(1) + ".lora_B.weight"

        def cut(tensors: dict[str, np.ndarray]) -> None:
            tensors[a] = np.ascontiguousarray(tensors[a][:, :31])
            tensors[b] = np.ascontiguousarray(tensors[b][:, :, None])

        refuse(edit_tensors(make_lora(), cut), {Code.WRONG_SHAPE: {a, b}})

    def test_halves_of_different_ranks(self, make_lora: MakeLora, refuse: Refuse) -> None:
        b = PREFIX + QUERY.format(1) + ".lora_B.weight"

        def cut(tensors: dict[str, np.ndarray]) -> None:
            tensors[b] = np.ascontiguousarray(tensors[b][:, :3])

        refuse(edit_tensors(make_lora(), cut), {Code.RANK_MISMATCH: {QUERY.format(1)}})

    def test_the_config_has_another_rank(self, make_lora: MakeLora, refuse: Refuse) -> None:
        refuse(
            edit_config(make_lora(), r=5),
            {Code.RANK_MISMATCH: {form.format(n) for form in (QUERY, VALUE) for n in (0, 1)}},
        )

    def test_rank_above_the_maximum(self, make_lora: MakeLora, refuse: Refuse) -> None:
        error = refuse(
            make_lora(r=4, rank_pattern={"query": 17}),
            {Code.RANK_ABOVE_MAX: {QUERY.format(0), QUERY.format(1)}},
        )
        assert "rank 17" in str(error)
        assert "at most 16" in str(error)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, make_lora: MakeLora, refuse: Refuse, value: float) -> None:
        keys = {PREFIX + QUERY.format(0) + ".lora_A.weight", PREFIX + VALUE.format(1) + ".lora_B.weight"}

        def spoil(tensors: dict[str, np.ndarray]) -> None:
            for key in keys:
                tensors[key][1, 2] = value

        refuse(edit_tensors(make_lora(), spoil), {Code.NOT_FINITE: keys})

    def test_scaling_that_overflows_float32(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = edit_config(make_lora(), lora_alpha=1e42, alpha_pattern={"value": 8})
        keys = {PREFIX + QUERY.format(n) + ".lora_B.weight" for n in (0, 1)}
        refuse(folder, {Code.NOT_FINITE: keys})

    def test_overflow_of_the_bundles_precision(self, fp16_bundle: Path, make_lora: MakeLora) -> None:
        folder = make_lora(lora_alpha=4e6, std=1.0)
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", folder, Bundle.open(fp16_bundle))
        expected = {PREFIX + f.format(n) + ".lora_B.weight" for f in (QUERY, VALUE) for n in (0, 1)}
        assert subjects(caught.value, Code.OVERFLOW) == expected
        assert "65504" in str(caught.value)

    def test_truncated(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])
        refuse(folder, {Code.DAMAGED: {str(path)}})

    def test_zip_and_pickle(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        path = folder / WEIGHTS
        torch.save({"x": torch.ones(2)}, path)
        refuse(folder, {Code.NOT_SAFETENSORS: {str(path)}})
        path.write_bytes(pickle.dumps({"x": 1}))
        refuse(folder, {Code.NOT_SAFETENSORS: {str(path)}})

    def test_only_a_bin(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        (folder / WEIGHTS).rename(folder / "adapter_model.bin")
        refuse(folder, {Code.NOT_SAFETENSORS: {"adapter_model.bin"}})

    def test_duplicate_keys(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        config = folder / CONFIG
        config.write_text(config.read_text().replace('"r": 4', '"r": 4, "r": 8'))
        refuse(folder, {Code.DUPLICATE_KEY: {"key r"}})

    def test_duplicate_tensors(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        header = (
            json.dumps({"x": entry("F32", [1], 0, 4)})[:-1]
            + ', "x": '
            + json.dumps(entry("F32", [1], 0, 4))
            + "}"
        )
        (folder / WEIGHTS).write_bytes(raw_safetensors(header.encode(), b"\0" * 4))
        refuse(folder, {Code.DUPLICATE_KEY: {"header key x"}})

    def test_the_same_module_with_and_without_the_prefix(self, make_lora: MakeLora, refuse: Refuse) -> None:
        key = PREFIX + QUERY.format(0) + ".lora_A.weight"

        def add(tensors: dict[str, np.ndarray]) -> None:
            tensors[key.removeprefix(PREFIX)] = tensors[key].copy()

        refuse(edit_tensors(make_lora(), add), {Code.DUPLICATE_KEY: {key.removeprefix(PREFIX)}})

    def test_zero_size_tensors(self, make_lora: MakeLora, refuse: Refuse) -> None:
        key = PREFIX + QUERY.format(0) + ".lora_A.weight"

        def empty(tensors: dict[str, np.ndarray]) -> None:
            tensors[key] = np.zeros((0, 32), np.float32)

        refuse(edit_tensors(make_lora(), empty), {Code.EMPTY_TENSOR: {key}})

    def test_path_like_tensor_names(self, make_lora: MakeLora, refuse: Refuse) -> None:
        def add(tensors: dict[str, np.ndarray]) -> None:
            tensors["../../etc/passwd"] = np.ones(1, np.float32)

        refuse(edit_tensors(make_lora(), add), {Code.BAD_NAME: {"tensor '../../etc/passwd'"}})

    @pytest.mark.parametrize(
        "settings",
        [{"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_factors_that_the_slots_do_not_have(
        self, make_lora: MakeLora, tiny_bundle: Path, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", make_lora(**settings), Bundle.open(tiny_bundle))
        sites = {form.format(n) for form in (QUERY, VALUE) for n in (0, 1)}
        assert subjects(caught.value, Code.NO_SLOT) == sites
        assert "--slots" in str(caught.value)

    @pytest.mark.parametrize(
        "config",
        [
            {"trainable_token_indices": [1]},
            {"target_parameters": ["x"]},
            {"alora_invocation_tokens": [1]},
            {"layer_replication": [[0, 2]]},
            {"use_qalora": True},
            {"arrow_config": {"x": 1}},
            {"a_key_of_tomorrow": 3},
        ],
        ids=lambda config: next(iter(config)),
    )
    def test_config_keys(self, make_lora: MakeLora, refuse: Refuse, config: dict[str, Any]) -> None:
        refuse(edit_config(make_lora(), **config), {Code.UNSUPPORTED: set(config)})

    def test_unknown_keys_that_say_nothing(self, make_lora: MakeLora, tiny_bundle: Path) -> None:
        folder = edit_config(make_lora(), a_key_of_tomorrow=None, another={}, third=False)
        load_adapter("a", folder, Bundle.open(tiny_bundle))

    @pytest.mark.parametrize(
        ("config", "culprit"),
        [
            ({"r": "four"}, "r"),
            ({"r": 0}, "r"),
            ({"lora_alpha": None}, "lora_alpha"),
            ({"lora_alpha": "NaN"}, "lora_alpha"),
            ({"rank_pattern": {"(": 3}}, "rank_pattern '('"),
            ({"target_modules": "("}, "target_modules '('"),
            ({"use_bdlora": {"tomorrow": 1}}, "use_bdlora.tomorrow"),
        ],
    )
    def test_bad_values(
        self, make_lora: MakeLora, tiny_bundle: Path, config: dict[str, Any], culprit: str
    ) -> None:
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", edit_config(make_lora(), **config), Bundle.open(tiny_bundle))
        assert culprit in subjects(caught.value, Code.BAD_CONFIG)

    def test_a_head_saved_with_the_adapter(
        self, classifier_bundle: Path, tiny_classifier: Path, make_lora: MakeLora
    ) -> None:
        folder = make_lora(
            model=tiny_classifier, auto=AutoModelForSequenceClassification, task_type="SEQ_CLS"
        )
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", folder, Bundle.open(classifier_bundle))
        names = f"{PREFIX}classifier.bias, {PREFIX}classifier.weight"
        assert subjects(caught.value, Code.NO_SLOT) == {names}

    @pytest.mark.parametrize(
        "config",
        [
            peft.C3AConfig(target_modules=["key"], block_size=8),
            peft.OFTConfig(target_modules=["key"], oft_block_size=4),
            peft.PromptTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
        ],
        ids=lambda config: config.peft_type.value,
    )
    def test_other_methods(
        self, tiny_bert: Path, tmp_path: Path, tiny_bundle: Path, config: peft.PeftConfig
    ) -> None:
        get_peft_model(AutoModel.from_pretrained(tiny_bert), config).save_pretrained(str(tmp_path / "x"))
        with pytest.raises(AdapterError) as caught:
            load_adapter("a", tmp_path / "x", Bundle.open(tiny_bundle))
        assert subjects(caught.value, Code.UNSUPPORTED) == {"peft_type"}
        assert config.peft_type.value in str(caught.value)

    def test_everything_wrong_is_named_at_once(self, make_lora: MakeLora, refuse: Refuse) -> None:
        a = PREFIX + QUERY.format(0) + ".lora_A.weight"
        b = PREFIX + QUERY.format(1) + ".lora_B.weight"

        def spoil(tensors: dict[str, np.ndarray]) -> None:
            tensors[a][0, 0] = np.nan
            del tensors[b]
            tensors["strange"] = np.ones(1, np.float32)

        folder = edit_config(edit_tensors(make_lora(), spoil), use_qalora=True)
        refuse(
            folder,
            {
                Code.NOT_FINITE: {a},
                Code.HALF_MISSING: {QUERY.format(1)},
                Code.UNKNOWN_TENSOR: {"strange"},
                Code.UNSUPPORTED: {"use_qalora"},
            },
        )

    def test_no_config(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        (folder / CONFIG).unlink()
        refuse(folder, {Code.ABSENT: {str(folder / CONFIG)}})
        refuse(folder / WEIGHTS, {Code.ABSENT: {str(folder / CONFIG)}})

    def test_no_weights(self, make_lora: MakeLora, refuse: Refuse) -> None:
        folder = make_lora()
        (folder / WEIGHTS).unlink()
        refuse(folder, {Code.ABSENT: {str(folder / WEIGHTS)}})

    def test_nothing(self, tmp_path: Path, refuse: Refuse) -> None:
        refuse(tmp_path / "nothing", {Code.ABSENT: {str(tmp_path / "nothing")}})

    def test_a_bundle_is_no_adapter(self, tiny_bundle: Path, refuse: Refuse) -> None:
        refuse(tiny_bundle, {Code.ABSENT: {str(tiny_bundle / CONFIG)}})


def test_another_base_of_equal_shapes(other_bundle: Path, bundle_copy: Path, make_lora: MakeLora) -> None:
    """A PEFT folder does not say its base; a bound file does."""
    shutil.copytree(other_bundle, bundle_copy.parent / "other.bundle")
    other = Bundle.open(bundle_copy.parent / "other.bundle")
    bind_into_bundle(other, make_lora("acme"), "acme")
    with Engine.open(bundle_copy) as engine:
        with pytest.raises(AdapterError) as caught:
            engine.bind("acme", other.adapter_path("acme"))
        assert caught.value.codes == {Code.WRONG_BASE}
    moved = Bundle.open(bundle_copy).adapter_path("acme")
    moved.parent.mkdir(exist_ok=True)
    shutil.copy(other.adapter_path("acme"), moved)
    with Engine.open(bundle_copy) as engine, pytest.raises(AdapterError) as caught:
        engine.run({"input_ids": ids()}, "acme")
    assert caught.value.codes == {Code.WRONG_BASE}
