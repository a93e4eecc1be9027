"""A batch that decodes on a thread of its own, while requests come from others."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal

from ..errors import AdexportError, Code, Problem, RequestError
from .batch import Batch
from .request import Generated, Request

WhenFull = Literal["wait", "refuse"]


class Stream:
    """One request of a session. Iterating gives its text in pieces, as they become certain.

    One thread may iterate; any may cancel, or ask for the result.
    """

    def __init__(self, has_text: bool) -> None:
        """Wait for the first event; ``has_text``: the bundle has a tokenizer."""
        self._has_text = has_text
        self._events: queue.SimpleQueue[int | str | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._result: Generated | None = None
        self._request: Request | None = None

    def __iter__(self) -> Iterator[str]:
        """The text in pieces.

        Raises:
            RequestError: at the end, if the request failed; or the bundle has no tokenizer.
        """
        if not self._has_text:
            raise RequestError(
                "there is no text",
                Problem(
                    Code.ABSENT,
                    "tokenizer",
                    got="a bundle without a tokenizer",
                    mend="iterate stream.tokens()",
                ),
            )
        return (event for event in self._iterate() if isinstance(event, str))

    def tokens(self) -> Iterator[int]:
        """The ids of the new tokens, in place of the text.

        Raises:
            AdexportError: at the end, if the request failed.
        """
        return (event for event in self._iterate() if isinstance(event, int))

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End the request; its result then holds what there was."""
        if self._request is not None:
            self._request.cancelled = True

    def result(self, timeout: float | None = None) -> Generated:
        """Wait for the end.

        Raises:
            AdexportError: the request failed.
            TimeoutError: it is not done after ``timeout`` seconds.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"not done after {timeout} seconds")
        assert self._result is not None
        if self._result.error is not None:
            raise self._result.error
        return self._result

    def _iterate(self) -> Iterator[int | str]:
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # whoever iterates again ends at once
        self.result()

    def _attach(self, request: Request, ended: Callable[[], None]) -> None:
        """Listen to a request; ``ended`` is called before anybody who waits for its end."""

        def end(result: Generated) -> None:
            ended()
            self._result = result
            self._done.set()
            self._events.put(None)

        request.on_token = self._events.put
        request.on_text = self._events.put
        request.on_end = end
        self._request = request


class Session:
    """Accepts requests while others decode (:meth:`adexport_runtime.Engine.session`).

    Requests that find no free row wait for one, in the order they came, or are refused. Safe to use from
    several threads.
    """

    def __init__(
        self, batch: Batch, prepare: Callable[..., Request], rows: int, when_full: WhenFull
    ) -> None:
        """Start the thread. ``prepare`` makes requests, and refuses those that can never fit."""
        self._batch = batch
        self._prepare = prepare
        self._rows = rows
        self._when_full = when_full
        self._arrived: list[Request] = []
        self._open = 0
        self._closing = False
        self._state = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="adexport-session", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of the KV caches when full, and of the adapters of the rows as they are."""
        return self._batch.nbytes

    @property
    def open(self) -> int:
        """How many requests have not ended."""
        return self._open

    def submit(self, prompt: object, adapter: str | None = None, **settings: object) -> Stream:
        """Generate for one prompt, beside whatever else decodes.

        Args:
            prompt: a text, token ids, or chat messages (``{"role": …, "content": …}``).
            adapter: a bound name, or None for the base. The request keeps the weights that it started
                to run with, whatever is bound or unbound then.
            settings: as in :class:`~adexport_runtime.Sampling`.

        Raises:
            RequestError: what cannot be generated; UnknownAdapterError; the session is full
                (``when_full="refuse"``) or closed.
        """
        request = self._prepare(prompt, adapter, settings)
        stream = Stream(request.stream is not None)
        stream._attach(request, self._ended)
        with self._state:
            if self._closing:
                raise RequestError("the session is closed", Problem(Code.CLOSED, "session"))
            if self._when_full == "refuse" and self._open >= self._rows:
                raise RequestError(
                    "the session is full",
                    Problem(
                        Code.SESSION_FULL,
                        f"{self._open} requests",
                        expected=f"at most {self._rows} (max_batch={self._rows})",
                        mend='ask again later, or open the session with when_full="wait"',
                    ),
                )
            self._open += 1
            self._arrived.append(request)
            self._state.notify_all()
        return stream

    def close(self) -> None:
        """End what is under way as cancelled. The memory goes with the session."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join()

    def _ended(self) -> None:
        with self._state:
            self._open -= 1

    def _work(self) -> None:
        more = False
        while True:
            with self._state:
                while not (self._arrived or self._closing or more):
                    self._state.wait()
                arrived, self._arrived = self._arrived, []
                closing = self._closing
            for request in arrived:
                self._batch.add(request)
            if closing:
                self._batch.cancel()
                return
            try:
                more = self._batch.step()
            except Exception as error:  # a fault of ours must not leave callers waiting for ever
                known = error if isinstance(error, AdexportError) else None
                self._batch.fail(
                    known
                    or RequestError(
                        "the session failed",
                        Problem(Code.RUN_FAILED, "session", got=f"{type(error).__name__}: {error}"),
                    )
                )
                more = False


_OPEN: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what is open when the interpreter ends: a thread within ONNX Runtime would abort it."""
    for session in list(_OPEN):
        if session._thread.is_alive():  # not in a fork, which has the session but not its thread
            session.close()
