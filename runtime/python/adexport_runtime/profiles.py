"""Profiles: the sizes that a TensorRT engine is built for.

Every ragged size of a graph is of a kind: ``batch`` and ``seq``; ``rows`` of the bank, the identity's
included; ``rank``, ``width``, ``labels`` and ``mid`` (between two layers of a head) of adapters; ``room``
of KV caches and ``wanted``, the places whose logits are asked for. A profile has a range for each kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from .errors import Code, Problem, RequestError
from .graph_io import BATCH, IDS, Tensor, engine_inputs, kind_of
from .manifest import Manifest
from .schema import Schema, Text

_SEPARATOR = ","
#: the largest size that TensorRT takes
_LARGEST = 2**31 - 1

#: what a kind of size is, unless said otherwise: smallest, usual and largest
_USUAL: dict[str, tuple[int, int, int]] = {
    "batch": (1, 8, 32),
    "seq": (1, 128, 512),
    "rows": (1, 17, 65),
    "rank": (1, 16, 64),
    "width": (1, 48, 64),
    "labels": (1, 4, 64),
    "room": (1, 512, 2048),
    "wanted": (1, 1, 512),
}


Size = Annotated[int, Field(gt=0, le=_LARGEST)]


class Shapes(NamedTuple):
    """The smallest, the usual and the largest shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Range(Schema):
    """The smallest, the usual and the largest value of a size."""

    min: Size
    opt: Size
    max: Size

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min <= opt <= max does not hold for {self}")
        return self

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class Profile(Schema):
    """A range for every kind of size."""

    sizes: Annotated[dict[Text, Range], Field(min_length=1)]

    def __str__(self) -> str:
        return _SEPARATOR.join(f"{kind}={size}" for kind, size in self.sizes.items())

    def range_of(self, symbol: str | int) -> Range:
        """The range of one size of a shape; a number is fixed."""
        if isinstance(symbol, int):
            return Range(min=symbol, opt=symbol, max=symbol)
        return self.sizes[_kind(symbol)]

    def shapes(self, tensor: Tensor) -> Shapes:
        """The shapes of an input."""
        ranges = [self.range_of(size) for size in tensor.shape]
        low, usual, high = (tuple(getattr(r, at) for r in ranges) for at in ("min", "opt", "max"))
        if tensor.shape == (IDS,):  # an adapter for all rows, or one each
            low = (1,)
        return Shapes(low, usual, high)

    def misfits(self, tensor: Tensor, shape: Iterable[int]) -> list[tuple[str, int, Range]]:
        """The sizes of a real shape that the profile does not hold: kind, value, range."""
        found = []
        for symbol, size in zip(tensor.shape, shape, strict=True):
            wanted = self.range_of(symbol)
            low = 1 if symbol == IDS else wanted.min
            if not low <= size <= wanted.max:
                found.append((_kind(symbol) if isinstance(symbol, str) else str(symbol), size, wanted))
        return found


def _kind(symbol: str) -> str:
    kind = kind_of(symbol)
    return BATCH if kind == IDS else kind


def kinds_of_sizes(manifest: Manifest) -> tuple[str, ...]:
    """The kinds of sizes that a bundle's graph has, in the order of its inputs."""
    sizes = (size for tensor in engine_inputs(manifest) for size in tensor.shape if isinstance(size, str))
    return tuple(dict.fromkeys(sizes))


def default_profiles(manifest: Manifest) -> tuple[Profile, ...]:
    """What a bundle is likely to meet. One that generates has a profile for steps and one for prompts."""
    limits = manifest.limits
    positions = manifest.base.max_positions
    most = {"rank": limits.max_rank, "width": limits.max_width}
    most |= dict.fromkeys(("seq", "room", "wanted"), positions)
    usual = dict(_USUAL)
    if manifest.head is not None:
        features = manifest.head.features
        usual["mid"] = (1, features, features)
        usual["labels"] = (1, 4, max(64, len(manifest.base.labels)))
    sizes = {}
    for kind in kinds_of_sizes(manifest):
        low, opt, high = usual.get(kind, _USUAL["seq"])
        limit = most.get(kind)
        if limit is not None:
            high = limit if kind in ("rank", "width") else min(high, limit)
        sizes[kind] = Range(min=low, opt=min(opt, high), max=high)
    if manifest.generation is None:
        return (Profile(sizes=sizes),)
    one = Range(min=1, opt=1, max=1)
    prompts = sizes | {BATCH: Range(min=1, opt=1, max=sizes[BATCH].max)}
    return Profile(sizes=sizes | {"seq": one, "wanted": one}), Profile(sizes=prompts)


