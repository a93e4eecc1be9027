"""Families of models, tiny and random.

A build checks itself against torch with adapters of every kind in hooks, so it only succeeds when base
rows, mixed rows, ragged rows, one row and one token are equal. PEFT then has the last word on LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from adexport.architectures import architecture_of
from adexport.architectures.decoder import Decoder, Gemma
from adexport.architectures.roberta import Roberta
from adexport.build import build_model
from adexport.model import load_model
from adexport.options import BuildOptions
from adexport_runtime import AdapterError, BuildError, Code, Engine
from adexport_runtime.slots import OwnHead
from adexport_runtime.tensors import Array

from .conftest import BuiltOf
from .families import BARE, CAUSAL, FAMILIES, HEADS, IMAGE, TEXT, TOKEN, Built, torch_model

#: what each family is built for besides classification
BASES = [
    (name, task)
    for name, family in FAMILIES.items()
    for task in ((BARE, CAUSAL) if family.decoder else (BARE,))
]
CLASSIFIERS = [*HEADS, ("ModernBert", TEXT)]

TOKENS = (7, 2, 9, 1, 4, 9)
ROWS = (None, "one", "two", "one", None, "two")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [*BASES, *CLASSIFIERS])
def test_every_slot_everywhere_is_exact(name: str, task: str, built_of: BuiltOf) -> None:
    family, built = FAMILIES[name], built_of(name, task)
    result, manifest = built.result, built.result.bundle.manifest
    assert manifest.base.task == task
    assert max(result.differences.values()) <= 5e-6
    layers = [
        path
        for path, module in torch_model(built).named_modules()
        if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D) and "pos_" not in path
    ]
    assert sorted(site.path for site in manifest.sites) == sorted(layers)
    assert len(manifest.bottlenecks.sites if manifest.bottlenecks else ()) == family.bottlenecks
    opaque = family.opaque or manifest.generation is not None
    assert (manifest.generation is not None) == (task == CAUSAL)
    assert any("traced in full" in note for note in result.notes) != opaque
    assert not any("no addition follows" in note for note in result.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), BASES)
def test_mixed_rows_equal_peft(name: str, task: str, built_of: BuiltOf, tmp_path: Path) -> None:
    """Padding is on the right; what stands there is nobody's."""
    built = built_of(name, task)
    folders = {adapter: lora(built, tmp_path, adapter, rank) for adapter, rank in (("one", 3), ("two", 8))}
    feeds = ragged(built)
    expected = mixed_in_peft(torch_model(built), folders, feeds)
    with Engine.open(built.result.bundle.root, threads=1) as engine:
        for adapter, folder in folders.items():
            engine.bind(adapter, folder)
        mixed = engine.run(feeds, ROWS)
        base = engine.run(feeds)
    assert {"logits"} == set(mixed) if task == CAUSAL else "last_hidden_state" in mixed
    for output, values in mixed.items():
        for row, adapter in enumerate(ROWS):
            kept = real(feeds, row) if values.ndim == 3 else slice(None)
            scale = max(1.0, float(np.abs(expected[output][row]).max()))
            assert np.abs(values[row][kept] - expected[output][row][kept]).max() <= 1e-5 * scale
            moved = np.abs(values[row][kept] - base[output][row][kept]).max()
            assert moved > 1e-3 if adapter else moved <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), HEADS)
def test_heads_of_the_rows_own_equal_peft(name: str, task: str, built_of: BuiltOf, tmp_path: Path) -> None:
    """One adapter brings a head of five labels, one takes the base's of three."""
    built = built_of(name, task)
    own = built.result.bundle.manifest.head.own
    saved = [path for path in (own.dense, own.out) if path]
    folders = {
        "one": lora(built, tmp_path, "one", 3, labels=5, modules_to_save=saved),
        "two": lora(built, tmp_path, "two", 8),
    }
    feeds = ragged(built)
    alone = {
        None: torch_model(built),
        "one": PeftModel.from_pretrained(torch_model(built, num_labels=5), folders["one"]).eval(),
        "two": PeftModel.from_pretrained(torch_model(built), folders["two"]).eval(),
    }
    with torch.no_grad():
        tensors = {key: torch.from_numpy(value) for key, value in feeds.items()}
        expected = {adapter: model(**tensors).logits.numpy() for adapter, model in alone.items()}
    with Engine.open(built.result.bundle.root, threads=1) as engine:
        for adapter, folder in folders.items():
            engine.bind(adapter, folder)
        outputs = engine.run(feeds, ROWS)
    for row, adapter in enumerate(ROWS):
        kept = real(feeds, row) if task == TOKEN else slice(None)
        got, wanted = outputs.row(row)["logits"][kept], expected[adapter][row][kept]
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, float(np.abs(wanted).max()))
        if adapter is None:
            assert np.abs(got - expected["two"][row][kept]).max() > 1e-3


