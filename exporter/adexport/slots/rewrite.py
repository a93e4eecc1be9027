"""Put traced modules into a model for the time of a trace, and take them out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .modules import TracedLinear


@contextmanager
def traced_linears(model: nn.Module) -> Iterator[dict[str, TracedLinear]]:
    """Within the block every linear layer of ``model`` emits an opaque op; yields them by path.

    A layer that is used in several places (shared by reference) is one site, under the first of
    its paths: an adapter on it acts wherever it is used, as in PEFT.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    made: dict[int, TracedLinear] = {}
    sites: dict[str, TracedLinear] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        traced = made.get(id(module)) or TracedLinear.from_base(module, path)
        if traced is None:
            continue
        if id(module) not in made:
            made[id(module)] = sites[path] = traced
        parent = model.get_submodule(path.rpartition(".")[0])
        replaced.append((parent, path.rpartition(".")[2], module))
        setattr(parent, path.rpartition(".")[2], traced)
    try:
        yield sites
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)
