"""Binding: a foreign adapter becomes the bundle's slot tensors, exactly, or is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .adapters import CONFIG_FILE, NeutralAdapter, read_adapter
from .bound import BoundAdapter, is_bound
from .bundle import Bundle
from .errors import AdapterError, Code, Problem
from .fit import fit_problems
from .manifest import Manifest
from .names import check_name, nul_problems
from .place import Fitted, fit_bottlenecks, fit_head, fit_linears
from .tensors import peek_metadata, read_tensors


def default_name(path: Path) -> str:
    """The name an adapter gets when none is given: its folder's, or its own if it stands alone."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    if path.name == CONFIG_FILE or (path.parent / CONFIG_FILE).exists():
        return path.parent.name
    return path.stem


def load_adapter(
    name: str,
    source: str | os.PathLike[str],
    bundle: Bundle,
    labels: Sequence[str] | None = None,
    *,
    foreign: bool = True,
) -> BoundAdapter:
    """Read a bound or a foreign adapter and check it whole against a bundle.

    Args:
        name: the id to bind it under.
        source: a bound ``.safetensors``, or a folder of PEFT or AdapterHub, or its tensor file.
        bundle: read for its manifest, and for frozen weights where factors depend on them.
        labels: names for the labels of the adapter's own head, which PEFT does not store.
        foreign: whether it may be another library's; a file in a bundle's own folder may not.

    Raises:
        AdapterError: naming everything in it that does not fit.
    """
    check_name(name)
    path = Path(source)
    marked = path.is_file() and path.name != CONFIG_FILE and is_bound(peek_metadata(path))
    if marked or not foreign:
        adapter = BoundAdapter.from_file(read_tensors(path), bundle.manifest, name)
    else:
        adapter = bind_adapter(name, read_adapter(path), bundle)
    return adapter if labels is None else _labelled(adapter, tuple(labels))


def _labelled(adapter: BoundAdapter, labels: tuple[str, ...]) -> BoundAdapter:
    """The adapter with other label names."""
    head = adapter.head
    if head is None or len(head.labels) != len(labels):
        raise AdapterError(
            f"{adapter.name} is not bound",
            Problem(
                Code.BAD_INPUT,
                "labels",
                got=f"{len(labels)} names",
                expected="none: the adapter has no head of its own"
                if head is None
                else f"{len(head.labels)}, as the adapter's head has labels",
                mend="give one name for each label, in the order of the logits",
            ),
        )
    if unfit := nul_problems(Code.BAD_INPUT, "labels", labels, "give another name"):
        raise AdapterError(f"{adapter.name} is not bound", unfit)
    return dataclasses.replace(adapter, head=head.model_copy(update={"labels": labels}))


def bind_into_bundle(
    bundle: Bundle,
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    replace: bool = False,
) -> BoundAdapter:
    """Bind an adapter and write it to ``BUNDLE/adapters/NAME.safetensors``, whole or not at all.

    Raises:
        AdapterError: it does not fit, or the name is taken and ``replace`` is false.
    """
    name = check_name(default_name(Path(source)) if name is None else name)
    target = bundle.adapter_path(name)
    if target.exists() and not replace:
        raise AdapterError(
            f"{name} is not bound",
            Problem(
                Code.EXISTS,
                name,
                got=f"an adapter of this name in {bundle.root.name}",
                mend="give --replace, or another --name",
            ),
        )
    adapter = load_adapter(name, source, bundle, labels)
    target.parent.mkdir(exist_ok=True)
    adapter.save(target)
    return adapter


