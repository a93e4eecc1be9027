"""The activations that slots offer, as standard ops, and the choice among them for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from adexport_runtime.slots import Activation

from .graph import Emit, constant


def activate(emit: Emit, x: ir.Value, activation: Activation) -> ir.Value:
    """One activation; ``gelu`` is exact, ``gelu_new`` the tanh approximation (arXiv:1606.08415)."""
    if activation == "relu":
        return emit("Relu", x)
    if activation == "tanh":
        return emit("Tanh", x)
    if activation == "silu":
        return emit("Mul", x, emit("Sigmoid", x))
    if activation in ("gelu", "gelu_new"):
        return emit("Gelu", x, approximate="none" if activation == "gelu" else "tanh")
    return x


class Choice:
    """Picks among values by a code of each row; without anything to pick it emits nothing.

    ``Where`` on whole rows: what another row computes never meets this one's.
    """

    def __init__(self, graph: ir.Graph, emit: Emit, code: ir.Value | None, codes: int) -> None:
        """``code`` is int64 ``[batch]`` or ``[1]``, of ``codes`` values; None if there is one only."""
        self._graph, self._emit = graph, emit
        self._code, self._codes = code, codes
        self._flags: dict[tuple[frozenset[int], int], ir.Value] = {}

    def pick(self, options: Mapping[str, ir.Value], wanted: Sequence[str], rank: int) -> ir.Value:
        """The value whose name is ``wanted[code]``, of the given rank."""
        first, *others = dict.fromkeys(wanted)
        picked = options[first]
        for name in others:
            codes = frozenset(code for code, want in enumerate(wanted) if want == name)
            picked = self._emit("Where", self._flag(codes, rank), options[name], picked)
        return picked

    def _flag(self, codes: frozenset[int], rank: int) -> ir.Value:
        """Bool ``[batch, 1, …]``: whether the row's code is one of ``codes``."""
        if (codes, rank) not in self._flags:
            name = f"adexport.codes_{'_'.join(str(code) for code in sorted(codes))}_of_{self._codes}"
            among = np.isin(np.arange(self._codes), sorted(codes))
            axes = constant(self._graph, f"adexport.axes_to_{rank}", np.arange(1, rank, dtype=np.int64))
            row = self._emit("Gather", constant(self._graph, name, among), self._code, axis=0)
            self._flags[codes, rank] = self._emit("Unsqueeze", row, axes)
        return self._flags[codes, rank]
