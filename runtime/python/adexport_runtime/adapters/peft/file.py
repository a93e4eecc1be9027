"""The tensors of a PEFT file, sorted into layers, biases, modules saved whole, and the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import AdapterError, Code, Problem
from ...tensors import Array, TensorFile
from ..neutral import ReplacedLinear
from .config import TunerConfig
from .layer import Layer

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_SHARED_PREFIX = "base_model."
_PREFIX = "base_model.model."
_BIAS = ".base_layer.bias"

_TARGET_LINEAR = "train with target_modules that are linear layers"

#: other tensors that PEFT writes -> why no slot takes them, what to do
_EXPLAINED = (
    (r".*\.lora_embedding_[AB]", "LoRA on an embedding; there is no slot for it", _TARGET_LINEAR),
    (r".*\.(lora_[AB]|lora_E|ia3_l|hada_\w+|lokr_\w+|vera_\w+|delora_\w+|hra_u)\.\w+(\.weight|\.bias)?",
     "the adapter's name in the key: a raw state_dict, not what save_pretrained writes",
     "save it with save_pretrained"),
    (r".*\.base_layer\.bias", "a trained bias of the base (bias='all', or the config of another adapter)",
     "train with bias='none' or '…_only'"),
    (r".*\.base_layer\.\w+", "a weight of the base itself, as PEFT saves it for embeddings",
     _TARGET_LINEAR),
    (r".*\.trainable_tokens_\w+", "trained embedding rows; there is no slot for them",
     "train without them"),
    (r".*(embed|wte|wpe)\w*\.weight", "an embedding saved whole; there is no slot for it",
     "train without resizing or training embeddings"),
    (r".*(classifier|score|lm_head|qa_outputs)\b.*", "a head trained with the adapter, which the config's "
     "modules_to_save does not tell", "put the config beside the file that it was saved with"),
    (r".*\.bias", "a trained bias of a layer without an adapter; there is no slot for it",
     "train with bias='none'"),
)  # fmt: skip

#: a segment that names an embedding, in the model families of transformers
_EMBEDDING = re.compile(r"\w*(embed|wte|wpe)\w*")


@dataclass
class Contents:
    """What a file holds.

    ``layers`` are the method's own tensors by module; ``biases`` the trained biases of the base's
    layers, ``whole`` the parameters of modules saved whole, each with its name in the file.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    biases: dict[str, tuple[str, Array]] = field(default_factory=dict)
    whole: dict[str, dict[str, tuple[str, Array]]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def weights_file(folder: Path) -> Path:
    """The tensor file of a folder.

    Raises:
        AdapterError: there is a pickle only.
    """
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
            mend="adexport convert FOLDER -o NEW (offline; needs torch)",
        ),
    )


def sort_tensors(
    file: TensorFile, parts: Mapping[str, str], shared: Iterable[str], config: TunerConfig
) -> Contents:
    """Sort a file's tensors; whatever has no place is a problem.

    Args:
        file: as it was read.
        parts: the endings of the method's tensors -> the names that its equations have for them.
        shared: tensors of the method that all layers share.
        config: says whether biases and whole modules are expected.
    """
    contents = Contents()
    common: dict[str, tuple[str, Array]] = {}
    wanted = set(shared)
    for name, tensor in file.tensors.items():
        bare = name.removeprefix(_PREFIX)
        everywhere = name.removeprefix(_SHARED_PREFIX)
        module, part = _split(bare, parts)
        if everywhere in wanted:
            taken = _put(common, everywhere, name, tensor)
        elif module:
            layer = contents.layers.setdefault(module, Layer(module))
            taken = layer.names.get(part)
            layer.names.setdefault(part, name)
            layer.tensors.setdefault(part, tensor)
        elif bare.endswith(_BIAS) and config.trains_bias:
            taken = _put(contents.biases, bare.removesuffix(_BIAS), name, tensor)
        elif saved := config.saves(bare.rpartition(".")[0]):
            owner, _, parameter = bare.rpartition(".")
            taken = _put(contents.whole.setdefault(owner, {}), parameter, name, tensor)
            contents.kept.update(saved)
        else:
            contents.problems.append(_unknown(name, tensor, parts))
            continue
        if taken is not None:
            contents.problems.append(
                Problem(
                    Code.DUPLICATE_KEY, name, got=f"also as {taken}", expected="one tensor of each name"
                )
            )
    for missing in sorted(wanted - common.keys()):
        contents.problems.append(
            Problem(
                Code.ABSENT,
                _SHARED_PREFIX + missing,
                got="no such tensor",
                expected="a tensor that all layers share",
                cause="a partial save",
                mend="save the adapter again",
            )
        )
    for layer in contents.layers.values():
        for key, (name, tensor) in common.items():
            layer.names[key], layer.tensors[key] = name, tensor
    return contents


