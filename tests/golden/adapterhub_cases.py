"""The cases of ``tests/golden/adapterhub``: which adapter, on which base, and what is to become of it.

Runs in the environment of ``requirements/adapterhub.txt``; ``make_adapterhub.py`` writes what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adapters import (
    AdapterConfig,
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DiReftConfig,
    DoRAConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    NoReftConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
    UniPELTConfig,
    VeraConfig,
)
from adapters.configuration.adapter_config import DvoRAConfig, MTLLoRAConfig

SERVE, REFUSE, BIN = "serve", "refuse", "bin"
GATE = "the gate is a mean over all positions: a row depends on the padded length; or served later"
ACTIVATION = "an activation without a slot; or served later"


@dataclass(frozen=True)
class Case:
    """One folder: an adapter of ``config`` on ``base``, with a head or none."""

    base: str
    name: str
    config: AdapterConfig | None
    family: str
    kind: str = SERVE
    why: str = ""
    task: str = "feature-extraction"
    adapter: str = "golden"
    head: tuple[str, dict[str, Any]] | None = None
    # a model class with flexible heads: its keys have the base's prefix
    flexible: bool = False
    # the type the adapter is stored in
    dtype: str = "float32"
    # what the library cannot save as safetensors although it is no case of "bin"
    shares_memory: bool = False
    # keys of adapter_config.json ("config.r": nested) as an older version wrote them; None drops one
    edit: dict[str, str | None] = field(default_factory=dict)
    # parts of tensor names as an older version wrote them
    rename: dict[str, str] = field(default_factory=dict)
    # what other than one adapter is saved: "fusion", or a transformers model with its own head
    special: str = ""

    @property
    def safe(self) -> bool:
        return self.kind != BIN and not self.shares_memory


def seq(**options: Any) -> BnConfig:
    return SeqBnConfig(**{"reduction_factor": 4, **options})


def double(**options: Any) -> BnConfig:
    return DoubleSeqBnConfig(**{"reduction_factor": 4, **options})


def par(**options: Any) -> BnConfig:
    return ParBnConfig(**options)


def compacter(**options: Any) -> BnConfig:
    return CompacterConfig(**{"reduction_factor": 4, **options})


def both(**options: Any) -> BnConfig:
    """Pfeiffer's order at both sites, so that an option shows at both."""
    return seq(mh_adapter=True, **options)


def presets() -> dict[str, BnConfig]:
    return {
        "seq_bn": seq(),
        "seq_bn-default": SeqBnConfig(),
        "double_seq_bn": double(),
        "double_seq_bn-default": DoubleSeqBnConfig(),
        "par_bn": par(),
        "scaled_par_bn": par(scaling="learned"),
        "adapter_plus": AdapterPlusConfig(reduction_factor=4),
        "adapter_plus-default": AdapterPlusConfig(),
        "compacter": compacter(),
        "compacter++": CompacterPlusPlusConfig(reduction_factor=4),
    }


