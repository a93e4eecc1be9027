"""Prediction heads of AdapterHub: ``head_config.json`` and ``model_head.safetensors``.

A head is dropout and linear layers in turn, with an activation between two of them
(``adapters.heads.base.PredictionHead``); its tensors count all of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from ...errors import AdapterError, Code, Problem
from ...files import DuplicateKeyError, load_json
from ...names import nul_problems
from ...slots import Activation, Feature, HeadStyle
from ...tensors import Array, read_tensors
from ..neutral import HeadWeights
from .activations import activation_of
from .families import Family
from .keys import Tensor, shape_problems
from .settings import Settings, parse, refused

CONFIG_FILE = "head_config.json"
WEIGHTS_FILE = "model_head.safetensors"
PICKLED_FILE = "pytorch_model_head.bin"

_TOKENS = ("tagging", "question_answering")
_ROWS = ("classification", "multilabel_classification", "image_classification")

#: head_type -> why no slot carries it
_TYPES = {
    "causal_lm": "a language model's head is no head slot",
    "dependency_parsing": "a parser's head is bilinear: no stack of linear layers",
    "masked_lm": "a language model's head is no head slot",
    "multiple_choice": "rows are choices of one question, and no row stands alone",
    "seq2seq_lm": "a language model's head is no head slot",
}
#: settings of training
_IGNORED = frozenset(["dropout_prob", "multilabel"])


class HeadSettings(Settings):
    """The settings of a head."""

    head_type: str
    num_labels: Annotated[int, Field(gt=0)]
    layers: Annotated[int, Field(gt=0)]
    activation_function: str | None = None
    label2id: dict[str, int] | None = None
    use_pooler: bool = False
    bias: bool = True


class Head(NamedTuple):
    """A head that was read (None where it cannot be), the hash of its file, and every problem found."""

    weights: HeadWeights | None
    sha256: str | None
    problems: list[Problem]


def read_head(folder: Path, family: Family | None, model_type: object) -> Head | None:
    """The head in an adapter's folder; None if there is none.

    Raises:
        AdapterError: half of it is missing, or its tensors cannot be read.
    """
    there = {name for name in (CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE) if (folder / name).exists()}
    if not there:
        return None
    if there & {WEIGHTS_FILE, PICKLED_FILE} == {PICKLED_FILE}:
        raise _refused(folder, Code.NOT_SAFETENSORS, PICKLED_FILE, WEIGHTS_FILE, convert=True)
    if CONFIG_FILE not in there:
        raise _refused(folder, Code.ABSENT, WEIGHTS_FILE, f"{CONFIG_FILE} beside it")
    if WEIGHTS_FILE not in there:
        raise _refused(folder, Code.ABSENT, CONFIG_FILE, f"{WEIGHTS_FILE} beside it")
    document, problems = _document(folder)
    if document is None:
        return Head(None, None, problems)
    file = read_tensors(folder / WEIGHTS_FILE, slashes=True)
    settings, name, problems = _settings(document, family, model_type)
    if settings is None:
        return Head(None, file.sha256, problems)
    linears, wrong = _sort(file.tensors, name)
    problems += wrong
    activation: Activation | None = None
    if settings.layers == 2:
        activation, wrong = activation_of("activation_function", settings.activation_function or "linear")
        problems += wrong
    positions = _positions(settings)
    shapes = _shapes(settings, positions, linears)
    problems += shape_problems(f"heads.{name}", linears, shapes)
    if problems:
        return Head(None, file.sha256, problems)
    style = HeadStyle(feature=_feature(settings, family), activation=activation, labels=_labels(settings))
    return Head(_weights(style, settings, positions, linears), file.sha256, [])


def _refused(folder: Path, code: Code, name: str, expected: str, *, convert: bool = False) -> AdapterError:
    mend = f"adexport convert {folder} -o NEW_FOLDER" if convert else "copy the whole folder"
    got = "a pickle" if convert else f"{name} alone"
    return AdapterError(
        f"{folder.name} is refused", Problem(code, f"{folder.name}/{name}", got, expected, "", mend)
    )


def _document(folder: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        document = load_json((folder / CONFIG_FILE).read_bytes())
    except DuplicateKeyError as error:
        return None, [Problem(Code.DUPLICATE_KEY, f"{CONFIG_FILE}: key {error}", got="the same key twice")]
    except (OSError, ValueError, RecursionError) as error:
        return None, [Problem(Code.BAD_CONFIG, CONFIG_FILE, got=f"no JSON ({error})")]
    if not isinstance(document, dict):
        return None, [Problem(Code.BAD_CONFIG, CONFIG_FILE, got="no JSON object")]
    return document, []


def _settings(
    document: dict[str, Any], family: Family | None, model_type: object
) -> tuple[HeadSettings | None, str, list[Problem]]:
    """The settings of a head that a slot carries, and the name that its tensors have."""
    config, name = document.get("config"), document.get("name")
    if not isinstance(config, dict):
        return None, "", [_static(document)]
    kind = config.get("head_type")
    if kind not in (*_ROWS, *_TOKENS):
        why = _TYPES.get(str(kind), "not a head of adapters 1.3")
        return None, "", [refused("head_type", kind, why, "save it with with_head=False")]
    settings, problems = parse(HeadSettings, config, ignored=_IGNORED, refusals={})
    if not isinstance(name, str) or not name:
        problems.append(
            Problem(Code.BAD_CONFIG, f"{CONFIG_FILE}: name", got=repr(name)[:80], expected="a name")
        )
    if (other := document.get("model_type")) != model_type:
        problems.append(
            Problem(
                Code.BAD_CONFIG,
                f"{CONFIG_FILE}: model_type",
                got=repr(other)[:80],
                expected=f"{model_type!r}, as the adapter's",
                cause="the head of another adapter",
                mend="copy the whole folder",
            )
        )
    if family is not None and not family.heads:
        problems.append(
            refused("head_type", kind, "no slot has what the library's heads of this model read")
        )
    if settings is None:
        return None, "", problems
    problems += _contradictions(settings, family)
    return (None if problems else settings), str(name), problems


def _static(document: Mapping[str, Any]) -> Problem:
    return refused(
        f"{CONFIG_FILE}: config",
        document.get("config"),
        f"the head of {document.get('model_class', 'a transformers class')!s:.80}, not a flexible one",
        "load it into an AutoAdapterModel (it converts the head) and save it again",
    )


def _contradictions(settings: HeadSettings, family: Family | None) -> list[Problem]:
    problems = []
    if settings.layers > 2:
        problems.append(
            refused(
                "layers",
                settings.layers,
                "a head slot carries one or two layers",
                "train one of two layers",
            )
        )
    pools = family is not None and family.first and not family.pooler
    if settings.use_pooler and settings.head_type in _ROWS and pools:
        problems.append(
            refused("use_pooler", True, "the library's heads of this model get no pooled output")
        )
    if settings.head_type == "question_answering" and settings.num_labels != 2:
        problems.append(refused("num_labels", settings.num_labels, "an answer has a start and an end"))
    ids = sorted((settings.label2id or {}).values())
    numbered = len(ids) == settings.num_labels and ids == list(range(len(ids)))
    if settings.label2id is not None and not numbered:
        problems.append(
            Problem(
                Code.BAD_CONFIG,
                "label2id",
                got=f"ids {ids}"[:80],
                expected=f"0 to {settings.num_labels - 1}, each once",
            )
        )
    problems += nul_problems(Code.BAD_CONFIG, "label2id", settings.label2id or {})
    return problems


def _feature(settings: HeadSettings, family: Family | None) -> Feature:
    """What the head reads; the library's causal models hand their last token in, whatever use_pooler is."""
    if settings.head_type in _TOKENS:
        return "tokens"
    if family is not None and not family.first:
        return "last"
    return "pooler" if settings.use_pooler else "first"


