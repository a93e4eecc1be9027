"""Prediction heads of AdapterHub: read whole, or refused; never ignored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adexport_runtime.adapters import HeadWeights, read_adapter
from adexport_runtime.errors import Code

from .adapterhub_files import (
    FAST,
    FEATURES,
    HEAD_WEIGHTS,
    JSON,
    KEYS,
    NAME,
    WEIGHTS,
    at,
    culprits,
    document,
    edit,
    problems,
    randoms,
    read,
    seq_bn,
    tensors_of,
)
from .spoiled_headers import WRONG_TYPES

CONFIG = "head_config.json"
#: ``ClassificationHead(num_labels=3)``
CLASSIFICATION: dict[str, Any] = {
    "activation_function": "tanh",
    "bias": True,
    "dropout_prob": None,
    "head_type": "classification",
    "label2id": {"bad": 0, "good": 2, "fair": 1},
    "layers": 2,
    "num_labels": 3,
    "use_pooler": False,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "1.weight": (FEATURES, FEATURES),
    "1.bias": (FEATURES,),
    "4.weight": (3, FEATURES),
    "4.bias": (3,),
}


def headed(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    top: Mapping[str, Any] | None = None,
    model_type: str = "bert",
    **config: Any,
) -> Path:
    """An adapter with a head; None removes a key of the head's config."""
    if model_type == "bert":
        seq_bn(folder)
    else:
        at(folder, {KEYS[model_type][1].format(0): 4}, {"model_type": model_type})
    settings = {key: value for key, value in {**CLASSIFICATION, **config}.items() if value is not ...}
    whole = document(settings, model_type=model_type) | dict(top or {})
    (folder / CONFIG).write_text(json.dumps(whole))
    save_file(randoms({f"heads.{NAME}.{k}": v for k, v in shapes.items()}, 1), folder / HEAD_WEIGHTS)
    return folder


def head_of(folder: Path) -> HeadWeights:
    head = read(folder).head
    assert head is not None
    return head


def one(labels: int = 3) -> dict[str, tuple[int, ...]]:
    return {"1.weight": (labels, FEATURES), "1.bias": (labels,)}


def test_two_layers(tmp_path: Path) -> None:
    folder = headed(tmp_path / "a")
    head, tensors = head_of(folder), tensors_of(folder, HEAD_WEIGHTS)
    assert head.style.model_dump() == {
        "feature": "first",
        "activation": "tanh",
        "labels": ("bad", "fair", "good"),
    }
    linear = [torch.nn.Linear(FEATURES, out) for out in (FEATURES, 3)]
    for layer, position in zip(linear, (1, 4), strict=True):
        layer.load_state_dict(
            {
                half: torch.from_numpy(tensors[f"heads.{NAME}.{position}.{half}"])
                for half in ("weight", "bias")
            }
        )
    # as the library builds it
    library = torch.nn.Sequential(
        torch.nn.Dropout(), linear[0], torch.nn.Tanh(), torch.nn.Dropout(), linear[1]
    )
    x = np.random.default_rng(2).standard_normal((5, FEATURES), np.float32)
    f = head.factors
    found = np.tanh(x @ f["dense"] + f["dense_bias"]) @ f["deep"] + f["out_bias"]
    with torch.no_grad():
        expected = library.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_layer(tmp_path: Path) -> None:
    folder = headed(tmp_path / "a", one(), layers=1)
    head, tensors = head_of(folder), tensors_of(folder, HEAD_WEIGHTS)
    assert head.style.activation is None
    assert set(head.factors) == {"out", "out_bias"}
    np.testing.assert_array_equal(head.factors["out"], tensors[f"heads.{NAME}.1.weight"].T)


@pytest.mark.parametrize("activation", [None, ""])
def test_without_an_activation_positions_move(tmp_path: Path, activation: str | None) -> None:
    shapes = {name.replace("4.", "3."): shape for name, shape in SHAPES.items()}
    head = head_of(headed(tmp_path / "a", shapes, activation_function=activation))
    assert head.style.activation == "linear"
    assert head.names["deep"] == f"heads.{NAME}.3.weight"


