"""The table of ``tests/golden/peft``: one line or so for each adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import (
    AdaLoraConfig,
    DeloraConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    VBLoRAConfig,
    VeraConfig,
)
from peft.tuners.lora import BdLoraConfig, EvaConfig, VeloraConfig

Factor = Literal["lora", "bias", "scale", "head"]


@dataclass(frozen=True)
class Case:
    """One adapter: how PEFT makes it, and what is to become of it."""

    base: str
    name: str
    make: type[PeftConfig]
    keys: dict[str, Any]
    needs: tuple[Factor, ...] = ("lora",)
    kind: Literal["serve", "refuse"] = "serve"
    task: str = "FEATURE_EXTRACTION"
    labels: int | None = None
    note: str = ""
    why: str = ""
    dtype: torch.dtype | None = None
    convert: bool = False
    train: Callable[[PeftModel], None] | None = None
    edits: dict[str, Any] = field(default_factory=dict)

    def config(self) -> PeftConfig:
        """A config of its own: PEFT writes into the one it is given."""
        return self.make(**{"task_type": self.task, **self.keys})

    def entry(self) -> dict[str, Any]:
        """The line of ``index.json``."""
        entry: dict[str, Any] = {
            "base": self.base,
            "case": self.name,
            "kind": self.kind,
            "family": self.config().peft_type.value.lower(),
            "task": self.task,
            "needs": list(self.needs) if self.kind == "serve" else [],
        }
        if self.labels is not None:
            entry["labels"] = self.labels
        return entry | {key: text for key, text in (("why", self.why), ("note", self.note)) if text}


def prune_ranks(model: PeftModel) -> None:
    """AdaLoRA's own allocator, on random gradients: some rows go, and the file has rank_pattern."""
    model.train()
    for step in range(1, 5):
        sum(
            parameter.square().sum() for parameter in model.parameters() if parameter.requires_grad
        ).backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()