def _labels(settings: HeadSettings) -> tuple[str, ...]:
    if settings.head_type == "question_answering":
        return ("start", "end")
    names = settings.label2id or {}
    return tuple(sorted(names, key=names.__getitem__))


def _positions(settings: HeadSettings) -> list[int]:
    """Where the linear layers are among dropouts and activations."""
    step = 3 if settings.activation_function else 2
    return [1 + step * layer for layer in range(settings.layers)]


def _sort(tensors: Mapping[str, Array], name: str) -> tuple[dict[str, Tensor], list[Problem]]:
    own = re.compile(rf"heads\.{re.escape(name)}\.(?P<part>\d+\.\w+)", re.ASCII)
    parts: dict[str, Tensor] = {}
    problems = []
    for key, array in tensors.items():
        found = own.fullmatch(key)
        if found is None or array.dtype.kind not in "fV":
            code = Code.UNKNOWN_TENSOR if found is None else Code.WRONG_DTYPE
            got = f"shape {list(array.shape)}" if found is None else str(array.dtype)
            problems.append(Problem(code, key, got=got, expected=f"floats at heads.{name}.…"))
        else:
            parts[found["part"]] = Tensor(key, array)
    return parts, problems


def _shapes(
    settings: HeadSettings, positions: list[int], parts: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """All tensors of the head; the hidden size is what the first layer reads."""
    first = parts.get(f"{positions[0]}.weight")
    features = int(first.array.shape[1]) if first is not None and first.array.ndim == 2 else -1
    shapes: dict[str, tuple[int, ...]] = {}
    for position in positions:
        last = position == positions[-1]
        out = settings.num_labels if last else features
        shapes[f"{position}.weight"] = (out, features)
        if settings.bias or not last:
            shapes[f"{position}.bias"] = (out,)
    return shapes


def _weights(
    style: HeadStyle, settings: HeadSettings, positions: list[int], parts: Mapping[str, Tensor]
) -> HeadWeights:
    named = ["out"] if len(positions) == 1 else ["dense", "deep"]
    factors: dict[str, Array] = {}
    names: dict[str, str] = {}
    for position, factor in zip(positions, named, strict=True):
        weight, bias = parts[f"{position}.weight"], parts.get(f"{position}.bias")
        beside = "dense_bias" if factor == "dense" else "out_bias"
        factors[factor], names[factor] = weight.array.T, weight.name
        factors[beside] = np.zeros(settings.num_labels) if bias is None else bias.array
        names[beside] = weight.name if bias is None else bias.name
    with np.errstate(over="ignore"):  # what overflows is refused as such later
        return HeadWeights(style, {key: value.astype(np.float32) for key, value in factors.items()}, names)