def test_without_a_bias(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if name != "4.bias"}
    factors = head_of(headed(tmp_path / "a", shapes, bias=False)).factors
    np.testing.assert_array_equal(factors["out_bias"], np.zeros(3, np.float32))
    assert factors["dense_bias"].any()
    assert culprits(headed(tmp_path / "b", shapes)) == {(Code.HALF_MISSING, f"heads.{NAME}")}


@pytest.mark.parametrize(
    ("model_type", "config", "feature"),
    [
        ("bert", {}, "first"),
        ("bert", {"use_pooler": True}, "pooler"),
        ("bert", {"head_type": "multilabel_classification"}, "first"),
        ("bert", {"head_type": "tagging"}, "tokens"),
        ("distilbert", {}, "first"),
        ("vit", {"head_type": "image_classification", "multilabel": True}, "first"),
        ("llama", {}, "last"),
        ("mistral", {}, "last"),
        ("gpt2", {"head_type": "multilabel_classification"}, "last"),
        # the library hands the last token in, and does not look at use_pooler
        ("gpt2", {"use_pooler": True}, "last"),
        ("llama", {"head_type": "tagging"}, "tokens"),
    ],
    ids=str,
)
def test_what_it_reads(tmp_path: Path, model_type: str, config: dict[str, Any], feature: str) -> None:
    assert head_of(headed(tmp_path / "a", model_type=model_type, **config)).style.feature == feature


def test_question_answering(tmp_path: Path) -> None:
    config = {"head_type": "question_answering", "num_labels": 2, "layers": 1, "label2id": None}
    folder = headed(tmp_path / "a", one(2), bias=..., use_pooler=..., **config)
    assert head_of(folder).style.feature == "tokens"
    assert head_of(folder).style.labels == ("start", "end")
    wide = headed(tmp_path / "b", one(3), **{**config, "num_labels": 3})
    assert culprits(wide) == {(Code.UNSUPPORTED, "num_labels")}


def test_a_label_with_a_nul(tmp_path: Path) -> None:
    folder = headed(tmp_path / "a", label2id={"bad": 0, "f\0ir": 1, "good": 2})
    assert culprits(folder) == {(Code.BAD_CONFIG, "label2id")}
    assert r"f\x00ir" in problems(folder)[0].got


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_headers_with_values_of_other_types(tmp_path: Path, name: str) -> None:
    folder = headed(tmp_path / "a")
    (folder / HEAD_WEIGHTS).write_bytes(WRONG_TYPES[name])
    assert culprits(folder) == {(Code.DAMAGED, str(folder / HEAD_WEIGHTS))}


def test_no_names_of_labels(tmp_path: Path) -> None:
    assert head_of(headed(tmp_path / "a", label2id=None)).style.labels == ()


@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 1], [1, 2, 3], [0, 1, 2, 3], []], ids=str)
def test_labels_that_are_not_the_rows(tmp_path: Path, ids: list[int]) -> None:
    folder = headed(tmp_path / "a", label2id={str(index): id_ for index, id_ in enumerate(ids)})
    assert culprits(folder) == {(Code.BAD_CONFIG, "label2id")}


def test_the_hash_is_of_both_files(tmp_path: Path) -> None:
    folder = headed(tmp_path / "a")
    digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in (WEIGHTS, HEAD_WEIGHTS)]
    assert read(folder).sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    bare = read(seq_bn(tmp_path / "b"))
    assert bare.sha256 == digests[0].hex()


def test_by_the_weights_file_too(tmp_path: Path) -> None:
    assert read(headed(tmp_path / "a") / WEIGHTS).head is not None


