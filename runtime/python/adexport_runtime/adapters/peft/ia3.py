"""(IA)3 (arXiv:2205.05638): ``y = l (W x + b)``, or ``y = W (l x) + b`` (``peft.tuners.ia3``)."""

from __future__ import annotations

import re
from typing import ClassVar

from ...errors import Code, Problem
from ..neutral import LinearUpdate, LinearWeights
from .config import TunerConfig
from .layer import Layer, single
from .method import Method, parts


class IA3Config(TunerConfig):
    """The keys of an IA3 config that decide what its tensors mean."""

    ignored: ClassVar[frozenset[str]] = frozenset(["fan_in_fan_out", "init_ia3_weights"])

    feedforward_modules: str | list[str] | None = None

    def scales_input(self, module: str) -> bool | None:
        """Whether the vector multiplies the input; None if the config does not say."""
        names = self.feedforward_modules
        if names is None:
            return None
        if isinstance(names, str):
            return re.fullmatch(names, module) is not None
        return any(module.endswith(name) for name in names)  # PEFT asks for no dot before the name


def update(layer: Layer, config: IA3Config) -> LinearUpdate:
    """One layer of an IA3: ``[1, in]`` for the input, ``[out, 1]`` for the output."""
    layer.need("ia3_l")
    sizes = layer.sizes({"ia3_l": ("rows", "columns")})
    shape = (sizes["rows"], sizes["columns"])
    scales_input = config.scales_input(layer.module)
    if scales_input is None and shape != (1, 1):
        scales_input = shape[0] == 1
    if scales_input is None or shape[0 if scales_input else 1] != 1:
        expected = {True: "[1, in]", False: "[out, 1]", None: "[1, in] or [out, 1]"}[scales_input]
        raise layer.refusal(
            Problem(
                Code.WRONG_SHAPE,
                layer.names["ia3_l"],
                got=f"shape {list(shape)}",
                expected=f"{expected}, as the config's feedforward_modules say",
                cause="adapter_config.json of another adapter",
                mend="put the config beside the file that it was saved with",
            )
        )
    factor = "scale_in" if scales_input else "scale_out"
    return LinearWeights({factor: single(layer.values("ia3_l").reshape(-1))}, {factor: layer.name("ia3_l")})


IA3 = Method(IA3Config, parts("ia3_l"), update)