def bottleneck_options() -> dict[str, BnConfig]:
    """Options one at a time, and those that touch one another together."""
    cases = {
        "mh_only": seq(mh_adapter=True, output_adapter=False),
        "mh_only-houlsby": double(output_adapter=False),
        "output_only-houlsby": double(mh_adapter=False),
        "mh_and_output": both(),
        "ln_after": both(ln_after=True),
        "ln_after-houlsby": double(ln_after=True),
        "ln_after-residual_inside": both(ln_after=True, adapter_residual_before_ln=True),
        "ln_after-residual_inside-houlsby": double(ln_after=True, adapter_residual_before_ln=True),
        "residual_inside": both(adapter_residual_before_ln=True),
        "ln_after-residual_after_ln": both(ln_after=True, residual_before_ln=False),
        "parallel-both": par(mh_adapter=True),
        "parallel-open": par(mh_adapter=True, original_ln_after=False),
        "parallel-ln_after": par(mh_adapter=True, ln_after=True),
        "parallel-open-ln_after": par(original_ln_after=False, ln_after=True),
        # the library does not look at these three when parallel
        "parallel-ignored": par(
            original_ln_before=True,
            residual_before_ln=False,
            adapter_residual_before_ln=True,
            ln_after=True,
        ),
        "scaling-float": both(scaling=0.5),
        "scaling-learned": both(scaling="learned"),
        "scaling-channel": both(scaling="channel"),
        "scaling-channel-ln_after": both(scaling="channel", ln_after=True),
        "parallel-scaling-channel": par(mh_adapter=True, scaling="channel"),
        "reduction-per_layer": both(reduction_factor={"0": 4, "default": 8}),
        "reduction-each_layer": double(reduction_factor={"0": 2, "1": 16}),
        # 32 wide
        "reduction-up": both(reduction_factor=0.5),
        # 16 // 3.2 is 4, not 5
        "reduction-float": both(reduction_factor=3.2),
        "leave_out-first": both(leave_out=[0]),
        "leave_out-last-houlsby": double(leave_out=[1]),
        "dropout": both(dropout=0.1),
        "cross_adapter": both(cross_adapter=True),
        "combination-1": double(ln_after=True, scaling="learned", non_linearity="tanh", leave_out=[0]),
        "combination-2": both(
            ln_after=True,
            adapter_residual_before_ln=True,
            residual_before_ln=False,
            original_ln_after=False,
            scaling="channel",
            non_linearity="gelu",
        ),
        "combination-3": par(
            mh_adapter=True,
            ln_after=True,
            scaling="channel",
            non_linearity="silu",
            reduction_factor={"1": 8, "default": 4},
        ),
        "activation-uppercase": both(non_linearity="ReLU"),
    }
    for before in (True, False):
        for after in (True, False):
            for residual in (True, False):
                name = f"order-{'b' if before else '-'}{'a' if after else '-'}{'r' if residual else '-'}"
                cases[name] = both(
                    original_ln_before=before, original_ln_after=after, residual_before_ln=residual
                )
    for activation in ("relu", "gelu", "gelu_new", "silu", "swish", "tanh", "linear"):
        cases[f"activation-{activation}"] = both(non_linearity=activation)
    return cases


def post_add() -> dict[str, BnConfig]:
    """Only where the layer has a norm after the sum (BERT): on others the library raises."""
    return {
        "post_add": both(residual_before_ln="post_add"),
        "post_add-open": both(residual_before_ln="post_add", original_ln_after=False),
        "post_add-ln_after": both(residual_before_ln="post_add", ln_after=True),
        "post_add-ln_after-residual_inside": both(
            residual_before_ln="post_add", ln_after=True, adapter_residual_before_ln=True
        ),
    }


def hypercomplex() -> dict[str, BnConfig]:
    return {
        "phm-own_rule": compacter(shared_phm_rule=False),
        "phm-factorized_rule": compacter(factorized_phm_rule=True),
        "phm-own_factorized_rule": compacter(shared_phm_rule=False, factorized_phm_rule=True),
        "phm-full_W": compacter(factorized_phm_W=False),
        "phm-full_W-own_rule": compacter(factorized_phm_W=False, shared_phm_rule=False),
        "phm-shared_W": compacter(shared_W_phm=True),
        "phm-shared_W-own_rule": compacter(shared_W_phm=True, shared_phm_rule=False),
        "phm-shared_W-factorized_rule": compacter(shared_W_phm=True, factorized_phm_rule=True),
        "phm-rank": compacter(phm_rank=2),
        "phm-no_bias": compacter(phm_bias=False),
        "phm-dim": compacter(phm_dim=2),
        "phm-fixed_rule": compacter(learn_phm=False),
        "phm-per_layer": compacter(reduction_factor={"0": 2, "default": 4}),
        "phm-parallel": par(phm_layer=True, init_weights="bert", mh_adapter=True),
        "phm-ln_after-scaling": compacter(ln_after=True, scaling="channel", leave_out=[0]),
    }


def ln_before() -> dict[str, BnConfig]:
    """The library cannot save these as safetensors: the norm is in memory under two names."""
    return {
        "ln_before": both(ln_before=True),
        "ln_before-houlsby": double(ln_before=True),
        "ln_before-ln_after": both(ln_before=True, ln_after=True),
        "ln_before-parallel": par(mh_adapter=True, ln_before=True),
        "ln_before-phm": compacter(ln_before=True),
        "ln_before-open-channel": both(ln_before=True, original_ln_after=False, scaling="channel"),
    }


def refused_bottlenecks() -> Iterator[tuple[str, AdapterConfig, str, str]]:
    for activation in ("sigmoid", "leaky_relu", "leakyrelu", "mish", "quick_gelu"):
        yield f"activation-{activation}", both(non_linearity=activation), "bottleneck", ACTIVATION
    yield "gating", both(use_gating=True), "bottleneck", GATE
    yield "gating-parallel", par(mh_adapter=True, use_gating=True), "bottleneck", GATE
    inverse = "an invertible adapter after the embeddings has no slot"
    yield "seq_bn_inv", SeqBnInvConfig(reduction_factor=4), "invertible", inverse
    yield "double_seq_bn_inv", DoubleSeqBnInvConfig(reduction_factor=4), "invertible", inverse
    yield (
        "glow",
        SeqBnInvConfig(reduction_factor=4, inv_adapter="glow"),
        "invertible",
        "the library's own GLOW block does not run on [rows, tokens, hidden]",
    )