def zero_ranks(model: PeftModel) -> None:
    """Singular values masked to zero, as between two allocations of AdaLoRA."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter[1::2] = 0


ATTENTION = {
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
LORA = {"r": 3, "lora_alpha": 5}


def lora_cases(base: str) -> list[Case]:
    """The kinds of LoRA that every base serves. Only BERT and GPT-2 have biases to replace."""
    some = ATTENTION[base]
    biased = base != "llama"
    first, *_ = some
    dora: tuple[Factor, ...] = ("lora", "bias", "scale") if biased else ("lora", "scale")

    def lora(name: str, targets: Any = some, *, needs: tuple[Factor, ...] = ("lora",), **keys: Any) -> Case:
        about = {key: keys.pop(key) for key in ("note", "dtype", "convert") if key in keys}
        return Case(base, name, LoraConfig, {**LORA, "target_modules": targets, **keys}, needs, **about)

    cases = [
        lora("lora"),
        lora("lora-all-linear", "all-linear"),
        lora("rslora", use_rslora=True),
        lora(
            "patterns",
            "all-linear",
            rank_pattern={first: 1, r".*\.1\..*(dense|gate_proj|c_fc)": 2},
            alpha_pattern={some[-1]: 7, f"^.*0.*{first}": 2},
            note="patterns are searched in order: the first match decides",
        ),
        lora("lora-bias", needs=("lora", "bias"), lora_bias=True),
        lora("dora", needs=dora, use_dora=True),
        lora("dora-all-linear", "all-linear", needs=dora, use_dora=True, use_rslora=True),
        lora("pissa", init_lora_weights="pissa", note=PISSA),
        lora("pissa-converted", init_lora_weights="pissa", convert=True, note=CONVERTED),
        lora("gaussian", init_lora_weights="gaussian"),
        lora("orthogonal", r=4, init_lora_weights="orthogonal"),
        lora("mica", init_lora_weights="mica"),
        lora("bfloat16", "all-linear", dtype=torch.bfloat16),
        lora("float16", "all-linear", dtype=torch.float16),
    ]
    if biased:
        cases += [
            lora("bias-lora-only", needs=("lora", "bias"), bias="lora_only"),
            lora("dora-bias-lora-only", needs=dora, use_dora=True, bias="lora_only"),
        ]
    if base == "bert":
        cases.append(lora("layers-to-transform", layers_to_transform=[1]))
        cases.append(
            lora("eva", init_lora_weights="eva", eva_config=EvaConfig(), rank_pattern={"value": 2})
        )
    if base == "gpt2":
        cases.append(lora("olora-square", r".*attn\.c_proj", init_lora_weights="olora", note=OLORA_CONV1D))
    else:
        cases += [
            lora("olora", init_lora_weights="olora", note=OLORA),
            lora("olora-converted", init_lora_weights="olora", convert=True, note=CONVERTED),
            lora("velora", velora_config=VeloraConfig(num_groups=4), note=VELORA),
        ]
    return cases


PISSA = (
    "PEFT repeats the SVD on load, so that the file means what was trained: (W - s*B0*A0 + s*B*A)x, "
    "where s*B0*A0 is the rank-r truncation of W, whatever s is; in float32, so exact to 2e-5"
)
OLORA = (
    "PEFT repeats the QR on load, so that the file means what was trained: "
    "(W - s*Q[:, :r]*R[:r] + s*B*A)x; unlike PiSSA's, what is taken from W grows with s"
)
OLORA_CONV1D = (
    "PEFT decomposes the weight as stored, [in, out]: (W - s*(QR)^T + s*B*A)x; square layers only"
)
CONVERTED = "saved with path_initial_model_for_weight_conversion: plain LoRA of twice the rank"

INNER = {
    # what each base multiplies in (IA)3: keys, values and the input of the feedforward's last layer
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
}


def family_cases(base: str) -> list[Case]:
    """Families beside LoRA; GPT-2's Conv1D is known to some of them only."""
    some = ATTENTION[base]

    def case(name: str, make: type[PeftConfig], targets: Any = some, **keys: Any) -> Case:
        about = {key: keys.pop(key) for key in ("needs", "note", "train") if key in keys}
        return Case(base, name, make, {"target_modules": targets, **keys}, **about)

    scaled, inputs = INNER[base]
    schedule = {"target_r": 2, "init_r": 4, "lora_alpha": 6, "tinit": 1, "tfinal": 1, "total_step": 4}
    bank = {"r": 3, "num_vectors": 10, "vector_length": 8}
    cases = [
        case("ia3", IA3Config, scaled, feedforward_modules=inputs, needs=("scale",)),
        case("ia3-all-inputs", IA3Config, some, feedforward_modules=some, needs=("scale",)),
        case("adalora", AdaLoraConfig, **schedule, train=zero_ranks),
        case("vera", VeraConfig, "all-linear", r=5, d_initial=1.0),
        case("vblora", VBLoRAConfig, **bank, topk=2),
        case(
            "vblora-topk",
            VBLoRAConfig,
            r=3,
            num_vectors=10,
            vector_length=8,
            topk=3,
            save_only_topk_weights=True,
        ),
    ]
    if base == "gpt2":
        return cases
    return [
        *cases,
        case("adalora-pruned", AdaLoraConfig, **schedule, train=prune_ranks, note=ADALORA),
        case("loha", LoHaConfig, "all-linear", r=2, alpha=3),
        case(
            "lokr",
            LoKrConfig,
            "all-linear",
            r=2,
            alpha=3,
            note=LOKR,
        ),
        case("lokr-products", LoKrConfig, "all-linear", r=1, alpha=3, decompose_both=True),
        case("lokr-factor", LoKrConfig, "all-linear", r=2, alpha=3, decompose_factor=2),
        case("miss", MissConfig, r=3),
        case("miss-mini", MissConfig, r=4, mini_r=2, init_weights="mini"),
        case("hra", HRAConfig, "all-linear", r=3),
        case("hra-gram-schmidt", HRAConfig, "all-linear", r=4, apply_GS=True),
        case("delora", DeloraConfig, "all-linear", r=3, delora_lambda=3),
        case(
            "bdlora",
            LoraConfig,
            r=4,
            lora_alpha=5,
            use_bdlora=BdLoraConfig(target_modules_bd_a=some[:1], target_modules_bd_b=some[1:], nblocks=2),
        ),
    ]


ADALORA = (
    "the divisor stays init_r after pruning, however few rows a layer has left (one of BERT's has none)"
)
LOKR = "the second factor is dense or a product, by shape"
VELORA = "plain LoRA at inference; lora_velora_embed serves the backward pass only"


