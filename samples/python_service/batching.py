"""Requests that come together run together: a thread gathers their rows into one mixed batch."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from adexport_runtime import Code, Engine, Outputs, Problem, RequestError


class Row(BaseModel):
    """A text, and the tenant whose adapter reads it: null, which must be said, is the base."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    tenant: str | None


class Answer(BaseModel):
    """A row's logit for each of its own labels (null: not finite), and the label of the largest one."""

    tenant: str | None
    label: str | None
    logits: dict[str, float | None]


class _Job(NamedTuple):
    rows: Sequence[Row]
    answers: Future[list[Answer]]


class Batcher:
    """One thread that runs the engine; any thread may submit."""

    def __init__(self, engine: Engine, rows: int, requests: int, wait: float) -> None:
        """``rows`` of a batch, ``requests`` under way at most; ``wait``: seconds for others to join."""
        self._engine = engine
        self._rows, self._requests, self._wait = rows, requests, wait
        self._state = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._closed = False
        #: requests under way
        self.pending = 0
        #: runs of the engine
        self.batches = 0
        self._thread = threading.Thread(target=self._serve, name="batcher")
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> Future[list[Answer]]:
        """Have rows answered, at most as many as a batch takes.

        Raises:
            RequestError: too many requests are under way, or the batcher is closed.
        """
        job = _Job(rows, Future())
        with self._state:
            if self._closed:
                raise RequestError("not taken", Problem(Code.CLOSED, "the service", got="it is ending"))
            if self.pending >= self._requests:
                raise RequestError(
                    "not taken",
                    Problem(
                        Code.SESSION_FULL,
                        "the service",
                        got=f"{self.pending} requests under way",
                        expected=f"at most {self._requests}",
                        mend="ask again in a moment",
                    ),
                )
            self.pending += 1
            self._jobs.append(job)
            self._state.notify_all()
        return job.answers

    def close(self) -> None:
        """Answer what was submitted, take no more, and end the thread."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def _serve(self) -> None:
        while batch := self._gather():
            try:
                self._answer([job for job in batch if job.answers.set_running_or_notify_cancel()])
            finally:
                with self._state:
                    self.pending -= len(batch)

    def _gather(self) -> list[_Job]:
        """The next jobs, whole ones that fit together; none: the batcher is closed."""
        with self._state:
            self._state.wait_for(lambda: self._jobs or self._closed)
            end = time.monotonic() + self._wait
            while (
                not self._closed
                and sum(len(job.rows) for job in self._jobs) < self._rows
                and (left := end - time.monotonic()) > 0
            ):
                self._state.wait(left)
            batch: list[_Job] = []
            room = self._rows
            while self._jobs and (not batch or len(self._jobs[0].rows) <= room):
                batch.append(self._jobs.popleft())
                room -= len(batch[-1].rows)
            return batch

    def _answer(self, jobs: Sequence[_Job]) -> None:
        rows = [row for job in jobs for row in job.rows]
        if not rows:
            return
        self.batches += 1
        try:
            outputs = self._engine.run_text([row.text for row in rows], [row.tenant for row in rows])
            answers = [_answer(row, outputs, number) for number, row in enumerate(rows)]
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answers.set_exception(error)
            else:  # one request's fault is not the others'
                for job in jobs:
                    self._answer([job])
            return
        first = 0
        for job in jobs:
            job.answers.set_result(answers[first : first + len(job.rows)])
            first += len(job.rows)


def _answer(row: Row, outputs: Outputs, number: int) -> Answer:
    logits, labels = outputs.row(number)["logits"].tolist(), outputs.labels[number]
    known = [logit if math.isfinite(logit) else None for logit in logits]
    label = None if None in known else labels[logits.index(max(logits))]
    return Answer(tenant=row.tenant, label=label, logits=dict(zip(labels, known, strict=True)))
