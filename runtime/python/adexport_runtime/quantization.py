"""How the frozen weights of a graph are stored as integers."""

from __future__ import annotations

from typing import Annotated, Literal

from .schema import Positive, Schema, Whole

Method = Literal["weight-only", "dynamic"]


class Quantization(Schema):
    """What is quantized in ``model.onnx``, and how; slots never are.

    ``weight-only``: ``bits`` for each weight, a scale for each ``block_size`` of them, arithmetic as
    ``accuracy_level`` of ``MatMulNBits`` says. ``dynamic``: int8 weights with a scale for each output,
    and activations with a scale for each token. ``embeddings``: the table that ``input_ids`` pick from.
    ``lm_head``: the layer whose outputs are the logits. Both are blocks of ``block_size``, or dynamic.
    """

    method: Method
    bits: Annotated[Literal[4, 8], Whole]
    block_size: Positive | None
    accuracy_level: Positive | None
    embeddings: bool
    lm_head: bool

    def faults(self) -> list[str]:
        """What contradicts itself."""
        dynamic = self.method == "dynamic"
        wrong = []
        if dynamic and self.bits != 8:
            wrong.append("dynamic quantization has 8 bits")
        if dynamic != (self.accuracy_level is None):
            wrong.append("an accuracy_level belongs to weight-only quantization, and must be there")
        if (self.block_size is None) != (dynamic and not self.embeddings):
            wrong.append("a block_size belongs to weight-only quantization and to embeddings")
        return wrong

    @property
    def words(self) -> str:
        """One line for people."""
        also = [name for name in ("embeddings", "lm_head") if getattr(self, name)]
        more = f", with {' and '.join(also)}" if also else ""
        return f"int{self.bits} {self.method}{more}"
