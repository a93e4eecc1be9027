"""Timing that holds on a busy machine: interleaved rounds, medians, and ratios within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adexport_runtime.tensors import Array


@dataclass(frozen=True)
class Samples:
    """Seconds of one contender, an entry for each round: of this process's CPU time, and wall time."""

    cpu: Array
    wall: Array


@dataclass(frozen=True)
class Quartiles:
    """The median and the quarters around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Array) -> Quartiles:
        """Of at least one value."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(low), float(median), float(high))


def interleave(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, Samples]:
    """Time every contender once in each of ``repeats`` rounds.

    A round starts with another contender each time, so that none always runs on caches that the
    same neighbour left behind.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    names = list(runs)
    cpu = {name: np.empty(repeats) for name in names}
    wall = {name: np.empty(repeats) for name in names}
    for index in range(repeats):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            before = (time.process_time(), time.perf_counter())
            runs[name]()
            cpu[name][index] = time.process_time() - before[0]
            wall[name][index] = time.perf_counter() - before[1]
    return {name: Samples(cpu[name], wall[name]) for name in names}


def ratios(mine: Samples, other: Samples) -> tuple[Quartiles, Quartiles]:
    """``mine / other`` round by round: of CPU time, and of wall time."""
    return Quartiles.of(mine.cpu / other.cpu), Quartiles.of(mine.wall / other.wall)
