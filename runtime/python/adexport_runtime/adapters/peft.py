"""PEFT checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors`` (peft 0.21)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AdapterError, Code, Problem
from ..tensors import Array, TensorFile, read_tensors
from .neutral import LinearWeights, NeutralAdapter
from .peft_config import LoraConfig, parse_lora_config

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.weight")

#: other tensors PEFT writes -> why no slot takes them
_EXPLAINED = (
    (re.compile(r".*\.lora_magnitude_vector"), "a DoRA magnitude; the slots carry A and B only"),
    (re.compile(r".*\.lora_B\.bias"), "lora_bias; the slots carry A and B only"),
    (re.compile(r".*\.lora_embedding_[AB]"), "LoRA on an embedding; there is no slot for it"),
    (re.compile(r".*\.base_layer\.\w+"), "a trained weight of the base itself"),
    (re.compile(r".*\.lora_[AB]\.\w+\.weight"), "the adapter's name in the key: a raw state_dict, "
     "not what save_pretrained writes"),
    (re.compile(r".*\.trainable_tokens_delta"), "trained embedding rows; there is no slot for them"),
    (re.compile(r".*(classifier|score|lm_head|qa_outputs)\b.*"), "a head trained with the adapter "
     "(modules_to_save; PEFT adds it by itself for SEQ_CLS and TOKEN_CLS)"),
)  # fmt: skip


def recognises(config: dict[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` was written by PEFT."""
    return "peft_type" in config


@dataclass
class _Halves:
    """The two tensors of one module, as the file has them: A ``[r, in]``, B ``[out, r]``."""

    names: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)


def read(folder: Path, weights: Path | None, config: dict[str, Any]) -> NeutralAdapter:
    """Read a PEFT adapter.

    Raises:
        AdapterError: for what makes the file unreadable; all else is gathered in ``problems``.
    """
    kind = str(config["peft_type"]).upper()
    if kind != "LORA":
        raise AdapterError(
            f"{folder.name} is refused",
            Problem(
                Code.UNSUPPORTED,
                "peft_type",
                got=kind,
                expected="LORA",
                cause=f"no slot of this bundle carries {kind} weights",
                mend="train a LoRA adapter, or convert it where PEFT can do so exactly",
            ),
        )
    file = read_tensors(weights or _weights_file(folder))
    lora, problems = parse_lora_config(config)
    halves, unknown = _pair(file)
    problems += unknown
    linears = {}
    for module, pair in halves.items():
        weights_of = _weights(module, pair, lora, problems)
        if weights_of is not None:
            linears[module] = weights_of
    base_name = config.get("base_model_name_or_path")
    return NeutralAdapter(
        path=folder,
        source_type="peft:LORA",
        sha256=file.sha256,
        base_name=base_name if isinstance(base_name, str) else None,
        linears=linears,
        modules=frozenset(halves),
        covers=lora.covers if lora else None,
        problems=tuple(problems),
    )


def _weights_file(folder: Path) -> Path:
    if (folder / WEIGHTS_FILE).exists() or not (folder / _PICKLED).exists():
        return folder / WEIGHTS_FILE
    raise AdapterError(
        f"{folder.name} is refused",
        Problem(
            Code.NOT_SAFETENSORS,
            _PICKLED,
            got="a pickle",
            expected=WEIGHTS_FILE,
            cause="saved with safe_serialization=False, or by an old PEFT",
            mend="load it with PEFT and save_pretrained(…, safe_serialization=True)",
        ),
    )


def _pair(file: TensorFile) -> tuple[dict[str, _Halves], list[Problem]]:
    """Sort the tensors into modules; whatever is no A or B is a problem."""
    halves: dict[str, _Halves] = {}
    problems = []
    for name, tensor in file.tensors.items():
        if not (found := _KEY.fullmatch(name)):
            cause = next((why for pattern, why in _EXPLAINED if pattern.fullmatch(name)), "")
            problems.append(
                Problem(
                    Code.UNKNOWN_TENSOR,
                    name,
                    got=f"shape {list(tensor.shape)}",
                    expected="….lora_A.weight or ….lora_B.weight",
                    cause=cause or "not a tensor of a PEFT LoRA",
                )
            )
            continue
        pair = halves.setdefault(found["module"], _Halves())
        if found["half"] in pair.names:
            problems.append(
                Problem(
                    Code.DUPLICATE_KEY,
                    name,
                    got=f"also as {pair.names[found['half']]}",
                    expected="one tensor for each half",
                )
            )
            continue
        pair.names[found["half"]] = name
        pair.tensors[found["half"]] = tensor
    return halves, problems


def _weights(
    module: str, pair: _Halves, config: LoraConfig | None, problems: list[Problem]
) -> LinearWeights | None:
    """Check a module's halves against each other and the config; fold the scaling into B."""
    if len(pair.names) == 1:
        (half,) = pair.names
        problems.append(
            Problem(
                Code.HALF_MISSING,
                module,
                got=f"lora_{half} only",
                expected="lora_A and lora_B",
                cause="a partial save",
                mend="save the adapter again",
            )
        )
        return None
    a, b = pair.tensors["A"], pair.tensors["B"]
    bad = [
        Problem(Code.WRONG_SHAPE, pair.names[half], got=f"shape {list(tensor.shape)}", expected=shape)
        for half, tensor, shape in (("A", a, "[rank, in]"), ("B", b, "[out, rank]"))
        if tensor.ndim != 2
    ]
    bad += [
        Problem(Code.WRONG_DTYPE, pair.names[half], got=str(tensor.dtype), expected="a float type")
        for half, tensor in (("A", a), ("B", b))
        if tensor.dtype.kind not in "fV"
    ]
    if not bad and a.shape[0] != b.shape[1]:
        bad.append(
            Problem(
                Code.RANK_MISMATCH,
                module,
                got=f"rank {a.shape[0]} in lora_A and {b.shape[1]} in lora_B",
                expected="the same rank",
            )
        )
    if not bad and config is not None and a.shape[0] != config.rank(module):
        bad.append(
            Problem(
                Code.RANK_MISMATCH,
                module,
                got=f"rank {a.shape[0]} in the file",
                expected=f"rank {config.rank(module)} as the config says",
                cause="adapter_config.json of another adapter",
                mend="put the config beside the file that it was saved with",
            )
        )
    if bad or config is None:
        problems += bad
        return None
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        scaled = (b.T.astype(np.float64) * config.scaling(module)).astype(np.float32)
    return LinearWeights(
        factors={"lora_A": a.T.astype(np.float32), "lora_B": scaled},
        names={"lora_A": pair.names["A"], "lora_B": pair.names["B"]},
    )