def bind_adapter(name: str, adapter: NeutralAdapter, bundle: Bundle) -> BoundAdapter:
    """Fit neutral weights to the slots of a bundle.

    Raises:
        AdapterError: naming every tensor, site and config key that does not fit, and the frozen weights
            that its factors depend on and that cannot be read.
    """
    check_name(name)
    manifest = bundle.manifest
    paths = _Paths.between([*adapter.linears, *adapter.replaced], manifest)
    fitted = Fitted()
    fit_linears(fitted, {paths.in_bundle(m): update for m, update in adapter.linears.items()}, bundle)
    style = fit_bottlenecks(fitted, adapter, manifest)
    head = fit_head(fitted, adapter, bundle)
    if head is not None:
        fitted.problems += _beside_head([paths.in_bundle(m) for m in adapter.linears], manifest)
    problems = [*adapter.problems, *_twice(adapter, paths), *fitted.problems]
    problems += fit_problems(fitted.tensors, style, head, manifest, fitted.names)
    problems += _lost(adapter, paths, manifest)
    if problems:
        raise AdapterError(f"{name} is not bound", problems)
    return BoundAdapter(
        name=name,
        source_type=adapter.source_type,
        source_sha256=adapter.sha256,
        base_fingerprint=manifest.base.fingerprint,
        tensors=fitted.tensors,
        bottleneck=style,
        head=head,
    )


def _beside_head(modules: Iterable[str], manifest: Manifest) -> list[Problem]:
    """Adapters on layers of the base's own head, which a head of the adapter's own leaves unused."""
    inside = f"{manifest.base.prefix}."
    lost = [module for module in modules if manifest.base.labels and not module.startswith(inside)]
    return [
        Problem(
            Code.UNSUPPORTED,
            module,
            got="an adapter on the base's head, and a head of the adapter's own",
            expected="one of the two",
            cause="the rows of this adapter do not run the base's head",
            mend="train the head whole (modules_to_save), without an adapter on its layers",
        )
        for module in lost
    ]


def _twice(adapter: NeutralAdapter, paths: _Paths) -> list[Problem]:
    """The same layer under two paths: one of the two would be lost."""
    fitted = {paths.in_bundle(module) for module in adapter.linears}
    if len(fitted) == len(adapter.linears):
        return []
    return [
        Problem(
            Code.DUPLICATE_KEY,
            ", ".join(sorted(adapter.linears.keys() & fitted)),
            got="the same module with and without the base's prefix",
            expected="each module once",
            cause="two checkpoints merged into one file",
        )
    ]


@dataclass(frozen=True)
class _Paths:
    """Module paths of the adapter's library and of the bundle, and how to get from one to the other.

    The same base is ``encoder.…`` as a bare model and ``bert.encoder.…`` under a task head, so
    the base's prefix may be missing or extra in an adapter's paths.
    """

    strip: str = ""
    add: str = ""

    @classmethod
    def between(cls, modules: Iterable[str], manifest: Manifest) -> _Paths:
        known = set(manifest.modules)
        prefix = f"{manifest.base.prefix}." if manifest.base.prefix else ""
        ways = [cls(), cls(strip=prefix), cls(add=prefix)]
        modules = list(modules)
        return max(ways, key=lambda way: sum(way.in_bundle(module) in known for module in modules))

    def in_bundle(self, module: str) -> str:
        return self.add + module.removeprefix(self.strip)

    def in_library(self, module: str) -> str:
        return self.strip + module.removeprefix(self.add)


def _lost(adapter: NeutralAdapter, paths: _Paths, manifest: Manifest) -> list[Problem]:
    """Sites that the adapter's config claims and its file has nothing for."""
    problems = []
    if adapter.claims is not None and manifest.bottlenecks is not None:
        problems += [
            Problem(
                Code.SITE_MISSING,
                f"layer {site.layer}, {site.location}",
                got="no tensors",
                expected="a bottleneck, as the config says",
                cause="a partial save, or the config of another adapter",
                mend="save the adapter again",
            )
            for site in manifest.bottlenecks.sites
            if (site.layer, site.location) not in adapter.bottlenecks
            and adapter.claims(site.layer, site.location)
        ]
    if adapter.covers is None:
        return problems
    return problems + [
        Problem(
            Code.SITE_MISSING,
            site.path,
            got="no tensors",
            expected="an adapter, as the config's target_modules say",
            cause="a partial save, or the config of another adapter",
            mend="save the adapter again",
        )
        for site in manifest.sites
        if (module := paths.in_library(site.path)) not in adapter.modules and adapter.covers(module)
    ]
