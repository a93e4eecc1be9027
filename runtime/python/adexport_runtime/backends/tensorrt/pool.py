"""Workers for whoever runs: made as they are needed, up to a number, and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import Code, Problem, RequestError
from .worker import Worker

#: contexts hold the memory of a whole run, and the GPU runs hardly more than one at a time
MOST = 4


class Pool:
    """Lends each worker to one run at a time."""

    def __init__(self, make: Callable[[], Worker], name: str) -> None:
        """Make none yet.

        Args:
            make: makes a worker; it may raise MemoryError.
            name: of what is closed, for errors.
        """
        self._make = make
        self._name = name
        self._state = threading.Condition()
        self._idle: list[Worker] = []
        self._busy = 0
        self._most = MOST
        self._closed = False

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker for one run; all that it has queued is done when it comes back.

        Raises:
            RequestError: the pool is closed.
            MemoryError: the device has not enough for the first one.
        """
        worker = self._take()
        try:
            try:
                yield worker
            finally:
                worker.wait()
        finally:
            with self._state:
                self._busy -= 1
                self._state.notify_all()
                if worker.sound:
                    self._idle.append(worker)
                else:
                    worker.close()

    def close(self) -> None:
        """Let nobody run any more, wait for the runs under way, and free the workers."""
        with self._state:
            self._closed = True
            self._state.notify_all()
            self._state.wait_for(lambda: not self._busy)
            for worker in self._idle:
                worker.close()
            self._idle.clear()

    def _take(self) -> Worker:
        with self._state:
            while True:
                if self._closed:
                    raise RequestError("the engine is closed", Problem(Code.CLOSED, self._name))
                if self._idle:
                    self._busy += 1
                    return self._idle.pop()
                if self._busy < self._most:
                    try:
                        worker = self._make()
                    except MemoryError:
                        if not self._busy:
                            raise
                        self._most = self._busy  # so many contexts is what the memory holds
                    else:
                        self._busy += 1
                        return worker
                self._state.wait()
