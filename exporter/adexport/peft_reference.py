"""The truth that served adapters are held to: PEFT on torch.

Where PEFT can pick an adapter for each row (``adapter_names``), it gets the whole batch; where it
cannot, each adapter gets its own rows, in a model of its own: some adapters change the base as PEFT
loads them, and some bring a head of another width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel

from adexport_runtime.adapters import read_adapter
from adexport_runtime.errors import AdapterError, BuildError, Code, Problem
from adexport_runtime.tensors import Array

from .architectures import CLASSIFICATION, is_bare
from .model import LoadedModel, load_torch

_PEFT_BASE = "__base__"

#: ways to make a LoRA that leave the base as it is
_INNOCENT = (True, False, "gaussian", "orthogonal", "eva")

#: what an adapter was trained for, by PEFT's name: the loader of its model
_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
}

RowOutputs = dict[str, Array]


@dataclass(frozen=True)
class Tenant:
    """A PEFT adapter: its folder, its config, and what decides on the model that it needs.

    ``prefixed``: its paths start at a model with a task's head, not at the bare base. ``headed``: it
    brings layers of a head of its own.
    """

    folder: Path
    config: Any
    prefixed: bool
    headed: bool

    @property
    def mixes(self) -> bool:
        """Whether PEFT can run its rows beside those of others."""
        config = self.config
        return bool(
            config.peft_type == "LORA"
            and not config.use_dora
            and config.bias == "none"
            and not config.modules_to_save
            and config.init_lora_weights in _INNOCENT
        )


def read_tenants(named: Mapping[str, Path], prefix: str) -> dict[str, Tenant]:
    """What is to be known of adapters before PEFT loads them; ``prefix`` is the base's.

    Raises:
        AdapterError: naming every adapter of another library; or a path is no adapter.
    """
    tenants, problems = {}, []
    for name, path in named.items():
        adapter = read_adapter(path)
        if not adapter.source_type.startswith("peft:"):
            problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    str(path),
                    got=f"an adapter of another library ({adapter.source_type})",
                    expected="PEFT adapters",
                    cause="the adapters library needs another transformers than adexport does",
                    mend="run the adapter with its library, in an environment of its own, and compare "
                    "with what `adexport run --json` prints",
                )
            )
            continue
        folder = path if path.is_dir() else path.parent
        tenants[name] = Tenant(
            folder=folder,
            config=PeftConfig.from_pretrained(str(folder)),
            prefixed=bool(prefix) and any(f"{m}.".startswith(f"{prefix}.") for m in adapter.modules),
            headed=bool(adapter.head or adapter.replaced),
        )
    if problems:
        raise AdapterError("nothing was compared", problems)
    return tenants


def run_peft(
    loaded: LoadedModel,
    tenants: Mapping[str, Tenant],
    feeds: Mapping[str, Array],
    rows: Sequence[tuple[str | None, int]],
    outputs: Sequence[str],
) -> list[RowOutputs]:
    """What torch and PEFT compute for every row of a batch.

    Args:
        loaded: the base that the bundle was built from; left as it was.
        tenants: by name.
        feeds: the inputs, the batch first.
        rows: for each row an adapter, or None for the base, and the number of its labels.
        outputs: the bundle's outputs.

    Returns:
        For each row the outputs that the model has there, float32, without the batch.
    """
    names = [name for name, _ in rows]
    headed = not is_bare(loaded.model)
    if tenants and all(tenant.mixes and tenant.prefixed == headed for tenant in tenants.values()):
        mixed = _mixed(loaded.model, tenants, feeds, names, outputs)
        if mixed is not None:
            return mixed
    found: list[RowOutputs] = [{} for _ in rows]
    for name, labels in dict.fromkeys(rows):
        mine = [row for row, other in enumerate(names) if other == name]
        model = loaded.model if name is None else _alone(loaded, tenants[name], labels)
        part = {key: value[mine] for key, value in feeds.items()}
        for row, result in zip(mine, _run(model, part, outputs), strict=True):
            found[row] = result
    return found


def _mixed(
    model: Any,
    tenants: Mapping[str, Tenant],
    feeds: Mapping[str, Array],
    rows: Sequence[str | None],
    outputs: Sequence[str],
) -> list[RowOutputs] | None:
    """The whole batch in one model; None where PEFT does not know how."""
    (first, tenant), *others = tenants.items()
    peft = PeftModel.from_pretrained(copy.deepcopy(model), str(tenant.folder), adapter_name=first)
    for name, tenant in others:
        peft.load_adapter(str(tenant.folder), adapter_name=name)
    names = [_PEFT_BASE if name is None else name for name in rows]
    try:  # some layers refuse a mixed batch
        return _run(peft.eval(), feeds, outputs, adapter_names=names)
    except (TypeError, ValueError):
        return None


def _alone(loaded: LoadedModel, tenant: Tenant, labels: int) -> Any:
    """A model of the adapter's own."""
    model = loaded.model
    task = loaded.task if loaded.task in CLASSIFICATION else _TASKS.get(str(tenant.config.task_type))
    if tenant.headed or (tenant.prefixed and is_bare(model)):
        if task is None:
            raise BuildError(
                "nothing was compared",
                Problem(
                    Code.UNSUPPORTED,
                    str(tenant.folder),
                    got=f"paths of a model with a head, and task_type {tenant.config.task_type}",
                    expected="a task_type that says which: " + ", ".join(_TASKS),
                    mend="build the bundle with the --task of the adapter",
                ),
            )
        model, _, _ = load_torch(loaded.source, task, labels if tenant.headed else None)
    else:
        model = copy.deepcopy(model)
    if tenant.prefixed or is_bare(model):
        return PeftModel.from_pretrained(model, str(tenant.folder)).eval()
    # its paths start at the base inside: there PEFT puts it, in place
    PeftModel.from_pretrained(model.base_model, str(tenant.folder)).eval()
    return model


def _run(model: Any, feeds: Mapping[str, Array], outputs: Sequence[str], **more: Any) -> list[RowOutputs]:
    """Outputs of the model and of the base inside it, by row."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    kept: dict[str, Any] = {}
    handle = inner.base_model.register_forward_hook(lambda _module, _args, output: kept.update(output))
    try:
        with torch.no_grad():
            kept |= model(**tensors, **more, return_dict=True)
    finally:
        handle.remove()
    arrays = {name: kept[name].to(torch.float32).numpy() for name in outputs if name in kept}
    batch = len(next(iter(feeds.values())))
    return [{name: array[row] for name, array in arrays.items()} for row in range(batch)]