#: how the heads of the families read, as their code in transformers says
OWN_HEADS: dict[tuple[str, str], OwnHead | None] = {
    ("Bert", TEXT): OwnHead(feature="pooler", out="classifier"),
    ("Albert", TEXT): OwnHead(feature="pooler", out="classifier"),
    ("Roberta", TEXT): OwnHead(
        feature="first", dense="classifier.dense", activation="tanh", out="classifier.out_proj"
    ),
    ("Electra", TEXT): OwnHead(
        feature="first", dense="classifier.dense", activation="gelu", out="classifier.out_proj"
    ),
    ("DistilBert", TEXT): OwnHead(
        feature="first", dense="pre_classifier", activation="relu", out="classifier"
    ),
    ("DebertaV2", TEXT): OwnHead(
        feature="first", dense="pooler.dense", activation="gelu", out="classifier"
    ),
    ("ViT", IMAGE): OwnHead(feature="first", out="classifier"),
    ("MPNet", TEXT): None,
    ("ModernBert", TEXT): None,
    ("ModernBert", TOKEN): None,
    **{
        (name, TEXT): OwnHead(feature="last", out="score", biased=False)
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Phi3", "GPT2")
    },
    **{
        (name, TOKEN): OwnHead(feature="tokens", out="classifier")
        for name in ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Albert", "Electra", "DebertaV2")
    },
    **{(name, TOKEN): OwnHead(feature="tokens", out="classifier") for name in ("MPNet", "GPT2", "T5")},
    **{(name, TOKEN): OwnHead(feature="tokens", out="score") for name in ("Llama", "Qwen2", "Phi3")},
}


@pytest.mark.parametrize(("name", "task"), OWN_HEADS)
def test_own_heads(name: str, task: str, tmp_path: Path) -> None:
    """Whatever a rule says, torch must show it."""
    loaded = load_model(str(FAMILIES[name].save(task, tmp_path)))
    assert loaded.own_head == OWN_HEADS[name, task]


