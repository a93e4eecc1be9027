"""LoRA (arXiv:2106.09685) and what PEFT builds on it; the equations are those of ``peft.tuners.lora``.

With ``s`` the scaling, ``W`` and ``b`` the base's weight and bias::

    LoRA                    y = W x + b + s B A x
    lora_bias               y = W x + b + s (B A x + b_B)
    DoRA (2402.09353)       y = g (V x) + b        V = W + s B A,  g = magnitude / the norms of V's rows
    PiSSA (2404.02948)      W becomes W - s B0 A0, where s B0 A0 is the closest to W of rank r
    OLoRA (2406.01775)      W becomes W - s Q R, of the first columns of Q and rows of R

The last two change the base when an adapter is made, and again whenever it is loaded. OLoRA decomposes
the weight as the checkpoint stores it, which is ``[in, out]`` for GPT-2's Conv1D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...errors import Code, Problem
from ...matching import pattern_value
from ...tensors import Array
from ..neutral import FrozenLinear, LinearRecipe, LinearUpdate, LinearWeights
from .config import Count, Finite, RankedConfig, Refusals
from .layer import Layer, single
from .method import Method
from .numeric import block_diagonal, leading, principal

_ORDINARY = "train an ordinary LoRA"

#: initialisations that leave the base as it is
_PLAIN = ("gaussian", "eva", "orthogonal", "mica")
#: initialisations that change the base, and can be repeated
_REPEATABLE = ("pissa", "olora")
#: those that PEFT knows in capitals, too
_ANY_CASE = ("gaussian", "mica", "olora")
_CONVERT = "save again with save_pretrained(path_initial_model_for_weight_conversion=…)"

#: layers whose weight may be that of the embedding, which PEFT then changes as well
_TIED = ("lm_head", "embed_out", "decoder", "output_projection", "vocab_projector")

#: settings that PEFT takes one at a time
_VARIANTS = ("use_dora", "use_bdlora", "velora_config")


class BdLora(BaseModel):
    """BD-LoRA: which modules have A, and which B, block by block."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: Count = 1
    match_strict: bool = True

    def blocked(self, module: str) -> str | None:
        """Which of the two halves of a module is stored block by block."""
        for half, names in (("lora_A", self.target_modules_bd_a), ("lora_B", self.target_modules_bd_b)):
            if any(name in module for name in names or ()):
                return half
        return None


class LoraConfig(RankedConfig):
    """The keys of a LoRA config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "fan_in_fan_out",
            "lora_dropout",
            "megatron_config",
            "megatron_core",
            "loftq_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "qalora_group_size",
            "runtime_config",
        ]
    )
    refused: ClassVar[Refusals] = {
        "trainable_token_indices": ("trained embedding rows have no slot", "train without them"),
        "target_parameters": ("adapters on bare parameters (MoE experts) have no slot", "target modules"),
        "alora_invocation_tokens": ("aLoRA acts on some positions only", _ORDINARY),
        "layer_replication": ("it changes the depth of the base", "build a bundle of the deepened model"),
        "use_qalora": ("QALoRA pools the input of A", _ORDINARY),
        "arrow_config": ("Arrow routes each token", _ORDINARY),
        "monteclora_config": ("MonteCLoRA samples its weights", _ORDINARY),
        "kasa_config": ("KaSA truncates the base's weights", _ORDINARY),
        "ensure_weight_tying": ("tied adapters on embedding and head have no slot", "train without it"),
    }

    lora_alpha: Finite
    use_rslora: bool = False
    alpha_pattern: dict[str, Finite] | None = None
    init_lora_weights: bool | str | None = True
    lora_bias: bool = False
    use_dora: bool = False
    use_bdlora: BdLora | None = None
    velora_config: dict[str, Any] | None = None

    def scaling(self, module: str) -> float:
        """Alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        rank = self.rank(module)
        alpha = pattern_value(dict(self.alpha_pattern or {}), module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def mutation(self) -> str | None:
        """The initialisation, if it changes the base's weights."""
        init = _start(self.init_lora_weights)
        return init if init in _REPEATABLE else None

    @classmethod
    def refusals(cls, data: Mapping[str, Any]) -> list[Problem]:
        """Initialisations that cannot be repeated, and settings that PEFT does not combine."""
        problems = super().refusals(data)
        init = _start(data.get("init_lora_weights"))
        if init and init not in (*_PLAIN, *_REPEATABLE):
            problems.append(_refused_start(init))
        variants = [key for key in _VARIANTS if data.get(key)] + ["mica"] * (init == "mica")
        if data.get("use_dora") and data.get("lora_bias"):
            variants.append("lora_bias")
        if len(variants) > 1:
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    " and ".join(variants),
                    got="together",
                    expected="one of them",
                    cause="PEFT 0.21 does not combine them: an edited config",
                    mend="put the config beside the file that it was saved with",
                )
            )
        return problems


