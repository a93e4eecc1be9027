"""Pickled adapters to safetensors, once and offline: no runtime ever reads a pickle.

torch unpickles them with ``weights_only=True``, which builds tensors and nothing else.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adexport_runtime.errors import AdapterError, Code, Problem
from adexport_runtime.files import atomic_folder

CONFIG_FILE = "adapter_config.json"

#: pickles of adapters and of heads -> the same as safetensors
_SAFE = {
    "adapter_model.bin": "adapter_model.safetensors",
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
}
_CONFIGS = (CONFIG_FILE, "head_config.json", "adapter_interface.json")

#: a zip archive, or a pickle (as torch.save wrote before 1.6)
_STARTS = (b"PK\x03\x04", b"\x80")
_POINTER = b"version https://git-lf"

#: files that would be lost, and change what the adapter is -> what they are
_LEFT_OUT = {
    "pytorch_model_adapter_fusion.bin": "a fusion of several adapters, which no slot carries",
    "model_adapter_fusion.safetensors": "a fusion of several adapters, which no slot carries",
    "adapter_setup.json": "a setup of several adapters; convert each of its folders",
    "embedding.pt": "trained embeddings, which have no slot",
}


@dataclass(frozen=True)
class Converted:
    """One file that was made from a pickle."""

    source: Path
    name: str
    tensors: int
    bytes: int


def convert(source: Path, output: Path, *, force: bool = False) -> list[Converted]:
    """Write a pickled adapter's folder anew, with safetensors in the place of pickles.

    Args:
        source: the folder of an adapter of PEFT or AdapterHub; or a pickle in it, which is then meant
            where the same is there as safetensors too.
        output: the new folder; it appears whole or not at all.
        force: replace what stands there.

    Raises:
        AdapterError: there is nothing to convert, a pickle holds more than tensors or is damaged, or
            something stands at ``output``.
    """
    headline = f"{source.name or source} is not converted"
    if not source.exists():
        raise AdapterError(
            headline, Problem(Code.ABSENT, str(source), got="no such file or folder", mend="check the path")
        )
    folder = source if source.is_dir() else source.parent
    pickles, problems = _pickles(folder, None if source.is_dir() else source)
    problems += _output_problems(folder, output, force)
    if problems:
        raise AdapterError(headline, problems)
    states: dict[Path, Mapping[str, Any]] = {}
    for path in pickles:
        try:
            states[path] = _load(path)
        except AdapterError as error:
            problems += error.problems
    if problems:
        raise AdapterError(headline, problems)
    return _write(folder, output, pickles, states)


def _write(
    folder: Path, output: Path, pickles: Mapping[Path, str], states: Mapping[Path, Mapping[str, Any]]
) -> list[Converted]:
    from safetensors.torch import save_file

    made = []
    with atomic_folder(output) as part:
        for path, name in pickles.items():
            save_file(dict(states[path]), part / name, metadata={"format": "pt"})
            made.append(Converted(path, name, len(states[path]), (part / name).stat().st_size))
        for name in (*_CONFIGS, *_SAFE.values()):
            if (folder / name).exists() and not (part / name).exists():
                shutil.copyfile(folder / name, part / name)
    return made


def _pickles(folder: Path, weights: Path | None) -> tuple[dict[Path, str], list[Problem]]:
    """The pickles of a folder, each with the name it gets; ``weights`` is the one that the user named."""
    problems = [
        Problem(Code.UNSUPPORTED, name, got="a file beside the adapter", cause=why)
        for name, why in _LEFT_OUT.items()
        if (folder / name).exists()
    ]
    if not (folder / CONFIG_FILE).exists():
        problems.append(
            Problem(
                Code.ABSENT,
                str(folder / CONFIG_FILE),
                got="no such file",
                expected=f"{CONFIG_FILE} beside the weights",
                cause="only the weights were copied",
                mend="copy the whole adapter folder",
            )
        )
    found: dict[Path, str] = {}
    for name, safe in _SAFE.items():
        path = folder / name
        if not path.exists():
            continue
        found[path] = safe
        if (folder / safe).exists() and path != weights:
            problems.append(
                Problem(
                    Code.DUPLICATE_KEY,
                    name,
                    got=f"{safe} beside it",
                    expected="one of the two",
                    cause="saved twice, in two formats",
                    mend=f"remove the one that is not meant, or name the file: {folder.name}/{name}",
                )
            )
    if weights is not None and weights not in found:
        problems.append(_unknown(weights))
    elif not found:
        problems.append(
            Problem(
                Code.ABSENT,
                str(folder),
                got="no pickle of an adapter",
                expected=", ".join(_SAFE),
                cause="it is converted already, or no adapter folder",
            )
        )
    return found, problems


def _unknown(weights: Path) -> Problem:
    return Problem(
        Code.BAD_NAME,
        weights.name,
        got="a name that no library gives",
        expected=", ".join(_SAFE),
        cause="renamed, or not the pickle of an adapter",
        mend="give it the name that its library gives",
    )


def _output_problems(folder: Path, output: Path, force: bool) -> list[Problem]:
    target, source = output.resolve(), folder.resolve()
    if target == source or target in source.parents:
        return [
            Problem(
                Code.EXISTS,
                str(output),
                got="the folder that the adapter is in",
                expected="another folder",
                cause="what is there would be lost",
                mend="give another --output",
            )
        ]
    if not output.exists():
        return []
    if not (output / CONFIG_FILE).exists():
        got, mend = "something that is no adapter", "give another --output; --force replaces adapters only"
    elif not force:
        got, mend = "an adapter of this name", "give --force to replace it, or another --output"
    else:
        return []
    return [Problem(Code.EXISTS, str(output), got=got, mend=mend)]


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a pickle, none of which shares memory with another.

    Raises:
        AdapterError: naming what is no plain tensor.
    """
    import torch

    headline = f"{path.name} is refused"
    with path.open("rb") as file:
        start = file.read(22)
    if not start.startswith(_STARTS):
        raise AdapterError(headline, _no_pickle(path, start))
    try:
        with warnings.catch_warnings():  # of pickle protocols: what cannot be read is refused
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise AdapterError(headline, _not_only_tensors(path, error)) from None
    except Exception as error:  # torch raises what its parsers of zip, tar and pickle raise
        raise AdapterError(headline, _damaged(path, f"bytes that do not load ({_line(error)})")) from None
    if not isinstance(state, dict):
        raise AdapterError(
            headline,
            Problem(Code.UNSUPPORTED, path.name, got=type(state).__name__, expected="tensors by name"),
        )
    problems = list(_strange(state))
    if problems:
        raise AdapterError(headline, problems)
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def _strange(state: Mapping[Any, Any]) -> Iterator[Problem]:
    import torch

    if not state:
        yield Problem(Code.EMPTY_TENSOR, "the pickle", got="no tensors at all")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            got, expected = type(value).__name__, "a tensor under a name"
        elif value.layout != torch.strided or value.is_quantized or value.is_meta:
            got, expected = f"a tensor of layout {value.layout}, {value.dtype}", "a plain tensor"
        else:
            continue
        yield Problem(Code.UNSUPPORTED, str(name)[:120], got=got, expected=expected)


def _line(error: Exception, *words: str) -> str:
    """The first line of a message that has one of the words; the first of all, if none has."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = (line for line in lines if any(word in line for word in words))
    return next(telling, lines[0])[:200]


def _not_only_tensors(path: Path, error: Exception) -> Problem:
    return Problem(
        Code.UNSUPPORTED,
        path.name,
        got=_line(error, "GLOBAL", "Unsupported", "Can only"),
        expected="tensors by name, and nothing else",
        cause="a pickle can run any code when it is loaded, and this one asks for more than tensors",
        mend="if you trust where it comes from, load it with its library and save it with safetensors",
    )


def _no_pickle(path: Path, start: bytes) -> Problem:
    if start == _POINTER:
        return Problem(
            Code.DAMAGED,
            path.name,
            got="a Git LFS pointer, not the file it points to",
            cause="cloned without Git LFS",
            mend="git lfs pull",
        )
    return _damaged(path, f"bytes that are neither a zip archive nor a pickle ({start[:8].hex(' ')})")


def _damaged(path: Path, got: str) -> Problem:
    return Problem(
        Code.DAMAGED,
        path.name,
        got=got,
        expected="a whole file of torch.save",
        cause="a truncated copy or download",
        mend="copy or download the file again",
    )
