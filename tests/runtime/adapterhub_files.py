"""AdapterHub folders of random tensors, written as ``save_adapter`` writes them (adapters 1.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "adapter.safetensors"
HEAD_WEIGHTS = "model_head.safetensors"
NAME = "acme"
FEATURES = 16

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
    settings = {**SEQ_BN, **config}
    places = ["attention.output"] if settings["mh_adapter"] is True else []
    places += ["output"] if settings["output_adapter"] is True else []
    down = 1 if settings["ln_before"] is True else 0
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
            if settings[f"ln_{norm}"] is True:
                shapes |= {
                    f"{module}.adapter_norm_{norm}.{half}": (FEATURES,) for half in ("weight", "bias")
                }
        if settings["scaling"] in ("learned", "channel"):
            shapes[f"{module}.scaling"] = (1,) if settings["scaling"] == "learned" else (FEATURES,)
    return write(folder, document(settings, **(top or {})), randoms(shapes))


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
