"""An engine that can run, as the backend sees it: contexts that take shapes, addresses and a stream."""

from __future__ import annotations

from typing import Protocol


class Context(Protocol):
    """One run at a time of an engine: not for several threads at once.

    Every method that TensorRT refuses raises RequestError with what TensorRT logged.
    """

    def set_profile(self, index: int, stream: int) -> None:
        """Choose the profile; all shapes and addresses must be set anew."""
        ...

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input."""
        ...

    def output_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, when those of all inputs are set."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Set where an input or output lies: never null, and aligned."""
        ...

    def execute(self, stream: int) -> None:
        """Queue a run."""
        ...

    def close(self) -> None:
        """Give its memory back; nothing of it may be queued."""
        ...


class Executable(Protocol):
    """A deserialized engine. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """The library with its version: ``TensorRT-RTX 1.7.1.116``."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what the engine takes."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what the engine gives."""
        ...

    def context(self) -> Context:
        """A new context.

        Raises:
            MemoryError: the device has none for it.
        """
        ...

    def close(self) -> None:
        """Let go of the engine; no context may be in use."""
        ...