def _start(init: object) -> str:
    """The name of an initialisation; empty for PEFT's own default, and for none."""
    if not isinstance(init, str):
        return ""
    return init.lower() if init.lower() in _ANY_CASE else init


def _refused_start(init: str) -> Problem:
    if init.startswith(("pissa", "corda", "loftq", "lora_ga")):
        cause = (
            "a randomised decomposition of the base, which cannot be repeated"
            if init.startswith("pissa")
            else "this initialisation changes the base's weights by data that is not in the file"
        )
        return Problem(Code.UNSUPPORTED, "init_lora_weights", got=repr(init), cause=cause, mend=_CONVERT)
    return Problem(
        Code.UNSUPPORTED,
        "init_lora_weights",
        got=repr(init),
        expected=", ".join(("true", "false", *_PLAIN, *_REPEATABLE)),
        cause="saved by a newer PEFT: whether it changes the base is not known",
        mend=_CONVERT,
    )


def update(layer: Layer, config: LoraConfig) -> LinearUpdate:
    """One layer of a LoRA: A ``[rank, in]``, B ``[out, rank]``."""
    blocked = config.use_bdlora.blocked(layer.module) if config.use_bdlora else None
    _check_parts(layer, config, blocked)
    a, b = _dense(layer, config, blocked)
    scaling = config.scaling(layer.module)
    if config.mutation is not None and layer.module.rpartition(".")[2] in _TIED:
        raise layer.refusal(
            Problem(
                Code.UNSUPPORTED,
                layer.module,
                got=f"init_lora_weights={config.mutation!r}",
                cause="the layer may share its weight with the embedding, which PEFT then changes as well",
                mend=_CONVERT,
            )
        )
    names = {"lora_A": layer.name("lora_A.weight"), "lora_B": layer.name("lora_B.weight")}
    factors = {}
    if "lora_B.bias" in layer.tensors:
        names["bias"] = layer.name("lora_B.bias")
        factors["bias"] = single(layer.values("lora_B.bias") * scaling)
    if config.mutation is None and not config.use_dora:
        factors |= {"lora_A": single(a.T), "lora_B": single(b.T * scaling)}
        return LinearWeights(factors, names)
    kinds = {"lora_A", "lora_B", *factors}
    if config.use_dora:
        kinds |= {"scale_out", "bias"}

    def finish(base: FrozenLinear) -> LinearWeights:
        layer.fits(base, "lora_A.weight", into=a.shape[1])
        layer.fits(base, "lora_B.weight", out=b.shape[0])
        left, right = b * scaling, a
        if config.mutation is not None:
            first, second = _taken_out(layer, base, config, scaling)
            left, right = np.hstack([left, -first]), np.vstack([right, second])
        whole = dict(factors)
        called = dict(names)
        if config.use_dora:
            name = layer.name("lora_magnitude_vector")
            magnitude = layer.values("lora_magnitude_vector")
            norms = np.linalg.norm(base.weight.astype(np.float64) + left @ right, axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = magnitude / norms
            whole["scale_out"], called["scale_out"] = single(scale), name
            if base.bias is not None:
                whole["bias"], called["bias"] = single((1 - scale) * base.bias), name
        return LinearWeights({**whole, "lora_A": single(right.T), "lora_B": single(left.T)}, called)

    rank = a.shape[0] * (1 if config.mutation is None else 2)
    return LinearRecipe(frozenset(kinds), rank, tuple(layer.names.values()), finish)


def _check_parts(layer: Layer, config: LoraConfig, blocked: str | None) -> None:
    """Which tensors there are and which there must be, and their shapes."""
    needed: dict[str, tuple[str, ...]] = {"lora_A.weight": ("rank", "in"), "lora_B.weight": ("out", "rank")}
    if blocked is not None:
        needed[f"{blocked}.weight"] = ("rank", "in block") if blocked == "lora_A" else ("out", "rank block")
    if config.use_dora:
        needed["lora_magnitude_vector"] = ("out",)
    if config.lora_bias and blocked != "lora_B":
        needed["lora_B.bias"] = ("out",)
    elsewhere = {"lora_velora_embed"} if config.velora_config else set()
    surplus = [
        layer.unexpected(part, "the config says nothing of it")
        for part in layer.tensors.keys() - needed.keys() - elsewhere
    ]
    if surplus:
        raise layer.refusal(*surplus)
    layer.need(*needed)
    layer.sizes(needed)


def _dense(layer: Layer, config: LoraConfig, blocked: str | None) -> tuple[Array, Array]:
    """A and B as matrices, of the rank that the config says."""
    a, b = layer.values("lora_A.weight"), layer.values("lora_B.weight")
    if config.use_bdlora is not None and blocked is not None:
        blocks = config.use_bdlora.nblocks
        rows = (a if blocked == "lora_A" else b).shape[0]
        if rows % blocks:
            raise layer.refusal(
                Problem(
                    Code.WRONG_SHAPE,
                    layer.names[f"{blocked}.weight"],
                    got=f"{rows} rows",
                    expected=f"a multiple of {blocks}, as the config's nblocks says",
                )
            )
        a = block_diagonal(a, blocks) if blocked == "lora_A" else a
        b = block_diagonal(b, blocks) if blocked == "lora_B" else b
    layer.expect("rank", a.shape[0], config.rank(layer.module))
    if a.shape[0] != b.shape[1]:
        got = f"rank {a.shape[0]} in lora_A and {b.shape[1]} in lora_B"
        raise layer.refusal(Problem(Code.RANK_MISMATCH, layer.module, got=got, expected="the same rank"))
    return a, b


def _taken_out(layer: Layer, base: FrozenLinear, config: LoraConfig, scaling: float) -> tuple[Array, Array]:
    """What PEFT takes out of the base's weight, as a product ``[out, rank] @ [rank, in]``."""
    weight = base.weight.astype(np.float64)
    rank, transposed = config.rank(layer.module), base.transposed
    if config.mutation == "pissa":
        # the scaling cancels: PEFT divides the singular values by it, and multiplies the product
        found = principal(weight, rank) if scaling > 0 else None
    elif transposed and weight.shape[0] != weight.shape[1]:
        found = None  # PEFT decomposes the weight as stored, and its factors do not fit the layer
    else:
        found = leading(weight.T if transposed else weight, rank)
        if found is not None:
            q, r = found
            found = (r.T * scaling, q.T) if transposed else (q * scaling, r)
    if found is None:
        raise layer.refusal(
            Problem(
                Code.UNSUPPORTED,
                layer.module,
                got=f"init_lora_weights={config.mutation!r} with rank {rank} and scaling {scaling:g}",
                cause="the base's weight does not determine what this takes out of it",
                mend=_CONVERT,
            )
        )
    return found


LORA = Method(
    config=LoraConfig,
    parts={
        "lora_A.weight": "lora_A.weight",
        "lora_B.weight": "lora_B.weight",
        "lora_B.bias": "lora_B.bias",
        "lora_magnitude_vector": "lora_magnitude_vector",
        "lora_magnitude_vector.weight": "lora_magnitude_vector",
        "lora_velora_embed": "lora_velora_embed",
    },
    update=update,
)
