"""The cases of ``tests/golden/adapterhub`` with a prediction head, and the list of all cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import adapterhub_cases as cases
from adapterhub_cases import BIN, GATE, REFUSE, Case, both, double, everywhere, par, seq
from adapters import (
    AdapterConfig,
    BnConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    PromptTuningConfig,
    VeraConfig,
)

INCOMPLETE = (
    "the shared tensors are not in the file: from a class without a prefix (BertModel, not "
    "BertAdapterModel) the library forgets them, and takes random ones when it loads the file"
)
LABELS = {3: ("negative", "neutral", "positive"), 5: ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")}


def heads(base: str) -> Iterator[Case]:
    pooled = base in ("bert", "roberta")
    text, token, span = "text-classification", "token-classification", "question-answering"
    small: AdapterConfig = LoRAConfig(r=2, alpha=4)
    names = {count: dict(enumerate(labels)) for count, labels in LABELS.items()}

    def head(
        name: str,
        task: str,
        layers: str,
        options: dict[str, Any],
        config: AdapterConfig | None = None,
        **more: Any,
    ) -> Case:
        config = config or seq()
        family = "lora" if isinstance(config, LoRAConfig) else "bottleneck"
        return Case(
            base, f"head-{name}", config, family, task=task, head=(layers, options), flexible=True, **more
        )

    yield head("classification", text, "classification", {"num_labels": 2})
    yield head(
        "classification-lora", text, "classification", {"num_labels": 5, "id2label": names[5]}, small
    )
    yield head(
        "classification-1_layer",
        text,
        "classification",
        {"num_labels": 3, "layers": 1, "id2label": names[3]},
    )
    yield head("tagging", token, "tagging", {"num_labels": 5, "id2label": names[5]})
    yield head("question_answering", span, "question_answering", {}, small)
    if base in ("roberta", "distilbert"):
        return
    yield head(
        "classification-relu",
        text,
        "classification",
        {"num_labels": 3, "activation_function": "relu", "id2label": names[3]},
        double(),
    )
    yield head(
        "classification-3_layers",
        text,
        "classification",
        {"num_labels": 5, "layers": 3},
        double(),
        kind="refuse",
        why="a head slot carries one or two layers",
    )
    # without an activation the second linear is heads.N.3, not .4
    yield head(
        "classification-no_activation",
        text,
        "classification",
        {"num_labels": 2, "activation_function": None},
    )
    yield head("tagging-2_layers", token, "tagging", {"num_labels": 3, "layers": 2}, small)
    yield head("question_answering-2_layers", span, "question_answering", {"layers": 2}, double())
    yield head("multilabel", text, "multilabel_classification", {"num_labels": 3})
    if pooled:
        yield head(
            "classification-pooler",
            text,
            "classification",
            {"num_labels": 5, "use_pooler": True, "layers": 1, "id2label": names[5]},
            small,
        )
        yield head("classification-pooler-2_layers", text, "classification", {"use_pooler": True}, double())
        refused = {"kind": REFUSE, "why": "rows are choices of one question: no row stands alone"}
        yield head("multiple_choice", text, "multiple_choice", {"num_choices": 2}, **refused)
    lm = "masked_lm" if pooled else "causal_lm"
    later = "a language model head; or served later"
    yield head(lm, lm.replace("_", "-"), lm, {}, kind=REFUSE, why=later)


def plain(base: str, kinds: Mapping[str, Any], **more: Any) -> Iterator[Case]:
    """Bottlenecks by name, or (family, config) by name."""
    for name, config in kinds.items():
        family, config = config if isinstance(config, tuple) else ("bottleneck", config)
        options = {"flexible": True, **more} if shares(config) else more
        yield Case(base, name, config, family, **options)


def shares(config: AdapterConfig) -> bool:
    """Whether layers share tensors, which the library saves only from some classes (see INCOMPLETE)."""
    if isinstance(config, BnConfig):
        return config.phm_layer and bool(config.shared_phm_rule or config.shared_W_phm)
    return isinstance(config, LoRAConfig) and config.vera_d is not None


def incomplete(base: str, *, vera: bool = True) -> Iterator[Case]:
    more: dict[str, Any] = {"kind": REFUSE, "why": INCOMPLETE, "flexible": False}
    yield from plain(base, {"incomplete-compacter": cases.compacter()}, **more)
    yield from plain(base, {"incomplete-phm-shared_W": cases.compacter(shared_W_phm=True)}, **more)
    if vera:
        yield from plain(base, {"incomplete-vera": cases.vera(["q"])["vera"]}, **more)


def main_base(base: str) -> Iterator[Case]:
    """Everything, for BERT and Llama."""
    yield from plain(base, cases.presets())
    yield from plain(base, cases.bottleneck_options())
    yield from plain(base, cases.hypercomplex())
    yield from plain(base, cases.ln_before(), kind=BIN)
    yield from plain(base, {"seq_bn-bin": seq(), "compacter-bin": cases.compacter()}, kind=BIN)
    yield from plain(base, {"lora-bin": ("lora", LoRAConfig(r=2, alpha=3))}, kind=BIN)
    yield from plain(base, cases.lora())
    yield from plain(base, cases.dora())
    if base == "bert":
        yield from plain(base, cases.post_add())
        yield from plain(base, cases.vera(["q", "k", "v"]))
    else:
        yield from plain(base, cases.vera(["q"]))
    for refused in (cases.refused_bottlenecks(), cases.other_methods()):
        for name, config, family, why in refused:
            bound = name.startswith("prefix") or name in ("mam", "unipelt")
            yield Case(base, name, config, family, REFUSE, why, shares_memory=bound)
    yield from incomplete(base)
    yield Case(base, "lora-gating", LoRAConfig(r=2, use_gating=True), "lora", REFUSE, GATE)
    yield Case(base, "ia3-gating", IA3Config(use_gating=True), "ia3", REFUSE, GATE)
    yield Case(base, "fusion", None, "fusion", REFUSE, "many adapters under an attention", special="fusion")
    yield from stored_otherwise(base)
    yield from heads(base)
    if base == "bert":
        prompt = PromptTuningConfig(prompt_length=3)
        yield Case(base, "prompt_tuning", prompt, "prompt_tuning", REFUSE, "more tokens have no slot")
        yield Case(
            base,
            "head-static",
            seq(),
            "bottleneck",
            REFUSE,
            "the head of a transformers model (classifier.weight), not AdapterHub's; or served later",
            "text-classification",
            special="static",
        )


def stored_otherwise(base: str) -> Iterator[Case]:
    """Names that look like the format's own, other types, older versions."""
    yield Case(base, "name-adapters", both(), "bottleneck", adapter="adapters")
    yield Case(base, "name-loras", LoRAConfig(r=2, alpha=3), "lora", adapter="loras")
    yield Case(base, "name-other", double(), "bottleneck", adapter="Task 1/en-de_v2")
    yield Case(base, "prefixed", both(), "bottleneck", flexible=True)
    yield Case(base, "prefixed-compacter", cases.compacter(), "bottleneck", flexible=True)
    yield Case(base, "prefixed-lora", everywhere(r=2, alpha=3), "lora", flexible=True)
    yield Case(base, "float16", double(), "bottleneck", dtype="float16")
    yield Case(base, "bfloat16-lora", everywhere(r=2, alpha=3), "lora", dtype="bfloat16")
    # files of adapter-transformers: no version, and gelu was another function
    old: dict[str, Any] = {"edit": {"version": None}}
    yield Case(base, "old-gelu", both(non_linearity="gelu"), "bottleneck", **old)
    orig: dict[str, Any] = {"edit": {"version": None, "config.non_linearity": "gelu_orig"}}
    yield Case(base, "old-gelu_orig", both(non_linearity="gelu"), "bottleneck", **orig)
    legacy = {
        "attention.output.adapters.": "attention.output.attention_text_task_adapters.",
        "output.adapters.": "output.layer_text_task_adapters.",
        "attention_adapters.adapters.": "attention_adapters.attention_text_lang_adapters.",
        "output_adapters.adapters.": "output_adapters.layer_text_lang_adapters.",
    }
    yield Case(base, "old-names", both(), "bottleneck", rename=legacy, **old)
    # before 1.1.0 alpha was not used: the library takes alpha = r
    faulty: dict[str, Any] = {"edit": {"version": "adapters.1.0.1"}}
    yield Case(base, "old-lora-alpha", LoRAConfig(r=2, alpha=6), "lora", **faulty)
    yield Case(base, "old-ia3-alpha", IA3Config(alpha=2), "ia3", **faulty)


