"""The resident weights of many adapters: one array for each slot input, one row for each adapter.

Row 0 is the identity (no adapter) and never changes. Invariants that keep tenants apart:

* A run leases its rows; a leased row is never written, so no run sees a half-written one.
* A rebind takes a fresh row and retires the old one; runs that hold the old row finish on it.
* Arrays are replaced, never resized: a lease keeps the arrays that it was given.
* Whoever writes holds ``_writer``; the tables change under ``_state``, which is held only briefly.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import dtypes
from .errors import BankFullError, Code, Problem, UnknownAdapterError
from .manifest import SlotInput
from .tensors import Array

IDENTITY_ROW = 0
#: symbolic sizes (ranks) are rounded up to this, the width of a vector register in float32
_STEP = 8

Tensors = Mapping[str, Array]


class Row(NamedTuple):
    """What is bound under a name: slot tensors, and whatever the caller wants back with a lease."""

    tensors: Tensors
    info: Any = None


@dataclass
class _Entry:
    """One binding of a name. A rebind makes a new entry, so a row belongs to one generation."""

    name: str
    generation: int
    load: Callable[[], Row] | None
    tensors: Tensors | None
    info: Any = None
    row: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    used: int = 0


class Lease(NamedTuple):
    """The rows that a run may read, and the arrays to read them from.

    ``layout`` changes when arrays are replaced, ``revision`` whenever anything was written.
    """

    rows: Mapping[str, int]
    entries: Mapping[str, _Entry]
    arrays: Tensors
    layout: int
    revision: int

    @property
    def generations(self) -> dict[str, int]:
        """Which binding of a name a row holds: one row and generation is one content, for ever."""
        return {name: entry.generation for name, entry in self.entries.items()}

    @property
    def infos(self) -> dict[str, Any]:
        """What each name was bound with."""
        return {name: entry.info for name, entry in self.entries.items()}

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """The ragged sizes of each name's own."""
        return {name: entry.sizes for name, entry in self.entries.items()}

    def tensors(self, slots: Mapping[str, Sequence[str | int]], name: str) -> Tensors:
        """The tensors of one name, without the dimension of rows: views, good while the lease is held.

        ``slots`` are the shapes of the slot inputs without the rows.
        """
        row, sizes = self.rows[name], self.entries[name].sizes
        return {
            slot: self.arrays[slot][row, ...][
                tuple(slice(size if isinstance(size, int) else sizes.get(size, 0)) for size in shape)
            ]
            for slot, shape in slots.items()
        }


