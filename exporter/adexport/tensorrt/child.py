"""The process that builds, seen from outside: started, listened to, and never outlived by its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pydantic import ValidationError

from adexport_runtime.errors import BuildError, Code, DependencyError, Problem

from ..progress import Progress
from .messages import MESSAGE, Answer, Job, Probe, Refused, Said, Step

_WORKER = "adexport.tensorrt.worker"
#: how much of what a dead process said last is told
_LAST = 8
_NOT_ENDED = "the process that builds ended before its work was done"


def order(order: Probe | Job, progress: Progress) -> Answer:
    """Have an order served in a process of its own; it dies with this call, however that ends.

    Raises:
        BuildError: the order is refused, or the process was ended: saying by which signal, and what it
            said last.
        DependencyError: a package or a library is missing.
    """
    said: deque[str] = deque(maxlen=_LAST)
    answer: Answer | None = None
    with tempfile.TemporaryFile() as stderr, _process(stderr) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(order.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone: how it ended says why
        for line in process.stdout:
            try:
                message = MESSAGE.validate_json(line)
            except ValidationError:  # cut off as the process died
                said.append(line.decode(errors="replace").strip())
                continue
            if isinstance(message, Step):
                progress(f"{order.module}: {message.name}")
            elif isinstance(message, Said):
                said.append(message.text)
            else:
                answer = message
        code = process.wait()
        if answer is None:
            raise BuildError(_NOT_ENDED, _death(order.module, code, [*said, *_tail(stderr)]))
    if isinstance(answer, Refused):
        raise (DependencyError if answer.missing else BuildError)(answer.headline, answer.problems)
    return answer


@contextmanager
def _process(stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a session of its own: a Ctrl-C reaches it through us alone.

    It imports what this one would (``-P``: nothing more, whatever lies in the working directory).
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _tail(stderr: IO[bytes]) -> list[str]:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-_LAST:]


def _death(module: str, code: int, said: list[str]) -> Problem:
    """Why there is no answer."""
    cause, mend = "a fault in the builder", "report it, with what it said last"
    if code >= 0:
        got = f"exit code {code}"
    else:
        got = f"signal {_signal_name(-code)}"
        if -code == signal.SIGKILL:
            cause = "the kernel ended it for want of memory, or someone did"
            mend = "more memory, fewer profiles, or --dtype fp16"
    last = " | ".join(said)
    return Problem(
        Code.EXPORT_FAILED,
        module,
        got=f"{got}; it said last: {last}" if last else f"{got}, without a word",
        cause=cause,
        mend=mend,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
