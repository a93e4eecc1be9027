"""What lies in an AdapterHub folder, and which reader takes it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import AdapterError, Code, Problem
from ...tensors import TensorFile, read_tensors
from ..neutral import NeutralAdapter
from . import forms, legacy, lora
from .bottleneck import read_bottlenecks
from .families import Family, family_of
from .head import Head, read_head
from .keys import Kind, Sorted, sort_tensors

WEIGHTS_FILE = "adapter.safetensors"
PICKLED_FILE = "pytorch_adapter.bin"

#: files that the library writes for more than one adapter -> what they are
_NEVER = {
    "adapter_fusion_config.json": "a fusion: attention over several adapters, which no slot carries",
    "model_adapter_fusion.safetensors": "a fusion: attention over several adapters, which no slot carries",
    "pytorch_model_adapter_fusion.bin": "a fusion: attention over several adapters, which no slot carries",
    "adapter_setup.json": "a setup of several adapters; each of its folders is bound by itself",
    "embedding.pt": "trained embeddings, which have no slot",
}

#: config.architecture -> why no slot carries it
_METHODS = {
    "mtl_lora": "many up projections, mixed by learned weights",
    "prefix_tuning": "more keys and values in every attention have no slot",
    "prompt_tuning": "more tokens in front of the text have no slot",
    "reft": "an intervention behind a layer, at some positions only, has no slot",
    "union": "several methods in one adapter; train one of them",
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` was written by AdapterHub's library."""
    return "peft_type" not in config and {"config", "model_type", "name"} <= config.keys()


def refuse_without_config(folder: Path) -> None:
    """Refuse what the library saves without an adapter's config.

    Raises:
        AdapterError: the folder is a fusion or a setup of several adapters.
    """
    problems = _never(folder)
    if problems:
        raise AdapterError(f"{folder.name} is refused", problems)


def _never(folder: Path) -> list[Problem]:
    return [
        Problem(Code.UNSUPPORTED, name, got="a file of AdapterHub", cause=why)
        for name, why in _NEVER.items()
        if (folder / name).exists()
    ]


def pickled(folder: Path, pickle: str, expected: str) -> AdapterError:
    """The refusal of a pickle where tensors are expected."""
    return AdapterError(
        f"{folder.name} is refused",
        Problem(
            Code.NOT_SAFETENSORS,
            pickle,
            got="a pickle",
            expected=expected,
            cause="the library saves pickles unless it is told use_safetensors=True",
            mend=f"adexport convert {folder} -o NEW_FOLDER",
        ),
    )


def read(folder: Path, weights: Path | None, document: dict[str, Any]) -> NeutralAdapter:
    """Read an AdapterHub adapter.

    Raises:
        AdapterError: for what makes the files unreadable; all else is gathered in ``problems``.
    """
    refuse_without_config(folder)
    config, problems = legacy.settings(document)
    name = document["name"]
    if not isinstance(name, str) or not name:
        problems.append(Problem(Code.BAD_CONFIG, "name", got=repr(name)[:80], expected="a name"))
    method = config.get("architecture")
    if method not in (None, "lora"):
        cause = _METHODS.get(str(method), "not a method of adapters 1.3")
        problems.append(Problem(Code.UNSUPPORTED, "architecture", got=repr(method)[:80], cause=cause))
    if problems:
        raise AdapterError(f"{folder.name} is refused", problems)
    if weights is None and (folder / PICKLED_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        raise pickled(folder, PICKLED_FILE, WEIGHTS_FILE)
    file = read_tensors(weights or folder / WEIGHTS_FILE, slashes=True)
    family, problems = family_of(folder, document["model_type"])
    head = read_head(folder, family, document["model_type"])
    base_name = document.get("model_name")
    bare = NeutralAdapter(
        path=folder,
        source_type="adapterhub:bottleneck" if method is None else "adapterhub:lora",
        sha256=_sha256(file, head),
        base_name=base_name if isinstance(base_name, str) else None,
        head=head.weights if head else None,
        problems=(*problems, *(head.problems if head else ())),
    )
    if family is None:
        return bare
    kind: Kind = "adapters" if method is None else "loras"
    found = sort_tensors(file, kind, name)
    if config.get("use_gating"):
        found = found.without("gate.")
    bare = replace(bare, modules=frozenset(found.modules), problems=(*bare.problems, *found.problems))
    if method is not None:
        return _with_loras(bare, found, config, family)
    inverse = any("invertible" in tensor for tensor in file.tensors)
    return _with_bottlenecks(bare, found, document, config, family, inverse)


def _sha256(file: TensorFile, head: Head | None) -> str:
    """Of the tensor file; with a head, of the two files' hashes, one behind the other."""
    if head is None or head.sha256 is None:
        return file.sha256
    return hashlib.sha256(bytes.fromhex(file.sha256 + head.sha256)).hexdigest()


def _with_bottlenecks(
    bare: NeutralAdapter,
    found: Sorted,
    document: dict[str, Any],
    config: dict[str, Any],
    family: Family,
    inverse: bool,
) -> NeutralAdapter:
    settings, style, problems = forms.parse_settings(config, document, family, inverse)
    if settings is None:
        return replace(bare, problems=(*bare.problems, *problems))
    bottlenecks, wrong = read_bottlenecks(found, settings, family, document.get("hidden_size"))
    return replace(
        bare,
        bottlenecks={} if style is None else bottlenecks,
        style=style,
        claims=None if style is None else settings.claims,
        problems=(*bare.problems, *problems, *wrong),
    )


def _with_loras(
    bare: NeutralAdapter, found: Sorted, config: dict[str, Any], family: Family
) -> NeutralAdapter:
    settings, problems = lora.parse_settings(config, family)
    if settings is None:
        return replace(bare, problems=(*bare.problems, *problems))
    loras = lora.read_loras(found, settings, family)
    return replace(
        bare,
        source_type=f"adapterhub:{settings.method}",
        linears=loras.linears,
        covers=loras.covers,
        problems=(*bare.problems, *problems, *loras.problems),
    )