def parse_profiles(texts: Iterable[str], manifest: Manifest) -> tuple[Profile, ...]:
    """Profiles from ``batch=1:8:32,seq=128``; a size that is left out is that of the defaults.

    Raises:
        RequestError: naming every part that is no range of a size of this bundle.
    """
    kinds = kinds_of_sizes(manifest)
    defaults = default_profiles(manifest)
    profiles, problems = [], []
    for text in texts:
        sizes: dict[str, Range] = {}
        for part in text.split(_SEPARATOR):
            kind, _, numbers = (piece.strip() for piece in part.partition("="))
            found = _range(numbers)
            if kind not in kinds:
                problems.append(
                    _problem(part, f"{kind or 'nothing'} as a size", f"one of {', '.join(kinds)}")
                )
            elif kind in sizes:
                problems.append(_problem(part, "the size a second time", "each size once"))
            elif found is None:
                problems.append(
                    _problem(part, numbers[:40] or "no numbers", f"min:opt:max, ordered, 1 to {_LARGEST}")
                )
            else:
                sizes[kind] = found
        profiles.append(Profile(sizes=_completed(sizes, defaults)))
    for profile in profiles:
        problems += profile_problems(profile, manifest)
    if problems:
        raise RequestError("the profile is refused", problems)
    return tuple(profiles) or defaults


def profile_problems(profile: Profile, manifest: Manifest) -> list[Problem]:
    """What in a profile contradicts the bundle: builders would not notice."""
    limits = {
        "rank": manifest.limits.max_rank,
        "width": manifest.limits.max_width,
        "seq": manifest.base.max_positions,
        "room": manifest.base.max_positions,
        "wanted": manifest.base.max_positions,
    }
    problems = [
        _problem(
            f"{kind}={profile.sizes[kind]}",
            f"{profile.sizes[kind].max}",
            f"at most {limit}, the bundle's limit",
        )
        for kind, limit in limits.items()
        if limit is not None and kind in profile.sizes and profile.sizes[kind].max > limit
    ]
    problems += [
        _problem(kind, "no range", "a range for every kind of size")
        for kind in kinds_of_sizes(manifest)
        if kind not in profile.sizes
    ]
    problems += [
        _problem(f"{kind}={size}", f"{kind} as a size", f"one of {', '.join(kinds_of_sizes(manifest))}")
        for kind, size in profile.sizes.items()
        if kind not in kinds_of_sizes(manifest)
    ]
    sizes = profile.sizes
    if "room" in sizes and "seq" in sizes and sizes["room"].max < sizes["seq"].max:
        problems.append(
            _problem(
                f"room={sizes['room']}",
                f"{sizes['room'].max}",
                f"at least {sizes['seq'].max}, as caches must hold every new token of seq",
            )
        )
    return problems


def _completed(sizes: Mapping[str, Range], defaults: tuple[Profile, ...]) -> dict[str, Range]:
    """Sizes with the defaults for what is left out; those that hang together stay together."""
    steps = sizes.get("seq") is not None and sizes["seq"].max == 1
    usual = dict(defaults[0 if steps else -1].sizes)
    if "seq" in sizes and "wanted" in usual:
        usual["wanted"] = Range(min=1, opt=1, max=sizes["seq"].max)
    return usual | dict(sizes)


def _range(text: str) -> Range | None:
    """``1:8:32``, or one number for all three."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,10}", part) for part in parts):
        return None
    low, usual, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return Range(min=low, opt=usual, max=high) if 1 <= low <= usual <= high <= _LARGEST else None


def _problem(subject: str, got: str, expected: str) -> Problem:
    return Problem(
        Code.BAD_INPUT,
        subject.strip()[:60] or "(empty)",
        got=got,
        expected=expected,
        mend="e.g. --profile batch=1:8:32,seq=1:128:512",
    )
