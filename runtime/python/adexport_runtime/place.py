"""Which slot takes what: neutral weights get the names of a bundle's slot inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .adapters import (
    HeadWeights,
    LinearUpdate,
    NeutralAdapter,
    ReplacedLinear,
)
from .bundle import Bundle
from .errors import AdapterError, BundleError, Code, Problem
from .fit import no_kind
from .manifest import Manifest
from .slots import BottleneckStyle, Head, HeadStyle, OwnHead, SlotInput
from .tensors import Array
from .weights import FrozenWeights

#: factor of a linear slot -> the --slots that brings it
_OPTIONS = {"lora_A": "lora", "lora_B": "lora", "bias": "bias", "scale_in": "scale", "scale_out": "scale"}


@dataclass
class Fitted:
    """Slot tensors by slot input, what each was called in its file, and what found no slot."""

    tensors: dict[str, Array] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def take(
        self, slots: Mapping[str, SlotInput], factors: Mapping[str, Array], names: Mapping[str, str]
    ) -> None:
        """Put factors into the slot inputs of their names."""
        for factor, array in factors.items():
            self.tensors[slots[factor].name] = array
            if factor in names:
                self.names[slots[factor].name] = names[factor]


def fit_linears(fitted: Fitted, updates: Mapping[str, LinearUpdate], bundle: Bundle) -> None:
    """Updates of linear layers, by the bundle's module paths."""
    manifest = bundle.manifest
    frozen = FrozenWeights(bundle.root, manifest)
    for module, update in updates.items():
        site = manifest.site_by_path.get(module)
        if site is None:
            fitted.problems.append(_no_site(module, update, manifest))
            continue
        try:
            weights = update.solve(lambda site=site: frozen.linear(site.weight, site.bias))  # type: ignore[misc]
        except (AdapterError, BundleError) as error:  # gathered with what else is wrong
            fitted.problems += error.problems
            continue
        lacking = weights.kinds - site.linear.factors.keys()
        if lacking:
            needed = _slots_with(manifest, lacking)
            fitted.problems.append(
                Problem(
                    Code.NO_SLOT,
                    module,
                    got=f"an adapter with {', '.join(sorted(lacking))}",
                    expected=f"what the slot has: {', '.join(site.linear.factors)}",
                    cause="the bundle was built for other adapters",
                    mend=f"adexport build BUNDLE --slots {needed} (or --like ADAPTER)",
                )
            )
            continue
        fitted.take(site.linear.factors, weights.factors, weights.names)


def fit_bottlenecks(fitted: Fitted, adapter: NeutralAdapter, manifest: Manifest) -> BottleneckStyle | None:
    """Bottlenecks, by layer and location; returns what they are, if any has a place."""
    style = None
    if manifest.bottlenecks is None:
        names = [name for weights in adapter.bottlenecks.values() for name in weights.names.values()]
        if names:
            fitted.problems.append(no_kind("bottleneck", _shown(names), manifest))
        return style
    sites = {(site.layer, site.location): site for site in manifest.bottlenecks.sites}
    for key, weights in adapter.bottlenecks.items():
        site = sites.get(key)
        if site is None:
            fitted.problems.append(
                Problem(
                    Code.UNKNOWN_SITE,
                    f"layer {key[0]}, {key[1]}",
                    got=f"a bottleneck ({len(weights.names)} tensors)",
                    expected=f"one of {len(sites)} sites of {manifest.base.architecture}",
                    cause=f"trained on another base than {manifest.base.name}, or the bundle was built "
                    "for other sites",
                    mend="adexport build BUNDLE --like ADAPTER, or bind it to a bundle of its own base",
                )
            )
            continue
        style = adapter.style
        slots = site.slot.factors
        if weights.factors.keys() <= slots.keys():  # else a norm has no input: the form is refused
            fitted.take(slots, weights.factors, weights.names)
    return style


def fit_head(fitted: Fitted, adapter: NeutralAdapter, bundle: Bundle) -> HeadStyle | None:
    """A head of the adapter's own, whole or as layers that replace the base's; returns what it is."""
    head, replaced = adapter.head, adapter.replaced
    if head is None and not replaced:
        return None
    slot = bundle.manifest.head
    if slot is None:
        names = list(head.names.values()) if head else [name for r in replaced.values() for name in r.names]
        tokens = head is not None and head.style.feature == "tokens"
        task = "token-classification" if tokens else "text-classification"
        fitted.problems.append(no_kind("head", _shown(names), bundle.manifest, task))
        return None
    if head is None:
        head = _assembled(fitted, adapter, slot, bundle)
        if head is None:
            return None
    labels = head.factors["out_bias"].shape[-1]
    style = head.style
    if not style.labels:
        known = bundle.manifest.base.labels
        named = known if len(known) == labels else tuple(f"LABEL_{index}" for index in range(labels))
        style = style.model_copy(update={"labels": named})
    fitted.take(slot.slot.factors, head.factors, head.names)
    return style


