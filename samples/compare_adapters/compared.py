"""What is compared: families of adapters, trained on texts of four domains. Both environments read it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import vader

LABELS = ("negative", "positive")
DOMAINS = ("tweets", "movies", "amazon", "nyt")
TEST, TRAIN, EPOCHS, BATCH = 200, 300, 2, 8
#: learning rates of every adapter, and of every head; the largest norm of a gradient
RATE, HEAD_RATE, CLIP = 1e-3, 3e-3, 1.0
HIDDEN = 384


class Family(NamedTuple):
    """A kind of adapter in one size: a LoRA of a rank, or a bottleneck of a width.

    ``method`` is ``lora``, or what the adapters library calls the bottleneck.
    """

    method: str
    size: int

    @property
    def name(self) -> str:
        """The family's name."""
        return f"{self.method}-{self.size}"

    def adapter(self, domain: str) -> str:
        """The name of its adapter for a domain."""
        return f"{self.name}-{domain}"

    def folder(self, root: Path, domain: str) -> Path:
        """Where its adapter for a domain is saved."""
        return root / "adapters" / self.name / domain

    def logits(self, root: Path, domain: str) -> Path:
        """What its adapter made of the domain's held-out texts in torch: float32 ``[texts, labels]``."""
        return root / "logits" / f"{self.adapter(domain)}.npy"


#: trained with PEFT
LORA = Family("lora", 8)
#: trained with the adapters library: Pfeiffer's (one in a block) and Houlsby's (two in a block)
BOTTLENECKS = (
    Family("seq_bn", 16),
    Family("seq_bn", 32),
    Family("seq_bn", 64),
    Family("double_seq_bn", 48),
)
FAMILIES = (LORA, *BOTTLENECKS)


class Texts(NamedTuple):
    """The texts of a domain."""

    held_out: list[vader.Example]
    train: list[vader.Example]


def load(domain: str) -> Texts:
    """The same texts for every family."""
    examples = vader.load(domain)
    return Texts(examples[:TEST], examples[TEST : TEST + TRAIN])
