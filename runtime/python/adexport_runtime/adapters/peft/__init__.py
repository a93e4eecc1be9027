"""PEFT checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors`` (peft 0.21).

Another method is one file with its equations, and one line in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import AdapterError, Code, Problem
from ...tensors import read_tensors
from ..neutral import LinearUpdate, NeutralAdapter
from .adalora import ADALORA
from .bias import with_saved_bias
from .config import TunerConfig, parse_config
from .delora import DELORA
from .file import Contents, replaced_linears, sort_tensors, weights_file
from .hra import HRA
from .ia3 import IA3
from .lora import LORA
from .lycoris import LOHA, LOKR
from .method import Method
from .miss import MISS
from .refused import refused_method
from .vblora import VBLORA
from .vera import VERA

__all__ = ["METHODS", "read", "recognises"]

METHODS: Mapping[str, Method] = {
    "LORA": LORA,
    "ADALORA": ADALORA,
    "IA3": IA3,
    "VERA": VERA,
    "LOHA": LOHA,
    "LOKR": LOKR,
    "MISS": MISS,
    "HRA": HRA,
    "DELORA": DELORA,
    "VBLORA": VBLORA,
}


def recognises(config: dict[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` was written by PEFT."""
    return "peft_type" in config


def read(folder: Path, weights: Path | None, config: dict[str, Any]) -> NeutralAdapter:
    """Read a PEFT adapter.

    Raises:
        AdapterError: for what makes the file unreadable; all else is gathered in ``problems``.
    """
    kind = str(config["peft_type"]).upper()
    method = METHODS.get(kind)
    if method is None:
        problem = refused_method(kind, config, tuple(METHODS))
        raise AdapterError(f"{folder.name} is refused", problem)
    file = read_tensors(weights or weights_file(folder), empty=method.empty)
    parsed, problems = parse_config(method.config, config)
    # a config that cannot be used says nothing of biases and whole modules
    known = parsed or TunerConfig.model_construct()
    contents = sort_tensors(file, method.parts, method.shared, known)
    replaced, wrong = replaced_linears(contents)
    problems += [*contents.problems, *_empty(contents), *wrong]
    linears = {}
    if parsed is not None:
        problems += _lost(parsed, contents)
        updates, wrong = _updates(method, parsed, contents)
        linears.update(updates)
        problems += wrong
    base_name = config.get("base_model_name_or_path")
    return NeutralAdapter(
        path=folder,
        source_type=f"peft:{kind}",
        sha256=file.sha256,
        base_name=base_name if isinstance(base_name, str) else None,
        linears=linears,
        replaced=replaced,
        modules=frozenset((*contents.layers, *contents.biases)),
        covers=parsed.covers if parsed else None,
        saves=(lambda module: bool(known.saves(module))) if parsed else None,
        problems=tuple(dict.fromkeys(problems)),
    )


def _updates(
    method: Method, config: TunerConfig, contents: Contents
) -> tuple[dict[str, LinearUpdate], list[Problem]]:
    """The update of every layer, with its trained bias; layers without their tensors are problems."""
    updates: dict[str, LinearUpdate] = {}
    problems: list[Problem] = []
    for module, layer in contents.layers.items():
        if any(name not in layer.names for name in method.shared):  # named once, not for every layer
            continue
        try:
            update = method.update(layer, config)
        except AdapterError as error:
            problems += error.problems
            continue
        if config.trains_bias:
            update = with_saved_bias(module, update, contents.biases.get(module))
        if update.kinds:  # AdaLoRA prunes layers whole: nothing is left to find a slot for
            updates[module] = update
    problems += [
        Problem(
            Code.HALF_MISSING,
            module,
            got=f"{name} only",
            expected="the adapter's tensors of the layer as well",
            cause="a partial save",
            mend="save the adapter again",
        )
        for module, (name, _) in contents.biases.items()
        if module not in contents.layers
    ]
    return updates, problems


def _lost(config: TunerConfig, contents: Contents) -> list[Problem]:
    """Modules that were to be saved whole, and are not there."""
    return [
        Problem(
            Code.ABSENT,
            f"modules_to_save {name!r}",
            got="no tensors",
            expected="the module, saved whole",
            cause="a partial save, or a base without this module",
            mend="save the adapter again, or take the name out of modules_to_save if the base has no such "
            "module",
        )
        for name in config.lost(contents.kept)
    ]


def _empty(contents: Contents) -> list[Problem]:
    """Tensors without elements, where a method's own may have none."""
    others = [*contents.biases.values(), *(p for whole in contents.whole.values() for p in whole.values())]
    return [
        Problem(
            Code.EMPTY_TENSOR,
            name,
            got=f"shape {list(tensor.shape)}",
            expected="at least one element",
            cause="saved from a sharded (ZeRO-3) model whose weights were not gathered",
            mend="gather the weights and save the adapter again",
        )
        for name, tensor in others
        if tensor.size == 0
    ]