def _assembled(fitted: Fitted, adapter: NeutralAdapter, slot: Head, bundle: Bundle) -> HeadWeights | None:
    """Layers that replace the base's head, as a whole head; a layer that is not replaced is the base's."""
    own, replaced = slot.own, adapter.replaced
    known = (own.dense, own.out) if own else ()
    strange = [module for module in replaced if module not in known]
    if own is None or strange:
        fitted.problems += [
            Problem(
                Code.NO_SLOT,
                ", ".join(replaced[module].names),
                got=f"{module} saved whole (modules_to_save)",
                expected="layers of the head: " + (", ".join(p for p in known if p) or "none here"),
                cause="the slots take adapters and heads, no other trained weights",
                mend="train without it in modules_to_save",
            )
            for module in (strange if own else replaced)
        ]
        return None
    layers = {
        path: _layer(fitted, path, adapter, bundle, biased=own.biased or path == own.dense)
        for path in known
        if path
    }
    return _head_of(own, layers)


def _layer(
    fitted: Fitted, path: str, adapter: NeutralAdapter, bundle: Bundle, *, biased: bool
) -> ReplacedLinear | None:
    """The adapter's layer, or the base's where the adapter does not claim to replace it."""
    layer = adapter.replaced.get(path)
    frozen = {entry.name for entry in bundle.manifest.weights}
    weight, bias = f"{path}.weight", f"{path}.bias" if biased else None
    if layer is not None and (layer.bias is not None or not biased):
        return layer
    if layer is None and weight in frozen and not (adapter.saves and adapter.saves(path)):
        kept = FrozenWeights(bundle.root, bundle.manifest).linear(weight, bias)
        return ReplacedLinear(kept.weight, kept.bias, ())
    fitted.problems.append(
        Problem(
            Code.HALF_MISSING,
            path,
            got=", ".join(layer.names) if layer else "no tensors",
            expected="the whole head" if bias is None else f"the whole head: {weight} and {bias}",
            cause="a partial save",
            mend="save the adapter again, with all layers of the head in modules_to_save",
        )
    )
    return None


def _bias(layer: ReplacedLinear) -> Array:
    return np.zeros(layer.weight.shape[0], np.float32) if layer.bias is None else layer.bias


def _head_of(own: OwnHead, layers: Mapping[str, ReplacedLinear | None]) -> HeadWeights | None:
    last, first = layers[own.out], layers[own.dense] if own.dense else None
    if last is None or (own.dense and first is None):
        return None
    factors = {"out" if first is None else "deep": last.weight.T}
    names = dict.fromkeys(factors, ", ".join(last.names) or own.out)
    factors["out_bias"] = _bias(last)
    names["out_bias"] = names[next(iter(factors))]
    if first is not None:
        factors["dense"] = first.weight.T
        factors["dense_bias"] = _bias(first)
        names |= dict.fromkeys(("dense", "dense_bias"), ", ".join(first.names) or str(own.dense))
    activation = (own.activation or "linear") if first is not None else None
    return HeadWeights(HeadStyle(feature=own.feature, activation=activation, labels=()), factors, names)


def _shown(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _slots_with(manifest: Manifest, factors: Iterable[str]) -> str:
    """The kinds of slots that a bundle has and factors need, for --slots."""
    return ",".join(dict.fromkeys((*manifest.slots, *sorted(_OPTIONS[factor] for factor in factors))))


def _no_site(module: str, update: LinearUpdate, manifest: Manifest) -> Problem:
    if module in manifest.modules:
        slots = _slots_with(manifest, update.kinds)
        needed = "--targets …" if manifest.sites else f"--slots {slots}"
        return Problem(
            Code.UNKNOWN_SITE,
            module,
            got="an adapter for this module",
            expected="a module with a slot",
            cause=f"the bundle was built for other {'targets' if manifest.sites else 'slots'}",
            mend=f"adexport build BUNDLE {needed} (or --like ADAPTER)",
        )
    return Problem(
        Code.UNKNOWN_SITE,
        " and ".join(update.tensors),
        got="a module that the base does not have",
        expected=f"modules of {manifest.base.architecture}",
        cause=f"trained on another base than {manifest.base.name}",
        mend="bind it to a bundle of its own base",
    )
