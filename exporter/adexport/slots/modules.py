"""The modules that stand in the model while it is traced, each emitting one opaque op."""

from __future__ import annotations

import torch
from torch import nn

from ..ops import DOMAIN, LINEAR


class TracedLinear(nn.Module):
    """A frozen linear layer as one opaque op: ``adexport::Linear(x, weight, bias) -> y``.

    No adapter weight is traced: a lowering puts a slot behind the op, or nothing. The
    parameters keep the names they had, so frozen weights keep their module paths in the graph.
    """

    def __init__(self, base: nn.Module, site: str, *, transposed: bool) -> None:
        """Wrap ``base``; ``transposed`` says that its weight is ``[in, out]`` (GPT-2's Conv1D)."""
        super().__init__()
        weight, bias = base.weight, base.bias
        assert isinstance(weight, nn.Parameter)
        assert bias is None or isinstance(bias, nn.Parameter)
        self.weight = weight
        self.bias = bias
        self.site = site
        self.transposed = transposed

    @classmethod
    def from_base(cls, base: nn.Module, site: str) -> TracedLinear | None:
        """The traced form of a linear layer, or None for a module of another kind."""
        if type(base) is nn.Linear:
            return cls(base, site, transposed=False)
        if type(base).__name__ == "Conv1D" and hasattr(base, "nf"):
            return cls(base, site, transposed=True)
        return None

    @property
    def features(self) -> tuple[int, int]:
        """``(in, out)``."""
        rows, columns = self.weight.shape
        return (rows, columns) if self.transposed else (columns, rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Emit the op; the shape is ``x``'s with the last size replaced."""
        into, out = self.features
        result: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{LINEAR}",
            (x, self.weight, self.bias),
            {
                "site": self.site,
                "in_features": into,
                "out_features": out,
                "transposed": int(self.transposed),
                "checkpoint_transposed": int(self.transposed),
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], out),
            version=1,
        )
        return result