def _split(bare: str, parts: Mapping[str, str]) -> tuple[str, str]:
    for ending, part in parts.items():
        if bare.endswith(f".{ending}"):
            return bare.removesuffix(f".{ending}"), part
    return "", ""


def _put(places: dict[str, tuple[str, Array]], key: str, name: str, tensor: Array) -> str | None:
    """Put a tensor in its place; returns the name of one that is there already."""
    there = places.setdefault(key, (name, tensor))[0]
    return None if there == name else there


def _unknown(name: str, tensor: Array, parts: Mapping[str, str]) -> Problem:
    cause, mend = next(
        ((why, what) for pattern, why, what in _EXPLAINED if re.fullmatch(pattern, name)),
        ("not a tensor of this method", ""),
    )
    return Problem(
        Code.UNKNOWN_TENSOR,
        name,
        got=f"shape {list(tensor.shape)}",
        expected=" or ".join(f"….{ending}" for ending in parts),
        cause=cause,
        mend=mend,
    )


def replaced_linears(contents: Contents) -> tuple[dict[str, ReplacedLinear], list[Problem]]:
    """The modules saved whole, as linear layers; what is none is a problem."""
    found = {}
    problems = []
    for module, parameters in contents.whole.items():
        problem = _not_linear(module, parameters)
        if problem is not None:
            problems.append(problem)
            continue
        names = tuple(name for name, _ in parameters.values())
        bias = parameters.get("bias")
        found[module] = ReplacedLinear(
            weight=parameters["weight"][1].astype("float32"),
            bias=None if bias is None else bias[1].astype("float32"),
            names=names,
        )
    return found, problems


def _not_linear(module: str, parameters: Mapping[str, tuple[str, Array]]) -> Problem | None:
    """Why a module saved whole is no linear layer with its weight and perhaps its bias."""
    tensors = {key: tensor for key, (_, tensor) in parameters.items()}
    subject = ", ".join(name for name, _ in parameters.values())
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if _EMBEDDING.fullmatch(module.rpartition(".")[2]):
        return _no_slot(subject, module, "an embedding")
    if tensors.keys() - {"weight", "bias"} or (weight is not None and weight.ndim != 2):
        return _no_slot(subject, module, "a norm, or another module that is no linear layer")
    if weight is None:
        return Problem(
            Code.HALF_MISSING,
            module,
            got="bias only",
            expected="weight and bias",
            cause="a partial save",
            mend="save the adapter again",
        )
    wrong = [key for key, tensor in tensors.items() if tensor.dtype.kind not in "fV"]
    if wrong:
        names = ", ".join(parameters[key][0] for key in wrong)
        return Problem(Code.WRONG_DTYPE, names, got=str(tensors[wrong[0]].dtype), expected="a float type")
    if bias is not None and bias.shape != weight.shape[:1]:
        return Problem(
            Code.WRONG_SHAPE,
            parameters["bias"][0],
            got=f"shape {list(bias.shape)}",
            expected=f"[{weight.shape[0]}], as the weight has",
        )
    return None


def _no_slot(subject: str, module: str, what: str) -> Problem:
    return Problem(
        Code.NO_SLOT,
        subject,
        got=f"{module} saved whole (modules_to_save)",
        expected="linear layers of a head",
        cause=f"{what} was trained, and the slots take adapters and heads only",
        mend="train without it in modules_to_save",
    )
