"""Tensor names of AdapterHub: a module's path, the kind of adapter, the adapter's name, and a part."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ...errors import Code, Problem
from ...tensors import Array, TensorFile
from . import legacy

Kind = Literal["adapters", "loras"]

#: why what all layers share may not be there
FORGOTTEN = (
    "saved from a class whose modules have no prefix (BertModel, not BertAdapterModel), from which the "
    "library forgets what all layers share"
)
OTHER_CONFIG = "put the config beside the file that it was saved with"

#: other tensors that the library writes -> what they are
_EXPLAINED = tuple(
    (re.compile(rf"(.*\.)?({names})\..*", re.DOTALL), why)
    for names, why in {
        "invertible_adapters": "an invertible adapter behind the embeddings; it has no slot",
        "adapter_fusion_layer": "a fusion of several adapters; it has no slot",
        "prefix_tunings|prefix_gates": "prefix tuning; it has no slot",
        "prompt_tunings": "prompt tuning; it has no slot",
        "refts": "an intervention of ReFT; it has no slot",
        "heads": "a head; it belongs into model_head.safetensors",
        "adapters|loras|shared_parameters": "an adapter of another name or kind than the config's",
    }.items()
)


class Tensor(NamedTuple):
    """A tensor and what it is called in its file."""

    name: str
    array: Array


Parts = Mapping[str, Tensor]


@dataclass
class Sorted:
    """The tensors of one adapter: by module and part, and those that all layers share, by part."""

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def without(self, prefix: str) -> Sorted:
        """The same without parts that start so: those that the config is refused for already."""
        kept = {
            module: {part: tensor for part, tensor in parts.items() if not part.startswith(prefix)}
            for module, parts in self.modules.items()
        }
        return Sorted(kept, self.shared, self.problems)


def sort_tensors(file: TensorFile, kind: Kind, adapter: str) -> Sorted:
    """Sort the tensors of a file; whatever is not of this adapter and kind is a problem."""
    found = Sorted()
    name = re.escape(adapter)
    own = re.compile(rf"(?P<module>.+)\.{kind}\.{name}\.(?P<part>.+)", re.DOTALL)
    shared = re.compile(rf"(?:[A-Za-z_]\w*\.)*shared_parameters\.{name}\.(?P<part>\w+)")
    for written, array in file.tensors.items():
        key = legacy.tensor_name(written)
        if array.dtype.kind not in "fV":
            found.problems.append(
                Problem(Code.WRONG_DTYPE, written, got=str(array.dtype), expected="a float type")
            )
        elif match := shared.fullmatch(key):
            _put(found, found.shared, match["part"], Tensor(written, array))
        elif match := own.fullmatch(key):
            parts = found.modules.setdefault(match["module"], {})
            _put(found, parts, match["part"], Tensor(written, array))
        else:
            cause = next((why for pattern, why in _EXPLAINED if pattern.fullmatch(key)), "")
            found.problems.append(
                Problem(
                    Code.UNKNOWN_TENSOR,
                    written,
                    got=f"shape {list(array.shape)}",
                    expected=f"….{kind}.{adapter}.…, as the config's name says",
                    cause=cause or "not a tensor of this library",
                )
            )
    return found


def _put(found: Sorted, parts: dict[str, Tensor], part: str, tensor: Tensor) -> None:
    if part in parts:
        found.problems.append(
            Problem(
                Code.DUPLICATE_KEY,
                tensor.name,
                got=f"also as {parts[part].name}",
                expected="each tensor once",
                cause="two checkpoints merged into one file",
            )
        )
    else:
        parts[part] = tensor


def shape_problems(
    where: str, parts: Parts, expected: Mapping[str, tuple[int, ...]], absent_cause: str = "a partial save"
) -> list[Problem]:
    """What keeps the tensors of one module from being exactly the expected ones.

    Args:
        where: the module, for messages.
        parts: its tensors.
        expected: shapes by part.
        absent_cause: why a tensor may be missing.
    """
    problems = []
    if lacking := [part for part in expected if part not in parts]:
        problems.append(
            Problem(
                Code.HALF_MISSING,
                where,
                got=", ".join(parts) or "no tensors",
                expected=", ".join(lacking) + " too",
                cause=absent_cause,
                mend="save the adapter again",
            )
        )
    problems += [
        Problem(
            Code.UNKNOWN_TENSOR,
            tensor.name,
            got=f"shape {list(tensor.array.shape)}",
            expected=", ".join(expected),
            cause="the config says nothing of such a tensor",
            mend=OTHER_CONFIG,
        )
        for part, tensor in parts.items()
        if part not in expected
    ]
    problems += [
        Problem(
            Code.WRONG_SHAPE,
            tensor.name,
            got=f"shape {list(tensor.array.shape)}",
            expected=f"{list(expected[part])}, as the config says",
            cause="adapter_config.json of another adapter",
            mend=OTHER_CONFIG,
        )
        for part, tensor in parts.items()
        if part in expected and tensor.array.shape != expected[part]
    ]
    return problems


def misplaced(module: str, parts: Parts, why: str) -> Problem:
    """A module with tensors where no adapter can be."""
    names = [tensor.name for tensor in parts.values()]
    return Problem(
        Code.UNKNOWN_TENSOR,
        names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
        got=f"an adapter at {module}",
        cause=why,
        mend=OTHER_CONFIG,
    )


class Block(NamedTuple):
    """Where a module is: the path of the list of blocks, the block's number, the path in the block."""

    stack: str
    layer: int
    path: str


_ALBERT = re.compile(r"albert_layers\.(?P<inner>\d{1,6})\.(?P<path>.+)")


def _block_of(module: str) -> Block | None:
    """The block of a module by the first number in its path; of ALBERT, the group."""
    segments = module.split(".")
    for index, segment in enumerate(segments[:-1]):
        if segment.isdecimal() and segment.isascii() and len(segment) <= 6:
            return Block(".".join(segments[:index]), int(segment), ".".join(segments[index + 1 :]))
    return None


class Blocks:
    """Numbers blocks as the library does: one after the other, ALBERT's across its groups."""

    def __init__(self, modules: Collection[str], leave_out: Collection[int]) -> None:
        """Take the numbers from what there is.

        Args:
            modules: all that the file has: they tell how many blocks a group of ALBERT has.
            leave_out: blocks without an adapter, as the config says.
        """
        blocks = [block for block in map(_block_of, modules) if block is not None]
        pairs = [(b.layer, int(found["inner"])) for b in blocks if (found := _ALBERT.fullmatch(b.path))]
        self._inner = 1 + max((inner for _, inner in pairs), default=0)
        self.problems: list[Problem] = []
        if leave_out and any(group for group, _ in pairs):
            cause = "in several groups of layers it hides how many each has"
            self.problems.append(Problem(Code.UNSUPPORTED, "leave_out", f"{leave_out}"[:80], cause=cause))
        stacks = sorted({block.stack for block in blocks})
        if len(stacks) > 1:
            self.problems.append(
                Problem(
                    Code.UNSUPPORTED,
                    " and ".join(stacks[:4]),
                    got="adapters in several stacks of blocks",
                    expected="one",
                    cause="two checkpoints in one file, or a model of several stacks (encoder and decoder)",
                )
            )

    def of(self, module: str) -> Block | None:
        """The block of a module; None where there is no number in its path."""
        block = _block_of(module)
        if block is None or not (found := _ALBERT.fullmatch(block.path)):
            return block
        return Block(block.stack, block.layer * self._inner + int(found["inner"]), found["path"])
