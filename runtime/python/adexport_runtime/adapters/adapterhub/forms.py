"""The settings of AdapterHub's bottlenecks (``BnConfig``), and the form that they compute.

Equations: ``adapters.methods.modeling.Adapter`` and ``ParallelAdapter`` (Houlsby et al.,
arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00247; He et al., arXiv:2110.04366).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...errors import Problem
from ...slots import BottleneckForm, BottleneckStyle, Location
from .activations import activation_of
from .families import Family, no_bottlenecks
from .hypercomplex import PhmSettings
from .settings import parse, refused

_GATE = (
    "the gate is a mean over all positions of a row, padding included: what a row gives depends on the "
    "longest row beside it",
    "train with use_gating=False",
)
_INVERTIBLE = (
    "an invertible adapter behind the embeddings has no slot",
    "train without inv_adapter (seq_bn, double_seq_bn)",
)

#: settings of training, of the start, and of versions that no longer have them
_IGNORED = frozenset(
    [
        "architecture",
        "attention_type",
        "dropout",
        "hypercomplex_nonlinearity",
        "init_weights",
        "init_weights_seed",
        "inv_adapter_reduction_factor",
        "learn_phm",
        "new_attention_norm",
        "phm_c_init",
        "phm_init_range",
        "stochastic_depth",
    ]
)


def _float_or_word(value: object) -> object:
    if isinstance(value, float) or value in ("learned", "channel"):
        return value
    raise ValueError("a number with a decimal point, 'learned' or 'channel'")


Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BottleneckSettings(PhmSettings):
    """The settings of a bottleneck adapter (``BnConfig``)."""

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: Factor | dict[str, Factor]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    is_parallel: bool = False
    scaling: Annotated[float | Literal["learned", "channel"], BeforeValidator(_float_or_word)] = 1.0
    residual_before_ln: bool | Literal["post_add"] = True
    adapter_residual_before_ln: bool = False
    cross_adapter: bool = False
    leave_out: list[int] = Field(default_factory=list)
    phm_layer: bool = False

    def claims(self, layer: int, location: Location) -> bool:
        """Whether there is a bottleneck at a place."""
        there = self.mh_adapter if location == "mh" else self.output_adapter
        return there and layer not in self.leave_out

    def width(self, layer: int, features: int) -> int | None:
        """The width in a layer; None if the settings give none."""
        factor = self.reduction_factor
        if isinstance(factor, dict):
            found = factor.get(str(layer), factor.get("default"))
            if found is None:
                return None
            factor = found
        try:
            return max(1, int(features // factor))
        except OverflowError:
            return None


def form_of(settings: BottleneckSettings) -> BottleneckForm:
    """What the settings compute, the same for settings that compute the same.

    In parallel the library looks at none of original_ln_before, residual_before_ln and
    adapter_residual_before_ln. Behind an interface the model itself adds and norms, as if
    original_ln_after were true, which it must be there.
    """
    if settings.is_parallel:
        return BottleneckForm(
            input="residual",
            skip="hidden",
            close=settings.original_ln_after,
            norm_before=settings.ln_before,
            norm_after="update" if settings.ln_after else "none",
        )
    before = settings.original_ln_before
    skip: Literal["hidden", "input", "sum"] = "hidden"
    if settings.residual_before_ln == "post_add":
        skip = "sum"
    elif before and not settings.residual_before_ln:
        skip = "input"
    after: Literal["sum", "update"] = "sum" if settings.adapter_residual_before_ln else "update"
    return BottleneckForm(
        input="normed" if before else "hidden",
        skip=skip,
        close=settings.original_ln_after,
        norm_before=settings.ln_before,
        norm_after=after if settings.ln_after else "none",
    )


def parse_settings(
    config: Mapping[str, Any], document: Mapping[str, Any], family: Family, inverse: bool
) -> tuple[BottleneckSettings | None, BottleneckStyle | None, list[Problem]]:
    """Settings and what they compute; None where they cannot be used.

    Args:
        config: of the adapter, in today's words.
        document: the whole ``adapter_config.json``.
        family: of the base.
        inverse: whether the file has tensors of an invertible adapter.
    """
    # task adapters of old name one that they neither have nor use
    unused = document.get("type") == "text_task" and not inverse
    invertible = {} if unused else dict.fromkeys(("inv_adapter", "invertible_adapter"), _INVERTIBLE)
    settings, problems = parse(
        BottleneckSettings,
        config,
        ignored=_IGNORED | ({"inv_adapter", "invertible_adapter"} if unused else set()),
        refusals={"use_gating": _GATE, **invertible},
    )
    problems += no_bottlenecks(document.get("model_type"))
    if settings is None:
        return None, None, problems
    activation, unknown = activation_of("non_linearity", settings.non_linearity)
    problems += unknown + _contradictions(settings, family) + _hooked(settings, family)
    style = None if activation is None else BottleneckStyle(form=form_of(settings), activation=activation)
    return settings, style, problems


def _contradictions(settings: BottleneckSettings, family: Family) -> list[Problem]:
    """Settings with which the library itself raises, or acts where no slot is."""
    problems = []
    post_add = settings.residual_before_ln == "post_add" and not settings.is_parallel
    if post_add and not (settings.original_ln_before and family.normed):
        problems.append(
            refused(
                "residual_before_ln",
                "post_add",
                "the library fails with it unless original_ln_before is true and a LayerNorm follows "
                "the addition",
            )
        )
    if settings.cross_adapter and family.two_stacks:
        problems.append(refused("cross_adapter", True, "adapters on cross attention have no slot"))
    if settings.phm_layer and settings.shared_W_phm and not settings.factorized_phm_W:
        problems.append(refused("shared_W_phm", True, "the library fails with it unless factorized_phm_W"))
    return problems


def _hooked(settings: BottleneckSettings, family: Family) -> list[Problem]:
    """What the library's interface to other models does otherwise than its own wrapping."""
    interface = family.hooked
    if interface is None:
        return []
    problems = []
    if not settings.original_ln_after:
        problems.append(
            refused("original_ln_after", False, "the library fails with it on models behind an interface")
        )
    before = settings.original_ln_before and not settings.is_parallel
    norms = [norm for norm in (interface.layer_ln_1, interface.layer_ln_2) if norm]
    if before and norms:
        problems.append(
            refused(
                "original_ln_before",
                True,
                f"on a model whose interface names {' and '.join(norms)}, the library reads the last "
                "layer's norm in every layer (it binds it late)",
                "train with original_ln_before=False",
            )
        )
    if before and not norms and family.normed is None:
        problems.append(
            refused(
                "original_ln_before",
                True,
                "what the adapter reads depends on whether a norm follows the addition, which is unknown "
                "of this model",
                "train with original_ln_before=False",
            )
        )
    unhooked = (settings.mh_adapter and not interface.layer_pre_self_attn) or (
        settings.output_adapter and not interface.layer_pre_ffn
    )
    if unhooked and (before or settings.is_parallel):
        key = "is_parallel" if settings.is_parallel else "original_ln_before"
        problems.append(
            refused(key, True, "the interface of this model does not tell the library a block's input")
        )
    return problems
