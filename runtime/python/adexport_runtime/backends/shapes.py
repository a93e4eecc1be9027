"""Which profile of an engine a run's shapes go to, and what to say where none takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from ..errors import Code, Problem, RequestError
from ..graph_io import BATCH, IDS, Tensor, kind_of
from ..limits import MEND, PROMPTS, Limits
from ..profiles import Profile, Range

#: kinds of sizes that adapters bring
_OF_ADAPTERS = frozenset({"rank", "width", "labels", "mid"})

Shape = tuple[int, ...]


def envelope(profiles: Sequence[Profile]) -> Profile:
    """From the smallest to the largest that any of the profiles takes."""
    kinds = dict.fromkeys(kind for profile in profiles for kind in profile.sizes)
    found = {}
    for kind in kinds:
        ranges = [profile.sizes[kind] for profile in profiles if kind in profile.sizes]
        low = min(wanted.min for wanted in ranges)
        found[kind] = Range(min=low, opt=ranges[0].opt, max=max(wanted.max for wanted in ranges))
    return Profile(sizes=found)


def limits_of(profiles: Sequence[Profile]) -> Limits:
    """The largest size of each kind; where one generates, also how many prompts may run at once."""
    found = {kind: wanted.max for kind, wanted in envelope(profiles).sizes.items()}
    if "room" in found:
        rows = [profile.sizes[BATCH].max for profile in profiles if profile.sizes["seq"].max > 1]
        found |= {PROMPTS: max(rows)} if rows else {}
    return found


class Shapes:
    """The inputs of an engine and its profiles."""

    def __init__(self, inputs: Iterable[Tensor], profiles: Sequence[Profile]) -> None:
        """Take what an engine's record says."""
        self.inputs = {tensor.name: tensor for tensor in inputs}
        self._profiles = tuple(profiles)
        self._chosen = lru_cache(maxsize=4096)(self._choose)

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """The profile that takes all shapes and whose usual sizes are nearest; the first of equals.

        Args:
            shapes: of every input, by name.

        Raises:
            RequestError: none does; it names every size that some profile does not take.
        """
        return self._chosen(tuple(shapes[name] for name in self.inputs))

    def _choose(self, shapes: tuple[Shape, ...]) -> int:
        given = list(zip(self.inputs.values(), shapes, strict=True))
        misfits = [
            {
                (kind, size): wanted
                for tensor, shape in given
                for kind, size, wanted in profile.misfits(tensor, shape)
            }
            for profile in self._profiles
        ]
        fitting = [index for index, found in enumerate(misfits) if not found]
        if not fitting:
            raise RequestError(
                "no profile of the engine takes this run",
                [self._problem(kind, size) for kind, size in dict.fromkeys(k for m in misfits for k in m)],
            )
        sizes: dict[str, int] = {}
        for tensor, shape in given:
            for symbol, size in zip(tensor.shape, shape, strict=True):
                if isinstance(symbol, str) and symbol != IDS:  # model.onnx has it apart from the batch
                    kind = kind_of(symbol)
                    sizes[kind] = max(size, sizes.get(kind, 0))
        return min(fitting, key=lambda index: (_distance(self._profiles[index], sizes), index))

    def _problem(self, kind: str, size: int) -> Problem:
        if kind.isdigit():  # a fixed size: the caller's arrays were checked, so a record is wrong
            return Problem(Code.BAD_INPUT, "a fixed size", got=str(size), expected=kind)
        ranges = dict.fromkeys(profile.sizes[kind] for profile in self._profiles)
        return Problem(
            Code.RANK_ABOVE_MAX if kind in _OF_ADAPTERS else Code.BAD_INPUT,
            kind,
            got=str(size),
            expected=" or ".join(f"{wanted.min} to {wanted.max}" for wanted in ranges)
            + (f" (profiles: {'; '.join(map(str, self._profiles))})" if len(ranges) > 1 else ""),
            cause="the engine was built for other sizes",
            mend=MEND.format(f"{kind}=1:{size}:{max(size, *(wanted.max for wanted in ranges))}"),
        )


def _distance(profile: Profile, sizes: Mapping[str, int]) -> float:
    """How far sizes are from the usual ones, in factors of each kind."""
    return sum(abs(math.log(size / profile.sizes[kind].opt)) for kind, size in sizes.items())