def other_methods() -> Iterator[tuple[str, AdapterConfig, str, str]]:
    prefix = PrefixTuningConfig(prefix_length=3, bottleneck_size=4)
    yield "prefix_tuning", prefix, "prefix_tuning", "more keys and values in attention have no slot"
    yield (
        "prefix_tuning_flat",
        PrefixTuningConfig(flat=True, prefix_length=3),
        "prefix_tuning",
        "more keys and values in attention have no slot",
    )
    for name, config in (
        ("loreft", LoReftConfig(r=2)),
        ("noreft", NoReftConfig(r=2)),
        ("direft", DiReftConfig(r=2)),
    ):
        yield name, config, "reft", "an intervention after a layer, at some positions only, has no slot"
    union = "a union of methods"
    yield "mam", MAMConfig(prefix, par()), "union", union
    yield "unipelt", UniPELTConfig(prefix, seq(), LoRAConfig(r=2)), "union", union
    yield (
        "union-bottlenecks",
        ConfigUnion(
            double(output_adapter=False, reduction_factor=2), seq(non_linearity="gelu", reduction_factor=8)
        ),
        "union",
        union + "; these two could be served: one site each",
    )
    yield "union-lora", ConfigUnion(LoRAConfig(r=2), seq()), "union", union + "; these two could be served"
    yield (
        "mtl_lora",
        MTLLoRAConfig(r=2, n_up_projection=2),
        "mtl_lora",
        "many up-projections with learned weights",
    )


def everywhere(kind: type[LoRAConfig] = LoRAConfig, **options: Any) -> LoRAConfig:
    return kind(
        **{
            "attn_matrices": ["q", "k", "v"],
            "intermediate_lora": True,
            "output_lora": True,
            **options,
        }
    )


def lora() -> dict[str, tuple[str, LoRAConfig]]:
    return {
        "lora": ("lora", LoRAConfig(r=2, alpha=2)),
        "lora-default": ("lora", LoRAConfig()),
        "lora-alpha": ("lora", LoRAConfig(r=4, alpha=10)),
        "lora-qkv": ("lora", LoRAConfig(r=2, alpha=3, attn_matrices=["q", "k", "v"])),
        "lora-k": ("lora", LoRAConfig(r=2, alpha=3, attn_matrices=["k"])),
        "lora-everywhere": ("lora", everywhere(r=3, alpha=5)),
        "lora-intermediate": ("lora", LoRAConfig(r=2, selfattn_lora=False, intermediate_lora=True)),
        "lora-output": ("lora", LoRAConfig(r=2, selfattn_lora=False, output_lora=True)),
        "lora-leave_out": ("lora", everywhere(r=2, leave_out=[1])),
        "lora-dropout": ("lora", LoRAConfig(r=2, alpha=4, dropout=0.1)),
        "ia3": ("ia3", IA3Config()),
        "ia3-everywhere": ("ia3", everywhere(IA3Config)),
        "ia3-alpha": ("ia3", IA3Config(alpha=2)),
        "ia3-leave_out": ("ia3", IA3Config(leave_out=[0])),
    }


def dora() -> dict[str, tuple[str, LoRAConfig]]:
    """Not on GPT-2, whose class refuses it."""
    return {
        "dora": ("dora", DoRAConfig(r=2, alpha=2)),
        "dora-alpha": ("dora", DoRAConfig(r=2, alpha=5)),
        "dora-everywhere": ("dora", everywhere(DoRAConfig, r=2, alpha=3)),
    }


def vera(matrices: list[str]) -> dict[str, tuple[str, LoRAConfig]]:
    """Shared factors have the shape of the first site: all sites must have it."""
    options: dict[str, Any] = {"attn_matrices": matrices, "vera_d": 0.1, "vera_b": 0.1}
    return {
        "vera": ("vera", VeraConfig(r=3, alpha=3, **options)),
        "vera-alpha": ("vera", VeraConfig(r=2, alpha=5, **options)),
        "dvora": ("dvora", DvoRAConfig(r=2, alpha=3, **options)),
    }
