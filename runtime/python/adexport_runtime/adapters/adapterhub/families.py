"""How the library wraps each family of models: where its layers are, and what its heads read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...errors import Code, Problem
from ...files import DuplicateKeyError, load_json
from .settings import Settings, refused

INTERFACE_FILE = "adapter_interface.json"

#: q, k, v, or all three as one (qkv); the two layers of the feed-forward part, in the library's words
Projection = Literal["q", "k", "v", "qkv", "intermediate", "output"]


class Family(NamedTuple):
    """What the reader needs to know of a ``model_type``.

    ``projections``: layers that take LoRA, by their path in a block. ``normed``: a LayerNorm follows the
    additions; None if that is unknown. ``first``: a classification head reads the first token (else the
    last). ``pooler``: or the pooled output, if its config says so. ``heads``: heads are read at all.
    ``fan_in_fan_out``: weights lie ``[in, out]``. ``two_stacks``: a decoder follows, whose layers are
    counted on. ``hooked``: the library wraps the model through an interface.
    """

    projections: Mapping[str, Projection]
    normed: bool | None
    first: bool = True
    pooler: bool = False
    heads: bool = True
    fan_in_fan_out: bool = False
    two_stacks: bool = False
    hooked: Interface | None = None


class Interface(Settings):
    """``adapter_interface.json``: the attributes by which the library finds its way in any model."""

    layer_self_attn: str
    layer_cross_attn: str | None
    layer_intermediate_proj: str
    layer_output_proj: str
    attn_q_proj: str | None = None
    attn_k_proj: str | None = None
    attn_v_proj: str | None = None
    attn_qkv_proj: str | None = None
    layer_pre_self_attn: str | None = None
    layer_pre_ffn: str | None = None
    layer_ln_1: str | None = None
    layer_ln_2: str | None = None


def _bert(query: str = "query", key: str = "key", value: str = "value") -> dict[str, Projection]:
    return {
        f"attention.self.{query}": "q",
        f"attention.self.{key}": "k",
        f"attention.self.{value}": "v",
        "intermediate.dense": "intermediate",
        "output.dense": "output",
    }


_DISTILBERT: dict[str, Projection] = {
    "attention.q_lin": "q",
    "attention.k_lin": "k",
    "attention.v_lin": "v",
    "ffn.lin1": "intermediate",
    "ffn.lin2": "output",
}
_ALBERT: dict[str, Projection] = {
    "attention.query": "q",
    "attention.key": "k",
    "attention.value": "v",
    "ffn": "intermediate",
    "ffn_output": "output",
}
#: the library's names are swapped here, and the gate has none
_LLAMA: dict[str, Projection] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "mlp.down_proj": "intermediate",
    "mlp.up_proj": "output",
}
_GPT2: dict[str, Projection] = {"attn.c_attn": "qkv", "mlp.c_fc": "intermediate", "mlp.c_proj": "output"}
_VIT: dict[str, Projection] = {
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
_T5: dict[str, Projection] = {
    "layer.0.SelfAttention.q": "q",
    "layer.0.SelfAttention.k": "k",
    "layer.0.SelfAttention.v": "v",
    "layer.1.DenseReluDense.wi": "intermediate",
    "layer.1.DenseReluDense.wi_1": "intermediate",
    "layer.1.DenseReluDense.wo": "output",
}
_BART: dict[str, Projection] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "fc1": "intermediate",
    "fc2": "output",
}

_T5_FAMILY = Family(_T5, normed=False, heads=False, two_stacks=True)
#: as adapters 1.3 wraps them by itself
_FAMILIES = {
    "albert": Family(_ALBERT, normed=True, pooler=True),
    "bart": Family(_BART, normed=True, heads=False, two_stacks=True),
    "bert": Family(_bert(), normed=True, pooler=True),
    "deberta-v2": Family(_bert("query_proj", "key_proj", "value_proj"), normed=True),
    "distilbert": Family(_DISTILBERT, normed=True),
    "electra": Family(_bert(), normed=True),
    "gpt2": Family(_GPT2, normed=False, first=False, fan_in_fan_out=True),
    "llama": Family(_LLAMA, normed=False, first=False),
    "mistral": Family(_LLAMA, normed=False, first=False),
    "mt5": _T5_FAMILY,
    "roberta": Family(_bert(), normed=True, pooler=True),
    "t5": _T5_FAMILY,
    "vit": Family(_VIT, normed=False, pooler=True),
    "xlm-roberta": Family(_bert(), normed=True, pooler=True),
}

_SANDWICH = (
    "the library puts its bottleneck in front of a norm that comes before the addition, "
    "and reads the last layer's norm in every layer (it binds it late)"
)
_RANDOM = (
    "the library gives a fused projection a random bias when the base has none: the model that the "
    "adapter was trained in may be lost"
)
#: model_type -> why none of its bottlenecks is what it was trained to be
_NO_BOTTLENECKS = {"gemma2": _SANDWICH, "gemma3_text": _SANDWICH}


#: behind an interface: a block's norms come before its layers, so that nothing follows the addition
_NORMS_BEFORE = frozenset(["gemma", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"])


def family_of(folder: Path, model_type: object) -> tuple[Family | None, list[Problem]]:
    """The family of an adapter's base.

    The library goes by an interface wherever one was given, and by its own wrapping elsewhere; it saves
    the interface beside the adapter.
    """
    path = folder / INTERFACE_FILE
    if path.exists():
        return _interface(path, model_type)
    if isinstance(model_type, str) and model_type in _FAMILIES:
        return _FAMILIES[model_type], []
    cause = f"no known family, and no {INTERFACE_FILE} that says how the library wrapped it"
    return None, [_refuse(model_type, cause, "copy the whole adapter folder")]


def no_bottlenecks(model_type: object) -> list[Problem]:
    """Why bottlenecks of a model type are refused whatever their config is."""
    why = _NO_BOTTLENECKS.get(str(model_type))
    return [] if why is None else [_refuse(model_type, why)]


def _refuse(model_type: object, cause: str, mend: str = "") -> Problem:
    return Problem(
        Code.UNSUPPORTED,
        "model_type",
        got=repr(model_type)[:80],
        expected="one of " + ", ".join(_FAMILIES),
        cause=cause,
        mend=mend or "train a PEFT LoRA, or an adapter on another base",
    )


def _interface(path: Path, model_type: object) -> tuple[Family | None, list[Problem]]:
    try:
        document: Any = load_json(path.read_bytes())
        interface = Interface.model_validate(document["interface"])
    except DuplicateKeyError as error:
        return None, [Problem(Code.DUPLICATE_KEY, f"{path.name}: key {error}", got="the same key twice")]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        got = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return None, [
            Problem(Code.BAD_CONFIG, path.name, got=got, expected="what AdapterModelInterface writes")
        ]
    problems = [
        refused(key, name, cause)
        for key, name, cause in (
            ("layer_cross_attn", interface.layer_cross_attn, "adapters on cross attention have no slot"),
            ("attn_qkv_proj", interface.attn_qkv_proj, _RANDOM),
        )
        if name
    ]
    if problems:
        return None, problems
    attention = interface.layer_self_attn
    named: tuple[tuple[str | None, Projection], ...] = (
        (interface.attn_q_proj, "q"),
        (interface.attn_k_proj, "k"),
        (interface.attn_v_proj, "v"),
    )
    projections = {f"{attention}.{name}": kind for name, kind in named if name is not None}
    projections[interface.layer_intermediate_proj] = "intermediate"
    projections[interface.layer_output_proj] = "output"
    normed = False if str(model_type) in _NORMS_BEFORE else None
    return Family(projections, normed=normed, heads=False, hooked=interface), []
