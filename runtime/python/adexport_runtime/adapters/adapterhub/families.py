"""How the library wraps each family of models: where its layers are, and what its heads read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...errors import Code, Problem
from ...files import DuplicateKeyError, load_json
from .settings import Settings

INTERFACE_FILE = "adapter_interface.json"

#: q, k, v, or all three as one (qkv); the two layers of the feed-forward part, in the library's words
Projection = Literal["q", "k", "v", "qkv", "intermediate", "output"]


class Family(NamedTuple):
    """What the reader needs to know of a ``model_type``.

    ``projections``: layers that take LoRA, by their path in a block. ``normed``: a LayerNorm follows the
    additions. ``first``: a classification head reads the first token (else the last). ``pooler``: or
    the pooled output, if its config says so. ``heads``: heads are read at all. ``fan_in_fan_out``:
    weights lie ``[in, out]``. ``two_stacks``: a decoder follows, whose layers are counted on.
    ``hooked``: the library wraps the model through an interface.
    """

    projections: Mapping[str, Projection]
    normed: bool
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
#: model_type -> why no adapter of it is what it was trained to be
_REFUSED = {
    "modernbert": "the library gives the fused projection a random bias when the base has none: "
    "the model that the adapter was trained in is lost",
}
#: model_type -> why none of its bottlenecks is
_NO_BOTTLENECKS = {"gemma2": _SANDWICH, "gemma3_text": _SANDWICH}


def family_of(folder: Path, model_type: object) -> tuple[Family | None, list[Problem]]:
    """The family of an adapter's base, from the library's own wrapping or the interface in the folder."""
    if (why := _REFUSED.get(str(model_type))) is not None:
        return None, [_refuse(model_type, why)]
    if isinstance(model_type, str) and model_type in _FAMILIES:
        return _FAMILIES[model_type], []
    path = folder / INTERFACE_FILE
    if not path.exists():
        return None, [
            _refuse(
                model_type,
                f"no known family, and no {INTERFACE_FILE} that says how the library wrapped it",
                "copy the whole adapter folder",
            )
        ]
    return _interface(path)


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


def _interface(path: Path) -> tuple[Family | None, list[Problem]]:
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
    if interface.layer_cross_attn:
        return None, [
            Problem(
                Code.UNSUPPORTED,
                "layer_cross_attn",
                got=interface.layer_cross_attn[:80],
                cause="adapters on cross attention have no slot",
            )
        ]
    attention = interface.layer_self_attn
    named: dict[str | None, Projection] = {
        interface.attn_q_proj: "q",
        interface.attn_k_proj: "k",
        interface.attn_v_proj: "v",
        interface.attn_qkv_proj: "qkv",
    }
    projections: dict[str, Projection] = {
        f"{attention}.{name}": kind for name, kind in named.items() if name is not None
    }
    projections[interface.layer_intermediate_proj] = "intermediate"
    projections[interface.layer_output_proj] = "output"
    return Family(projections, normed=False, first=False, heads=False, hooked=interface), []
