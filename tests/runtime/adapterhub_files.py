"""AdapterHub folders of random tensors, as ``save_adapter`` writes them, and what the reader finds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from adexport_runtime.adapters import NeutralAdapter, read_adapter
from adexport_runtime.errors import AdapterError, Code, Problem

WEIGHTS = "adapter.safetensors"
HEAD_WEIGHTS = "model_head.safetensors"
NAME = "acme"
FEATURES = 16

OUTPUT = "encoder.layer.{}.output"
DOWN = OUTPUT + f".adapters.{NAME}.adapter_down.0.weight"

Tensors = dict[str, np.ndarray]

#: ``SeqBnConfig(reduction_factor=4)``
SEQ_BN: dict[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 4,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
#: ``LoRAConfig(r=2, alpha=3)``
LORA: dict[str, Any] = {
    "alpha": 3,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.0,
    "dtype": None,
    "init_weights": "lora",
    "init_weights_seed": None,
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 2,
    "selfattn_lora": True,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
#: ``adapter_interface.json`` of Qwen2
INTERFACE = {
    "attn_k_proj": "k_proj",
    "attn_q_proj": "q_proj",
    "attn_qkv_proj": None,
    "attn_v_proj": "v_proj",
    "layer_cross_attn": None,
    "layer_intermediate_proj": "mlp.up_proj",
    "layer_ln_1": None,
    "layer_ln_2": None,
    "layer_output_proj": "mlp.down_proj",
    "layer_pre_ffn": "post_attention_layernorm",
    "layer_pre_self_attn": "input_layernorm",
    "layer_self_attn": "self_attn",
}
#: of the keys of every family, one location after the other
KEYS: dict[str, tuple[str, str]] = {
    "bert": ("bert.encoder.layer.{}.attention.output", "bert.encoder.layer.{}.output"),
    "roberta": ("encoder.layer.{}.attention.output", "encoder.layer.{}.output"),
    "xlm-roberta": ("roberta.encoder.layer.{}.attention.output", "roberta.encoder.layer.{}.output"),
    "electra": ("electra.encoder.layer.{}.attention.output", "electra.encoder.layer.{}.output"),
    "deberta-v2": ("deberta.encoder.layer.{}.attention.output", "deberta.encoder.layer.{}.output"),
    "distilbert": ("transformer.layer.{}.attention_adapters", "transformer.layer.{}.output_adapters"),
    "llama": ("model.layers.{}.attention_adapters", "model.layers.{}.output_adapters"),
    "mistral": ("layers.{}.attention_adapters", "layers.{}.output_adapters"),
    "gpt2": ("transformer.h.{}.attention_adapters", "transformer.h.{}.output_adapters"),
    "vit": ("encoder.layer.{}.attention_adapters", "encoder.layer.{}.output.output_adapters"),
    "t5": ("encoder.block.{}.layer.0", "encoder.block.{}.layer.1"),
    "bart": ("encoder.layers.{}.attention_adapters", "encoder.layers.{}.output_adapters"),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.{}.attention.attention_adapters",
        "encoder.albert_layer_groups.0.albert_layers.{}.output_adapters",
    ),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def randoms(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Float32 tensors of the given shapes."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def document(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """An ``adapter_config.json`` of a tiny BERT; None removes a key of the top."""
    whole = {
        "config": dict(config),
        "hidden_size": FEATURES,
        "model_class": "BertModel",
        "model_name": "tiny-bert",
        "model_type": "bert",
        "name": NAME,
        "version": "adapters.1.3.0",
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def write(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """A folder with a config and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)
    return folder


def seq_bn(folder: Path, top: Mapping[str, Any] | None = None, **config: Any) -> Path:
    """A bottleneck of width 4 behind the feed-forward part of two layers, with changes to its config.

    The tensors are those of the unchanged config, but for norms and scalings that the changes bring.
    """
    chosen = {**SEQ_BN, **config}
    places = ["attention.output"] if chosen["mh_adapter"] is True else []
    places += ["output"] if chosen["output_adapter"] is True else []
    down = 1 if chosen["ln_before"] is True else 0
    shapes: dict[str, tuple[int, ...]] = {}
    for place in [f"encoder.layer.{layer}.{place}" for layer in (0, 1) for place in places]:
        module = f"{place}.adapters.{NAME}"
        shapes |= {
            f"{module}.adapter_down.{down}.weight": (4, FEATURES),
            f"{module}.adapter_down.{down}.bias": (4,),
            f"{module}.adapter_up.weight": (FEATURES, 4),
            f"{module}.adapter_up.bias": (FEATURES,),
        }
        for norm in ("before", "after"):
            if chosen[f"ln_{norm}"] is True:
                shapes |= {
                    f"{module}.adapter_norm_{norm}.{half}": (FEATURES,) for half in ("weight", "bias")
                }
        if chosen["scaling"] in ("learned", "channel"):
            shapes[f"{module}.scaling"] = (1,) if chosen["scaling"] == "learned" else (FEATURES,)
    return write(folder, document(chosen, **(top or {})), randoms(shapes))