@pytest.mark.parametrize("wrong", ["activation", "feature", "layer", "kind"])
def test_a_head_that_reads_otherwise_is_no_head_slot(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnHead(feature="first", dense="classifier.dense", activation="tanh", out="classifier.out_proj")
    other: dict[str, dict[str, Any]] = {
        "activation": {"activation": "gelu"},
        "feature": {"feature": "last"},
        "layer": {"dense": "roberta.encoder.layer.0.attention.output.dense"},
        "kind": {"out": "classifier"},
    }
    folder = FAMILIES["Roberta"].save(TEXT, tmp_path)
    assert load_model(str(folder)).own_head == own
    monkeypatch.setattr(Roberta, "own_head", lambda *_: own.model_copy(update=other[wrong]))
    assert load_model(str(folder)).own_head is None


def test_a_head_in_the_config_s_own_way(tmp_path: Path) -> None:
    """DeBERTa's config names the activation of its pooler."""
    for activation, known in (("tanh", True), ("sigmoid", False)):
        folder = FAMILIES["DebertaV2"].save(TEXT, tmp_path / activation, pooler_hidden_act=activation)
        own = load_model(str(folder)).own_head
        assert (own.activation if own else None) == (activation if known else None)


@pytest.mark.slow
def test_heads_for_a_base_without_one(tmp_path: Path) -> None:
    """A head that comes with an adapter reads every token where the task is about tokens."""
    folder = FAMILIES["ModernBert"].save(BARE, tmp_path / "model")
    options = BuildOptions(slots=("lora", "head"))
    manifest = build_model(str(folder), tmp_path / "b", task=TOKEN, options=options).bundle.manifest
    assert manifest.head.inputs == ("tokens",)
    assert manifest.head.own is None
    assert manifest.base.labels == ()


@pytest.mark.slow
def test_a_part_of_a_head_of_another_kind_is_refused(tmp_path: Path, built_of: BuiltOf) -> None:
    """Behind ModernBERT's classifier stands a norm: its base keeps its head, an adapter cannot part it."""
    built = built_of("ModernBert", TEXT)
    folder = lora(built, tmp_path, "one", 3, modules_to_save=["classifier"])
    with Engine.open(built.result.bundle.root, threads=1) as engine, pytest.raises(AdapterError) as caught:
        engine.bind("one", folder)
    assert {problem.code for problem in caught.value.problems} == {Code.NO_SLOT}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gemma2", "Gemma3", "MPNet"])
def test_a_family_without_a_rule_has_no_bottlenecks(name: str, tmp_path: Path) -> None:
    folder = FAMILIES[name].save(BARE, tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(BuildError) as caught:
        build_model(str(folder), tmp_path / "b", options=BuildOptions(slots=("lora", "bottleneck")))
    (problem,) = caught.value.problems
    assert problem.code == Code.UNSUPPORTED
    assert "BottleneckRule" in problem.mend
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_bottleneck_has_no_place_where_the_rule_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2 norms what it adds: Llama's rule finds no addition behind the layer."""
    monkeypatch.setattr(Gemma, "bottlenecks", Decoder.bottlenecks)
    folder = FAMILIES["Gemma2"].save(BARE, tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(BuildError) as caught:
        build_model(str(folder), tmp_path / "b", options=BuildOptions(slots=("bottleneck",)))
    assert caught.value.codes == {Code.UNSUPPORTED}


REFUSED: dict[str, tuple[type, dict[str, Any], str, str]] = {
    "dynamic": (
        transformers.LlamaModel,
        {**FAMILIES["Llama"].settings, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_parameters",
        "dynamic",
    ),
    "encoder-decoder": (
        transformers.T5ForSequenceClassification,
        FAMILIES["T5"].settings,
        "T5ForSequenceClassification",
        "an encoder with a decoder",
    ),
    "no padding id": (
        transformers.LlamaForSequenceClassification,
        {**FAMILIES["Llama"].settings, "pad_token_id": None},
        "pad_token_id",
        "none",
    ),
    "sound": (
        transformers.Wav2Vec2Model,
        {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "conv_dim": (8, 8),
            "conv_stride": (2, 2),
            "conv_kernel": (3, 3),
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        "Wav2Vec2Model",
        "input_values",
    ),
    "two models": (
        transformers.VisionTextDualEncoderModel,
        {
            "text_config": transformers.BertConfig(**FAMILIES["Bert"].settings).to_dict(),
            "vision_config": transformers.ViTConfig(**FAMILIES["ViT"].settings).to_dict(),
        },
        "VisionTextDualEncoderModel",
        "several models",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_bundle_can_hold_is_refused(what: str, tmp_path: Path) -> None:
    kind, settings, subject, got = REFUSED[what]
    kind(kind.config_class(**settings)).save_pretrained(tmp_path / "model")
    with pytest.raises(BuildError) as caught:
        build_model(str(tmp_path / "model"), tmp_path / "b")
    problem = next(problem for problem in caught.value.problems if got in problem.got)
    assert problem.subject == subject
    assert not (tmp_path / "b").exists()


def test_roberta_positions() -> None:
    assert architecture_of(transformers.RobertaConfig(max_position_embeddings=40)).max_positions == 38
    assert architecture_of(transformers.BertConfig(max_position_embeddings=40)).max_positions == 40


@pytest.mark.slow
def test_deberta_says_where_no_slot_can_be(tmp_path: Path) -> None:
    """With shared position projections, query and key run on position rows too: no row is a tenant's."""
    folder = FAMILIES["DebertaV2"].save(BARE, tmp_path / "model", share_att_key=True)
    result = build_model(str(folder), tmp_path / "bundle")
    paths = [site.path for site in result.bundle.manifest.sites]
    assert "encoder.layer.0.attention.self.value_proj" in paths
    assert "encoder.layer.0.attention.self.key_proj" not in paths
    assert any("key_proj" in note for note in result.notes)


def lora(
    built: Built, folder: Path, name: str, rank: int, labels: int | None = None, **settings: Any
) -> Path:
    """A random LoRA adapter on all linear layers that PEFT finds, DeBERTa's position rows but for."""
    model = torch_model(built, **({"num_labels": labels} if labels else {}))
    targets = "all-linear" if "deberta" not in model.config.model_type else ["query_proj", "dense"]
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=5, target_modules=targets, **settings))
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for key, weight in peft.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    peft.save_pretrained(str(folder / name))
    return folder / name


def ragged(built: Built) -> dict[str, Array]:
    """Rows of several lengths with the padding id behind them, or images."""
    random = np.random.default_rng(0)
    manifest = built.result.bundle.manifest
    if manifest.inputs[0].name == "pixel_values":
        return {"pixel_values": random.normal(size=(len(ROWS), 3, 12, 12)).astype(np.float32)}
    pad = transformers.AutoConfig.from_pretrained(built.model).pad_token_id or 0
    inside = np.arange(max(TOKENS))[None, :] < np.array(TOKENS)[:, None]
    ids = np.where(inside, random.integers(3, 97, inside.shape), pad)
    return {"input_ids": ids, "attention_mask": inside.astype(np.int64)}


def real(feeds: Mapping[str, Array], row: int) -> slice:
    return slice(TOKENS[row]) if "attention_mask" in feeds else slice(None)


def mixed_in_peft(model: Any, folders: Mapping[str, Path], feeds: Mapping[str, Array]) -> dict[str, Array]:
    (first, folder), *others = folders.items()
    peft = PeftModel.from_pretrained(model, folder, adapter_name=first)
    for name, folder in others:
        peft.load_adapter(folder, adapter_name=name)
    peft.eval()
    names = ["__base__" if name is None else name for name in ROWS]
    with torch.no_grad():
        result = peft(**{key: torch.from_numpy(v) for key, v in feeds.items()}, adapter_names=names)
    return {key: value.numpy() for key, value in result.items() if isinstance(value, torch.Tensor)}
