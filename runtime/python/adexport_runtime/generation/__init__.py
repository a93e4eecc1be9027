"""Generating text: what is asked for, how the next token is picked, and how ids become text.

:class:`~adexport_runtime.generation.batch.Batch` decodes many texts side by side; a session lets it do so
on a thread of its own.
"""

from .batch import Batch
from .generator import Generator, Prompt
from .request import Generated, Reason, Request
from .session import Session, Stream, WhenFull
from .settings import Sampling

__all__ = [
    "Batch",
    "Generated",
    "Generator",
    "Prompt",
    "Reason",
    "Request",
    "Sampling",
    "Session",
    "Stream",
    "WhenFull",
]