class Bank:
    """Rows of adapters, picked by name, safe to use from several threads."""

    def __init__(
        self,
        slots: Sequence[SlotInput],
        dtype: np.dtype[Any],
        rows: int | None = None,
        most: int | None = None,
    ) -> None:
        """Make an empty bank.

        Args:
            slots: the slot inputs; a number in a shape is a fixed size, a name a ragged one.
            dtype: element type of the arrays, where a slot input does not name its own.
            rows: how many adapters may be resident at once; None grows as needed. Adapters
                beyond it stay in host memory and take the place of the least recently used.
            most: how far a bank without ``rows`` may grow; None: without end.
        """
        self._slots = {slot.name: slot.shape[1:] for slot in slots}
        self._dtypes = {
            slot.name: dtype if slot.dtype == "float" else dtypes.NUMPY[slot.dtype] for slot in slots
        }
        self._identity = {slot.name: 1 if slot.identity == "ones" else 0 for slot in slots}
        self._limit = rows if rows is not None else most
        self._writer = threading.RLock()
        self._lock = threading.Lock()
        self._state = threading.Condition(self._lock)  # the same, for those who wait for a row
        self._waiting = 0
        self._entries: dict[str, _Entry] = {}
        self._holders: list[_Entry | None] = [None]
        self._leases: list[int] = [1]  # the identity is leased for ever: it is never written
        self._sizes = {symbol: 0 for shape in self._slots.values() for symbol in _symbols(shape)}
        self._layout = 0
        self._revision = 0
        self._ticks = itertools.count(1)
        self._generations = itertools.count(1)
        self._arrays: Tensors = {}
        if rows is None:
            rows = 1 if most is None else min(1, most)
        self._reshape(self._sizes, 1 + rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all resident arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def capacity(self) -> int:
        """Rows for adapters in the present arrays (the identity's row not counted)."""
        return len(self._leases) - 1

    def generations(self) -> dict[str, int]:
        """The bound names with the generation of each: a rebind is a new generation."""
        with self._state:
            return {name: entry.generation for name, entry in self._entries.items()}

    def check(self, names: Iterable[str]) -> None:
        """See whether all names are bound.

        Raises:
            UnknownAdapterError: naming every name that is not.
        """
        with self._state:
            self._resolve(names)

    def put(self, name: str, tensors: Tensors, info: Any = None) -> None:
        """Bind ``name`` (again). Runs that have leased the earlier row finish on it.

        ``tensors`` maps slot inputs to arrays without the row dimension; slot inputs that are
        not named get the identity.
        """
        with self._writer:
            entry = _Entry(name, next(self._generations), None, tensors, info)
            row = self._free_row() if self._grow_for_one() else None
            if row is not None:
                self._write(entry, row)
            with self._state:
                self._forget(self._entries.get(name))
                self._entries[name] = entry
            self._fit_sizes()

    def put_lazily(self, name: str, load: Callable[[], Row]) -> None:
        """Bind ``name`` to weights that are read when a run first asks for them."""
        with self._writer:
            with self._state:
                self._forget(self._entries.get(name))
                self._entries[name] = _Entry(name, next(self._generations), load, None)
            self._fit_sizes()

    def drop(self, name: str) -> None:
        """Unbind ``name``. Its row is free once no run holds it.

        Raises:
            UnknownAdapterError: nothing is bound under that name.
        """
        with self._writer:
            with self._state:
                self._forget(self._resolve([name])[name])
                del self._entries[name]
            self._fit_sizes()

    def lease(self, names: Iterable[str]) -> AbstractContextManager[Lease]:
        """Hold the rows of ``names`` for the time of a run.

        Raises, once it is entered:
            UnknownAdapterError: naming every name that is not bound.
            BankFullError: more different names than the bank has rows.
        """
        return _Holding(self, set(names))

    def _take(self, wanted: set[str]) -> Lease:
        return self._lease_resident(wanted) or self._lease_paged(wanted)

    def _give_back(self, lease: Lease) -> None:
        with self._lock:
            for row in lease.rows.values():
                self._leases[row] -= 1
            if self._waiting:
                self._state.notify_all()

    def _lease_resident(self, wanted: set[str]) -> Lease | None:
        """Lease if all rows are resident, else None."""
        with self._lock:
            entries = self._resolve(wanted)
            rows = {name: entry.row for name, entry in entries.items() if entry.row is not None}
            if len(rows) < len(entries):
                return None
            for name, row in rows.items():
                self._leases[row] += 1
                entries[name].used = next(self._ticks)
            return Lease(rows, entries, self._arrays, self._layout, self._revision)

    def _lease_paged(self, wanted: set[str]) -> Lease:
        """Bring in what is not resident, then lease; one paging run at a time."""
        if self._limit is not None and len(wanted) > self._limit:
            raise BankFullError(
                "the batch does not fit",
                Problem(
                    Code.BANK_FULL,
                    f"{len(wanted)} different adapters in one batch",
                    expected=f"at most {self._limit} (rows={self._limit})",
                    mend="split the batch, or open the engine with more rows",
                ),
            )
        with self._writer:
            while True:
                with self._state:
                    absent = [e for e in self._resolve(wanted).values() if e.row is None]
                if not absent and (lease := self._lease_resident(wanted)):
                    return lease
                for entry in absent:
                    self._load(entry)
                    self._write(entry, self._free_row(evict=True, keep=wanted))
                self._fit_sizes()

    def _load(self, entry: _Entry) -> None:
        if entry.tensors is None:
            assert entry.load is not None
            entry.tensors, entry.info = entry.load()

    def _resolve(self, names: Iterable[str]) -> dict[str, _Entry]:
        found = {name: self._entries.get(name) for name in names}
        unknown = sorted(name for name, entry in found.items() if entry is None)
        if unknown:
            bound = ", ".join(sorted(self._entries)[:20]) or "none"
            raise UnknownAdapterError(
                "unknown adapter",
                [
                    Problem(
                        Code.UNKNOWN_ADAPTER,
                        name,
                        got="a name that is not bound",
                        expected=f"a bound name ({bound})",
                        mend="engine.bind(name, source), or `adexport bind`",
                    )
                    for name in unknown
                ],
            )
        return {name: entry for name, entry in found.items() if entry is not None}

    def _forget(self, entry: _Entry | None) -> None:
        """Retire an entry's row (under ``_state``)."""
        if entry is not None and entry.row is not None:
            self._holders[entry.row] = None
            entry.row = None

    def _grow_for_one(self) -> bool:
        """Make sure that a row is free, if the bank may grow; False if it is full."""
        with self._state:
            if self._idle_row() is not None:
                return True
        rows = 2 * len(self._leases)
        if self._limit is not None:
            rows = min(rows, 1 + self._limit)
        if rows == len(self._leases):
            return False
        self._reshape(self._sizes, rows)
        return True

    def _idle_row(self) -> int | None:
        pairs = zip(self._holders, self._leases, strict=True)
        return next((row for row, (holder, held) in enumerate(pairs) if not holder and not held), None)

    def _free_row(self, *, evict: bool = False, keep: Iterable[str] = ()) -> int:
        """A row that nobody holds; may evict the least recently used, or wait for a run to end."""
        self._grow_for_one()
        with self._state:
            while True:
                row = self._idle_row()
                if row is not None:
                    return row
                assert evict
                idle = [
                    holder
                    for row, holder in enumerate(self._holders)
                    if holder and not self._leases[row] and holder.name not in keep
                ]
                if idle:
                    self._forget(min(idle, key=lambda holder: holder.used))
                else:
                    self._waiting += 1
                    try:
                        self._state.wait()
                    finally:
                        self._waiting -= 1

    def _write(self, entry: _Entry, row: int) -> None:
        """Fill an idle row, then publish it (under ``_writer``; the row is nobody's meanwhile)."""
        assert entry.tensors is not None
        entry.sizes = sizes_of(self._slots, entry.tensors)
        needed = {symbol: max(size, entry.sizes.get(symbol, 0)) for symbol, size in self._sizes.items()}
        if needed != self._sizes:
            self._reshape(rounded_sizes(needed), len(self._leases))
        for name, array in self._arrays.items():
            array[row] = self._identity[name]
            tensor = entry.tensors.get(name)
            if tensor is not None:
                array[row, ...][tuple(slice(size) for size in tensor.shape)] = tensor
        with self._state:
            self._holders[row] = entry
            entry.row = row
            self._revision += 1
            if self._limit is None:
                entry.tensors = None  # never evicted: the row is the only copy that is needed

    def _fit_sizes(self) -> None:
        """Narrow the arrays when the widest adapter is gone: the others would pay for its rank."""
        with self._state:
            resident = [holder.sizes for holder in self._holders if holder]
        widest = {
            symbol: max((sizes.get(symbol, 0) for sizes in resident), default=0) for symbol in self._sizes
        }
        if rounded_sizes(widest) != self._sizes:
            self._reshape(rounded_sizes(widest), len(self._leases))

    def _reshape(self, sizes: dict[str, int], rows: int) -> None:
        """Replace the arrays by ones of other sizes, with the content of all resident rows."""
        arrays: dict[str, Array] = {}
        resident = [row for row, holder in enumerate(self._holders) if holder]
        for name, shape in self._slots.items():
            fixed = [size if isinstance(size, int) else sizes[size] for size in shape]
            new = np.zeros([rows, *fixed], self._dtypes[name])
            if self._identity[name]:
                new.fill(self._identity[name])
            old = self._arrays.get(name)
            if old is not None:
                common = tuple(slice(min(pair)) for pair in zip(fixed, old.shape[1:], strict=True))
                for row in resident:
                    new[row, ...][common] = old[row, ...][common]
            arrays[name] = new
        with self._state:
            self._holders += [None] * (rows - len(self._holders))
            self._leases += [0] * (rows - len(self._leases))
            self._arrays, self._sizes = arrays, dict(sizes)
            self._layout += 1
            self._revision += 1


class _Holding:
    """A lease from entry to exit; a generator would cost each run more."""

    def __init__(self, bank: Bank, names: set[str]) -> None:
        self._bank = bank
        self._names = names

    def __enter__(self) -> Lease:
        self._lease = self._bank._take(self._names)
        return self._lease

    def __exit__(self, *_: object) -> None:
        self._bank._give_back(self._lease)


def _symbols(shape: Iterable[str | int]) -> list[str]:
    return [size for size in shape if isinstance(size, str)]


def rounded_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Ragged sizes as arrays have them."""
    return {symbol: -(-size // _STEP) * _STEP for symbol, size in sizes.items()}


def sizes_of(slots: Mapping[str, Sequence[str | int]], tensors: Tensors) -> dict[str, int]:
    """The size that the tensors give to every symbol."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        for symbol, size in zip(slots[name], tensor.shape, strict=True):
            if isinstance(symbol, str):
                sizes[symbol] = max(size, sizes.get(symbol, 0))
    return sizes
