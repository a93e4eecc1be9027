"""Foreign checkpoints, one file per library: each reads its own files into neutral weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AdapterError, Code, Problem
from ..files import DuplicateKeyError, load_json
from . import adapterhub, peft
from .neutral import (
    BottleneckWeights,
    FrozenLinear,
    HeadWeights,
    LinearRecipe,
    LinearUpdate,
    LinearWeights,
    NeutralAdapter,
    ReplacedLinear,
)

__all__ = [
    "CONFIG_FILE",
    "BottleneckWeights",
    "FrozenLinear",
    "HeadWeights",
    "LinearRecipe",
    "LinearUpdate",
    "LinearWeights",
    "NeutralAdapter",
    "ReplacedLinear",
    "read_adapter",
]

CONFIG_FILE = "adapter_config.json"


class _Reader(NamedTuple):
    recognises: Callable[[dict[str, Any]], bool]
    read: Callable[[Path, Path | None, dict[str, Any]], NeutralAdapter]


_READERS = (_Reader(peft.recognises, peft.read), _Reader(adapterhub.recognises, adapterhub.read))


def read_adapter(path: Path) -> NeutralAdapter:
    """Read a foreign adapter: its folder, or its weights file with the config beside it.

    Raises:
        AdapterError: the path is absent, has no config, or no reader knows the format.
    """
    if not path.exists():
        raise AdapterError(
            f"{path.name or path} is refused",
            Problem(Code.ABSENT, str(path), got="no such file or folder", mend="check the path"),
        )
    folder = path if path.is_dir() else path.parent
    weights = None if path.is_dir() or path.name == CONFIG_FILE else path
    if not (folder / CONFIG_FILE).exists():
        adapterhub.refuse_without_config(folder)
    config = _read_config(folder / CONFIG_FILE)
    for reader in _READERS:
        if reader.recognises(config):
            return reader.read(folder, weights, config)
    raise AdapterError(
        f"{folder.name} is refused",
        Problem(
            Code.UNSUPPORTED,
            str(folder / CONFIG_FILE),
            got="keys " + ", ".join(sorted(config)[:8]),
            expected="a config of PEFT (peft_type) or of AdapterHub (config, model_type and name)",
            cause="an adapter of another library",
        ),
    )


def _read_config(path: Path) -> dict[str, Any]:
    headline = f"{path.parent.name}/{path.name} is refused"
    try:
        config = load_json(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            headline,
            Problem(
                Code.ABSENT,
                str(path),
                got=error.strerror or "no file",
                expected=f"{CONFIG_FILE} beside the weights",
                cause="only the weights were copied",
                mend="copy the whole adapter folder",
            ),
        ) from error
    except DuplicateKeyError as error:
        raise AdapterError(
            headline,
            Problem(Code.DUPLICATE_KEY, f"key {error}", got="the same key twice", expected="each key once"),
        ) from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            headline, Problem(Code.BAD_CONFIG, str(path), got=f"no JSON ({error})")
        ) from None
    if not isinstance(config, dict):
        raise AdapterError(headline, Problem(Code.BAD_CONFIG, str(path), got="no JSON object"))
    return config