def gpt2() -> Iterator[Case]:
    base = "gpt2"
    yield from plain(base, cases.presets())
    yield from plain(
        base,
        {
            "mh_and_output": both(),
            "order--ar": both(original_ln_before=False),
            "order-b--": both(original_ln_after=False, residual_before_ln=False),
            "ln_after-residual_inside": both(ln_after=True, adapter_residual_before_ln=True),
            "parallel-both": par(mh_adapter=True),
        },
    )
    yield from plain(base, cases.lora())
    yield from plain(
        base,
        {
            "lora-q": ("lora", LoRAConfig(r=2, alpha=3, attn_matrices=["q"])),
            "lora-qk": ("lora", LoRAConfig(r=2, alpha=3, attn_matrices=["q", "k"])),
            # the order in the config is not the order in the file
            "lora-vq": ("lora", LoRAConfig(r=2, alpha=3, attn_matrices=["v", "q"])),
            "ia3-q": ("ia3", IA3Config(attn_matrices=["q"], alpha=3)),
        },
    )
    yield Case(base, "lora-gating", LoRAConfig(r=2, use_gating=True), "lora", REFUSE, GATE)
    yield Case(base, "prefixed-lora", everywhere(r=2, alpha=3), "lora", flexible=True)
    yield from heads(base)


