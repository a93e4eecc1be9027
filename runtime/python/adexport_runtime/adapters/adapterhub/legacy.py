"""What earlier versions of AdapterHub's library wrote, read as its version 1.3 reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import Code, Problem

#: names of configs without a version -> what they mean today
_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}

_NAMES = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}

_PREFIX = "adapters."
#: release, what makes it an earlier pre-release of it, and what does not (PEP 440)
_VERSION = re.compile(
    r"(?P<release>\d+(?:\.\d+)*)"
    r"(?P<pre>[-_.]?(?:a|b|c|rc|alpha|beta|pre|preview|dev)[-_.]?\d*)?"
    r"(?:[-_.]?(?:post|rev|r|dev)[-_.]?\d*|\+[\w.-]+)*",
    re.ASCII,
)
_SCALED_RIGHT = (1, 1, 0)


def tensor_name(name: str) -> str:
    """A tensor's name as it is today."""
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    return name


def settings(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The ``config`` of an ``adapter_config.json`` with the meaning it has today.

    Files without a version called the tanh approximation ``gelu``. Versions before 1.1.0 scaled
    LoRA by 1 whatever alpha was (adapters, pull request 770).
    """
    config = document["config"]
    if not isinstance(config, dict):
        return {}, [
            Problem(
                Code.BAD_CONFIG,
                "config",
                got=repr(config)[:80],
                expected="an object with all settings",
                cause="saved by a version that stored only the name of its settings",
                mend="load it with the adapters library and save it again",
            )
        ]
    config = dict(config)
    activation = config.get("non_linearity")
    if "version" not in document and isinstance(activation, str):
        config["non_linearity"] = _ACTIVATIONS.get(activation, activation)
    version = document.get("version", "")
    early = _scaled_wrong(version)
    if early is None:
        return config, [
            Problem(Code.BAD_CONFIG, "version", got=repr(version)[:80], expected="adapters.1.3.0, or such")
        ]
    if early and config.get("architecture") == "lora" and "r" in config:
        config["alpha"] = config["r"]
    return config, []


def _scaled_wrong(version: object) -> bool | None:
    """Whether LoRA was scaled wrong in a version; None if it is no version."""
    if not isinstance(version, str):
        return None
    if not version.startswith(_PREFIX):  # adapter-transformers, which scaled right
        return False
    found = _VERSION.fullmatch(version.removeprefix(_PREFIX))
    if found is None or len(found["release"]) > 40:
        return None
    release = tuple(int(part) for part in found["release"].split("."))
    release += (0,) * (len(_SCALED_RIGHT) - len(release))
    return release < _SCALED_RIGHT or (release == _SCALED_RIGHT and found["pre"] is not None)
