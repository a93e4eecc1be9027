"""What differs from one model family to the next; one file for each family that differs.

:class:`Architecture` holds what most models do. A family that does something else has a file
here with a subclass, and a line in ``_FAMILIES``.
"""

from __future__ import annotations

from typing import Any

from .albert import Albert
from .base import (
    CLASSIFICATION,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    Architecture,
    BottleneckRule,
    has_pooler,
    is_bare,
)
from .bert import Bert, DebertaV2, Electra
from .decoder import GPT2, Decoder, Gemma
from .distilbert import DistilBert
from .modernbert import ModernBert
from .roberta import Roberta
from .t5 import T5Encoder
from .vit import ViT

__all__ = [
    "CLASSIFICATION",
    "TEXT_CLASSIFICATION",
    "TEXT_GENERATION",
    "Architecture",
    "BottleneckRule",
    "architecture_of",
    "has_pooler",
    "is_bare",
]

_FAMILIES: dict[str, type[Architecture]] = {
    "albert": Albert,
    "bert": Bert,
    "camembert": Roberta,
    "deberta-v2": DebertaV2,
    "distilbert": DistilBert,
    "electra": Electra,
    "gemma2": Gemma,
    "gemma3_text": Gemma,
    "gpt2": GPT2,
    "llama": Decoder,
    "mistral": Decoder,
    "modernbert": ModernBert,
    "phi3": Decoder,
    "qwen2": Decoder,
    "qwen3": Decoder,
    "roberta": Roberta,
    "t5": T5Encoder,
    "vit": ViT,
    "xlm-roberta": Roberta,
}


def architecture_of(config: Any) -> Architecture:
    """The rules of a model's family; unknown families follow the common ones."""
    return _FAMILIES.get(config.model_type, Architecture)(config)