QWEN2 = ("seq_bn", "seq_bn-default", "double_seq_bn", "par_bn", "scaled_par_bn")


def other_families() -> Iterator[Case]:
    for base in ("roberta", "distilbert"):
        yield from plain(base, {"seq_bn": seq(), "double_seq_bn": double(), "mh_and_output": both()})
        yield from plain(base, {"lora-everywhere": ("lora", everywhere(r=2, alpha=3))})
        yield from plain(base, {"ia3": ("ia3", IA3Config())})
        yield from heads(base)
    presets = {name: config for name, config in cases.presets().items() if name in QWEN2}
    yield from plain("qwen2", {**presets, "phm-own_rule": cases.compacter(shared_phm_rule=False)})
    yield from incomplete("qwen2", vera=False)
    yield from plain(
        "qwen2",
        {
            "mh_and_output": both(),
            "ln_after-residual_inside": both(ln_after=True, adapter_residual_before_ln=True),
            "order-bar": both(),
            "order--ar": both(original_ln_before=False),
            "order-ba-": both(residual_before_ln=False),
            "parallel-both": par(mh_adapter=True),
        },
    )
    yield from plain("qwen2", cases.lora())
    yield from plain("qwen2", cases.dora())
    late = "every layer's adapter reads the last layer's norm (the library binds it late); or served later"
    yield Case("gemma2", "seq_bn", both(), "bottleneck", REFUSE, late)
    bias = (
        "the library gives the fused projection a random bias when the base has none: its outputs are noise"
    )
    yield Case("modernbert", "seq_bn", both(), "bottleneck", REFUSE, f"{late}; {bias}")
    yield Case("modernbert", "lora", LoRAConfig(r=2), "lora", REFUSE, bias)


def all_cases() -> list[Case]:
    return [*main_base("bert"), *main_base("llama"), *gpt2(), *other_families()]


def raising() -> Iterator[Case]:
    """Combinations that the library itself refuses or fails on: no file of them can be in use."""
    for base in ("llama", "gpt2"):
        yield from plain(base, {"post_add": both(residual_before_ln="post_add")})
    yield from plain("bert", {"post_add-houlsby": double(residual_before_ln="post_add")})
    yield from plain("qwen2", {"order-b-r": both(original_ln_after=False)})
    yield from plain("gpt2", {"dora": ("dora", DoRAConfig(r=2))})
    # factors shared by projections of different widths
    yield from plain("llama", {"vera-v": cases.vera(["q", "v"])["vera"]})
    yield from plain("bert", {"vera-everywhere": ("vera", everywhere(VeraConfig, r=2, vera_b=0.1))})
    yield from plain(
        "bert", {"phm-shared_full_W": cases.compacter(shared_W_phm=True, factorized_phm_W=False)}
    )
    yield from plain("bert", {"phm-narrow": cases.compacter(reduction_factor=32)})
    yield from plain("bert", {"scaling-integer": both(scaling=2)})
