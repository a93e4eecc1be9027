"""What lies in an AdapterHub folder, and which reader takes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import AdapterError, Code, Problem
from ...tensors import TensorFile, read_tensors
from ..neutral import NeutralAdapter
from . import legacy
from .bottleneck import Bottlenecks, read_bottlenecks
from .families import Family, family_of
from .forms import parse_settings
from .keys import sort_tensors

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
            mend=f"adexport convert {folder.name} -o {folder.name}-safe",
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
    file = read_tensors(weights or folder / WEIGHTS_FILE)
    family, problems = family_of(folder, document["model_type"])
    base_name = document.get("model_name")
    bare = NeutralAdapter(
        path=folder,
        source_type="adapterhub:bottleneck",
        sha256=file.sha256,
        base_name=base_name if isinstance(base_name, str) else None,
        problems=tuple(problems),
    )
    return bare if family is None else _with_bottlenecks(bare, file, document, config, family)


def _with_bottlenecks(
    bare: NeutralAdapter, file: TensorFile, document: dict[str, Any], config: dict[str, Any], family: Family
) -> NeutralAdapter:
    found = sort_tensors(file, "adapters", document["name"])
    found = found.without("gate.") if config.get("use_gating") else found
    inverse = any("invertible" in name for name in file.tensors)
    settings, style, problems = parse_settings(config, document, family, inverse)
    problems += found.problems
    bottlenecks: Bottlenecks = {}
    if settings is not None:
        bottlenecks, wrong = read_bottlenecks(found, settings, family, document.get("hidden_size"))
        problems += wrong
    return replace(
        bare,
        bottlenecks={} if style is None else bottlenecks,
        style=style,
        modules=frozenset(found.modules),
        claims=None if settings is None or style is None else settings.claims,
        problems=(*bare.problems, *problems),
    )
