"""Continuous batching: texts join and leave a batch that decodes, each with its own adapter.

A step takes in waiting prompts, then runs one token of every text that decodes. Each text has a seat: a
row of the caches and of the slot inputs. Prompts run in a span of seats of their own, so nothing is
copied between the two; when a text ends, the last seat moves into its place.

The rows of a graph never meet, and sampling looks at a row alone: a text that fails, ends or is
cancelled disturbs no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from .. import dtypes
from ..backends import Backend, Binding
from ..batch_rows import BatchRows
from ..errors import AdexportError, Code, Problem, RequestError
from ..manifest import Manifest
from ..tensors import Array
from .request import Reason, Request

PutAdapter = Callable[[BatchRows, int, str], None]

#: how much of a batch of prompts may be padding
_PADDING = 1.25


class Batch:
    """Texts that are generated side by side. Not for several threads at once."""

    def __init__(
        self,
        backend: Callable[[], Backend],
        manifest: Manifest,
        put_adapter: PutAdapter,
        rows: int,
        room: int,
        prompt_tokens: int,
        prompts: int,
    ) -> None:
        """Reserve memory.

        Args:
            backend: gives what runs the graph; raises if the engine is closed.
            manifest: of a bundle that generates.
            put_adapter: puts the adapter of a name into a row.
            rows: how many texts at once.
            room: tokens of a text, its prompt included.
            prompt_tokens: the most that a step takes in of prompts, so that texts under way need not
                wait long; longer prompts go in by pieces.
            prompts: the most prompts that run side by side.
        """
        assert manifest.generation is not None
        self._generation = manifest.generation
        self._backend = backend
        self._put_adapter = put_adapter
        self._prompt_tokens = prompt_tokens
        self._prompts = prompts
        self._waiting: deque[Request] = deque()
        self._caches = backend().caches(rows, room)  # first: it fails where too much is asked for
        self._seats: list[Request | None] = [None] * rows
        self._slots = BatchRows(manifest.slot_inputs, dtypes.NUMPY[manifest.base.dtype], rows)
        self._decoding = Binding()

    @property
    def nbytes(self) -> int:
        """Bytes of the caches when full, and of the slot inputs as they are."""
        return self._caches.nbytes + self._slots.nbytes

    def add(self, request: Request) -> None:
        """Let a text join as soon as a seat is free."""
        self._waiting.append(request)

    def step(self) -> bool:
        """Run one token of every text; returns whether there is more to do."""
        self._drop_cancelled()
        self._take_in()
        self._decode()
        self._leave()
        return bool(self._waiting) or any(self._seats)

    def fail(self, error: AdexportError) -> None:
        """End all texts with an error."""
        self._end_all("error", error)

    def cancel(self) -> None:
        """End all texts as cancelled."""
        self._end_all("cancelled")

    def _end_all(self, reason: Reason, error: AdexportError | None = None) -> None:
        for request in (*self._waiting, *self._seats):
            if request is not None:
                request.end(reason, error)
        self._waiting.clear()
        self._leave()

    def _drop_cancelled(self) -> None:
        for request in (*self._waiting, *self._seats):
            if request is not None and request.cancelled:
                request.end("cancelled")
        self._waiting = deque(request for request in self._waiting if not request.ended)
        self._leave()

    def _take_in(self) -> None:
        """Run the prompts that wait, or the next piece of a long one."""
        partial = next((i for i, seat in enumerate(self._seats) if seat and not seat.prefilled), None)
        seats = self._admit() if partial is None else [partial]
        if not seats:
            return
        requests = [request for seat in seats if (request := self._seats[seat]) is not None]
        pieces = [request.ids[request.past :][: self._prompt_tokens] for request in requests]
        width = max(len(piece) for piece in pieces)
        ids = np.zeros((len(pieces), width), np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = piece
        logits = self._run(Binding(), seats, ids, [len(piece) for piece in pieces])
        if logits is None:
            return
        for row, (request, piece) in enumerate(zip(requests, pieces, strict=True)):
            request.past += len(piece)
            if request.prefilled:
                self._sample(request, logits[row])

    def _admit(self) -> list[int]:
        """Give seats side by side to the next texts whose prompts go well together."""
        free = self._free_span()
        seats: list[int] = []
        longest = total = 0
        while self._waiting and len(seats) < min(len(free), self._prompts):
            request = self._waiting[0]
            tokens = len(request.ids)
            wide = max(longest, tokens)
            padded = wide * (len(seats) + 1)
            if seats and (padded > self._prompt_tokens or padded > _PADDING * (total + tokens)):
                break
            self._waiting.popleft()
            seat = free[len(seats)]
            try:
                if request.adapter is not None:
                    self._put_adapter(self._slots, seat, request.adapter)
            except Exception as error:  # the request sits nowhere yet: nobody else would end it
                request.end("error", _known(error, "no row for the adapter", str(request.adapter)))
                continue
            self._seats[seat] = request
            seats.append(seat)
            longest, total = wide, total + tokens
        return seats

    def _free_span(self) -> range:
        """The first free seats that lie side by side."""
        taken = [seat is not None for seat in self._seats]
        if all(taken):
            return range(0)
        start = taken.index(False)
        after = taken[start:]
        return range(start, start + after.index(True) if True in after else len(taken))

    def _decode(self) -> None:
        """One token of every text whose prompt is in the cache."""
        decoding = [i for i, seat in enumerate(self._seats) if seat and seat.prefilled and not seat.ended]
        if not decoding:
            return
        seats = range(decoding[-1] + 1)
        ids = np.zeros((len(seats), 1), np.int64)
        for seat in decoding:
            request = self._seats[seat]
            assert request is not None
            ids[seat, 0] = request.last
        logits = self._run(self._decoding, seats, ids, [1] * len(seats))
        if logits is None:
            return
        for seat in decoding:
            request = self._seats[seat]
            assert request is not None
            request.past += 1
            self._sample(request, logits[seat])

    def _run(
        self, binding: Binding, seats: list[int] | range, ids: Array, lengths: list[int]
    ) -> Array | None:
        """The logits behind the last new token of each seat; None after a failure, which ends its texts.

        A seat in the span that nobody decodes on writes one token behind its past, where the next
        token of whoever sits there will overwrite it.
        """
        requests = [self._seats[seat] for seat in seats]
        feeds = {
            "input_ids": ids,
            self._generation.lengths: np.array(lengths, np.int64),
            self._generation.past_lengths: np.array([r.past if r else 0 for r in requests], np.int64),
            self._generation.logits_at: np.array(lengths, np.int64)[:, None] - 1,
        }
        try:
            rows = slice(seats[0], seats[-1] + 1)
            logits = self._backend().step(feeds, self._slots, self._caches, rows, binding)
        except Exception as error:  # whatever a provider throws
            failure = _known(error, "the batch failed", "the graph")
        else:
            return logits[:, 0]
        for request in requests:
            if request is not None:
                request.end("error", failure)
        return None

    def _sample(self, request: Request, logits: Array) -> None:
        try:
            token = request.sampler.next(logits)
        except AdexportError as error:
            request.end("error", error)
        else:
            request.take(token)

    def _leave(self) -> None:
        """Free the seats of texts that have ended, and close the gaps."""
        for seat, request in enumerate(self._seats):
            if request is not None and request.ended:
                self._seats[seat] = None
                if request.adapter is not None:
                    self._slots.put(seat, {})
        if self._caches.movable:
            self._close_gaps()

    def _close_gaps(self) -> None:
        taken = [i for i, seat in enumerate(self._seats) if seat is not None]
        gaps = [i for i in range(len(taken)) if self._seats[i] is None]
        for gap, seat in zip(gaps, reversed(taken), strict=False):
            request = self._seats[seat]
            assert request is not None
            self._caches.move(seat, gap, request.past)
            self._slots.move(seat, gap)
            self._seats[gap], self._seats[seat] = request, None


def _known(error: Exception, headline: str, subject: str) -> AdexportError:
    """The error as one of the library's."""
    if isinstance(error, AdexportError):
        return error
    return RequestError(headline, Problem(Code.RUN_FAILED, subject, got=f"{type(error).__name__}: {error}"))