def loras(
    folder: Path, modules: Mapping[str, Mapping[str, tuple[int, ...]]], top: Any = None, **config: Any
) -> Path:
    """LoRA tensors by module and part, with changes to the config."""
    shapes = {
        f"{module}.loras.{NAME}.{part}": shape
        for module, parts in modules.items()
        for part, shape in parts.items()
    }
    return write(folder, document({**LORA, **config}, **(top or {})), randoms(shapes))


def tensors_of(folder: Path, name: str = WEIGHTS) -> Tensors:
    """The tensors of a folder."""
    return load_file(folder / name)


def edit(folder: Path, name: str = WEIGHTS, /, **changes: np.ndarray | None) -> Path:
    """Set tensors of a file; None removes one."""
    kept = {**tensors_of(folder, name), **changes}
    save_file({key: value for key, value in kept.items() if value is not None}, folder / name)
    return folder


def read(folder: Path) -> NeutralAdapter:
    """An adapter without problems."""
    adapter = read_adapter(folder)
    assert adapter.problems == ()
    return adapter


def culprits(folder: Path) -> set[tuple[Code, str]]:
    """What is wrong with an adapter: raised, or gathered for ``bind``."""
    return {(problem.code, problem.subject) for problem in problems(folder)}


def problems(folder: Path) -> tuple[Problem, ...]:
    try:
        return read_adapter(folder).problems
    except AdapterError as error:
        return error.problems


def bottleneck(module: str, name: str = NAME, width: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.adapters.{name}.adapter_down.0.weight": (width, FEATURES),
        f"{module}.adapters.{name}.adapter_down.0.bias": (width,),
        f"{module}.adapters.{name}.adapter_up.weight": (FEATURES, width),
        f"{module}.adapters.{name}.adapter_up.bias": (FEATURES,),
    }


def at(
    folder: Path, modules: Mapping[str, int], top: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """Bottlenecks at the given modules, of the given widths."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module, width in modules.items():
        shapes |= bottleneck(module, (top or {}).get("name", NAME), width)
    return write(folder, document({**SEQ_BN, **config}, **(top or {})), randoms(shapes))


def compacter(folder: Path, top: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A hypercomplex bottleneck of width 8 in two layers."""
    config = {**SEQ_BN, "phm_layer": True, "reduction_factor": 2, **changes}
    n, rank = config["phm_dim"], config["phm_rank"]

    def rule(path: str) -> dict[str, tuple[int, ...]]:
        if config["factorized_phm_rule"]:
            return {f"{path}_left": (n, n, 1), f"{path}_right": (n, 1, n)}
        return {path: (n, n, n)}

    def matrix(path: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
        if config["factorized_phm_W"]:
            return {f"{path}_left": (n, into // n, rank), f"{path}_right": (n, rank, out // n)}
        return {path: (n, into // n, out // n)}

    sides = {"down": (FEATURES, 8), "up": (8, FEATURES)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (0, 1):
        for side, path in (("down", "adapter_down.0"), ("up", "adapter_up")):
            where = f"bert.{OUTPUT.format(layer)}.adapters.{NAME}.{path}"
            if not config["shared_phm_rule"]:
                shapes |= rule(f"{where}.phm_rule")
            if not config["shared_W_phm"]:
                shapes |= matrix(f"{where}.W", *sides[side])
            if config["phm_bias"]:
                shapes[f"{where}.b"] = (sides[side][1],)
    shared = f"bert.shared_parameters.{NAME}"
    if config["shared_phm_rule"]:
        shapes |= rule(f"{shared}.phm_rule")
    if config["shared_W_phm"]:
        for side, (into, out) in sides.items():
            shapes |= matrix(f"{shared}.W_{side}", into, out)
    return write(folder, document(config, **(top or {})), randoms(shapes))