def bias_cases() -> list[Case]:
    """Families that may train the biases of the layers they target, under names of their own."""
    bank = {"r": 3, "num_vectors": 10, "vector_length": 8}
    makes: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
        "vera": (VeraConfig, {"r": 5, "d_initial": 1.0}),
        "miss": (MissConfig, {"r": 3}),
        "hra": (HRAConfig, {"r": 3}),
        "delora": (DeloraConfig, {"r": 3, "delora_lambda": 3}),
        "vblora": (VBLoRAConfig, {**bank, "topk": 2}),
    }
    return [
        Case(
            "bert",
            f"{name}-bias",
            make,
            {"target_modules": ["query", "value"], "bias": f"{name}_only", **keys},
            ("lora", "bias"),
        )
        for name, (make, keys) in makes.items()
    ]


def head_cases() -> list[Case]:
    """Adapters that bring a head; another number of labels than the base's in some."""

    def case(
        base: str, name: str, targets: Any, *, needs: tuple[Factor, ...] = ("lora", "head"), **keys: Any
    ) -> Case:
        about = {key: keys.pop(key) for key in ("labels", "note") if key in keys}
        make = keys.pop("make", LoraConfig)
        task = "TOKEN_CLS" if base == "bert-tagger" else "SEQ_CLS"
        keys = {**(LORA if make is LoraConfig else {}), "target_modules": targets, **keys}
        return Case(base, name, make, keys, needs, task=task, **about)

    some, scaled = ATTENTION["bert"], {"feedforward_modules": ["output.dense"], "make": IA3Config}
    dora: tuple[Factor, ...] = ("lora", "bias", "scale", "head")
    dense_head = {"modules_to_save": ["pre_classifier", "classifier"]}
    cases = []
    for base in ("bert-classifier", "bert-tagger"):
        cases += [
            case(base, "lora", some, modules_to_save=["classifier"]),
            case(base, "lora-2-labels", some, modules_to_save=["classifier"], labels=2),
            case(base, "lora-5-labels", some, labels=5, note=HEAD_ADDED),
            case(base, "ia3", ["key", "output.dense"], needs=("scale", "head"), **scaled),
        ]
    return [
        *cases,
        case("bert-classifier", "dora-all-linear", "all-linear", needs=dora, use_dora=True),
        case("bert-classifier", "loha", some, make=LoHaConfig, r=2, alpha=3),
        case("bert-classifier", "hra", some, make=HRAConfig, r=3),
        case("bert-classifier", "base-head", some, needs=("lora",), task_type=None, note=BASE_HEAD),
        case("bert-classifier", "lora-on-head", [*some, "classifier"], task_type=None, note=LORA_HEAD),
        case("roberta-classifier", "lora", some),
        case("roberta-classifier", "lora-5-labels", some, labels=5),
        case("roberta-classifier", "ia3", ["key", "output.dense"], needs=("scale", "head"), **scaled),
        case("distilbert-classifier", "lora", ["q_lin", "v_lin"], **dense_head),
        case("distilbert-classifier", "lora-2-labels", ["q_lin", "v_lin"], **dense_head, labels=2),
        case("distilbert-classifier", "head-by-task", ["q_lin", "v_lin"], note=PRE_CLASSIFIER),
        case("distilbert-classifier", "feedforward", ["q_lin", "lin1", "lin2"]),
        case("llama-classifier", "lora", ["q_proj", "v_proj"]),
        case("llama-classifier", "lora-2-labels", ["q_proj", "v_proj"], labels=2),
        case("llama-classifier", "lora-5-labels", "all-linear", labels=5),
    ]


HEAD_ADDED = "the JSON's modules_to_save is what PEFT adds for the task: classifier and score"
BASE_HEAD = "trained without a task type: no head in the file, the base's is used"
LORA_HEAD = "low-rank factors on the classifier itself: W + s*B*A is the head"
PRE_CLASSIFIER = "PEFT matches modules_to_save by ending: classifier brings pre_classifier too"

CASES: list[Case] = [
    *(case for base in ATTENTION for case in (*lora_cases(base), *family_cases(base))),
    *bias_cases(),
    *head_cases(),
]