class TestRefused:
    @pytest.mark.parametrize(
        ("config", "key"),
        [
            ({"head_type": "multiple_choice"}, "head_type"),
            ({"head_type": "masked_lm"}, "head_type"),
            ({"head_type": "causal_lm"}, "head_type"),
            ({"head_type": "seq2seq_lm"}, "head_type"),
            ({"head_type": "dependency_parsing"}, "head_type"),
            ({"head_type": "of tomorrow"}, "head_type"),
            ({"layers": 3}, "layers"),
            ({"activation_function": "mish"}, "activation_function"),
            ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
        ],
        ids=str,
    )
    def test_settings_that_no_slot_carries(self, tmp_path: Path, config: dict[str, Any], key: str) -> None:
        folder = headed(tmp_path / "a", **config)
        assert culprits(folder) == {(Code.UNSUPPORTED, key)}
        assert read_adapter(folder).head is None

    @pytest.mark.parametrize("model_type", ["electra", "distilbert", "deberta-v2"])
    def test_a_pooler_that_the_library_does_not_hand_in(self, tmp_path: Path, model_type: str) -> None:
        folder = headed(tmp_path / "a", model_type=model_type, use_pooler=True)
        assert culprits(folder) == {(Code.UNSUPPORTED, "use_pooler")}

    @pytest.mark.parametrize("model_type", ["t5", "bart"])
    def test_what_reads_the_end_of_a_decoder(self, tmp_path: Path, model_type: str) -> None:
        assert culprits(headed(tmp_path / "a", model_type=model_type)) == {(Code.UNSUPPORTED, "head_type")}

    def test_the_head_of_a_transformers_class(self, tmp_path: Path) -> None:
        top = {"config": None, "name": None, "model_class": "BertForSequenceClassification"}
        folder = headed(tmp_path / "a", top=top)
        assert culprits(folder) == {(Code.UNSUPPORTED, "head_config.json: config")}
        assert "BertForSequenceClassification" in problems(folder)[0].cause

    def test_a_head_of_another_model(self, tmp_path: Path) -> None:
        folder = headed(tmp_path / "a", top={"model_type": "roberta"})
        assert culprits(folder) == {(Code.BAD_CONFIG, "head_config.json: model_type")}

    @pytest.mark.parametrize(
        ("absent", "named"),
        [(CONFIG, HEAD_WEIGHTS), (HEAD_WEIGHTS, CONFIG)],
        ids=["no config", "no tensors"],
    )
    def test_half_of_a_head(self, tmp_path: Path, absent: str, named: str) -> None:
        folder = headed(tmp_path / "a")
        (folder / absent).unlink()
        assert culprits(folder) == {(Code.ABSENT, f"a/{named}")}

    def test_only_a_pickle(self, tmp_path: Path) -> None:
        folder = headed(tmp_path / "a")
        (folder / HEAD_WEIGHTS).rename(folder / "pytorch_model_head.bin")
        assert culprits(folder) == {(Code.NOT_SAFETENSORS, "a/pytorch_model_head.bin")}
        assert "adexport convert" in problems(folder)[0].mend

    def test_tensors(self, tmp_path: Path) -> None:
        folder = headed(tmp_path / "a")
        names = {part: f"heads.{NAME}.{part}" for part in ("1.bias", "4.weight", "7.weight")}
        edit(
            folder,
            HEAD_WEIGHTS,
            **{
                names["1.bias"]: None,
                names["4.weight"]: np.ones((4, FEATURES), np.float32),
                names["7.weight"]: np.ones((1, 1), np.float32),
                "heads.acme2.1.weight": np.ones((1, 1), np.float32),
                "classifier.weight": np.ones((1, 1), np.float32),
            },
        )
        assert culprits(folder) == {
            (Code.HALF_MISSING, f"heads.{NAME}"),
            (Code.WRONG_SHAPE, names["4.weight"]),
            (Code.UNKNOWN_TENSOR, names["7.weight"]),
            (Code.UNKNOWN_TENSOR, "heads.acme2.1.weight"),
            (Code.UNKNOWN_TENSOR, "classifier.weight"),
        }

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}, "config": {}}'])
    def test_a_bad_config(self, tmp_path: Path, text: str) -> None:
        folder = headed(tmp_path / "a")
        (folder / CONFIG).write_text(text)
        (found,) = problems(folder)
        assert CONFIG in found.subject

    @FAST
    @given(
        top=st.dictionaries(st.sampled_from([*document({})]), JSON, max_size=2),
        config=st.dictionaries(st.sampled_from([*CLASSIFICATION, "x"]), JSON, max_size=2),
    )
    def test_any_bad_config(self, tmp_path: Path, top: Any, config: Any) -> None:
        problems(headed(tmp_path / "a", top=top, **config))
