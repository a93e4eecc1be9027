"""What the process that builds is told, and what it says: one JSON object on a line each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from adexport_runtime.errors import Problem
from adexport_runtime.graph_io import Tensor
from adexport_runtime.profiles import Profile
from adexport_runtime.schema import Schema


class Probe(Schema):
    """Say what the builder is and can do. ``device``: a GPU must be there."""

    kind: Literal["probe"] = "probe"
    module: str
    device: bool


class Job(Schema):
    """Build the ONNX file ``graph`` into the file ``plan``.

    ``inputs`` and ``outputs`` are what the graph must have. ``timing`` is a file where measured times are
    kept from build to build, if any.
    """

    kind: Literal["job"] = "job"
    module: str
    graph: str
    plan: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    memory_limit: int | None
    tf32: bool
    timing: str | None


class Step(Schema):
    """A step starts."""

    kind: Literal["step"] = "step"
    name: str


class Said(Schema):
    """A line of the builder's log."""

    kind: Literal["said"] = "said"
    severity: str
    text: str


class Probed(Schema):
    """The builder's version, the compute capabilities that it builds for, and that of the GPU here."""

    kind: Literal["probed"] = "probed"
    version: str
    capabilities: tuple[str, ...]
    device: str | None


class Built(Schema):
    """The plan is written. ``peak_bytes`` is the most memory that the process held."""

    kind: Literal["built"] = "built"
    version: str
    layers: int
    seconds: float
    peak_bytes: int


class Refused(Schema):
    """Nothing was built, and why. ``missing``: a package or a library is not installed."""

    kind: Literal["refused"] = "refused"
    headline: str
    problems: tuple[Problem, ...]
    missing: bool = False


Order = Annotated[Probe | Job, Field(discriminator="kind")]
Answer = Probed | Built | Refused
Message = Annotated[Step | Said | Probed | Built | Refused, Field(discriminator="kind")]

ORDER: TypeAdapter[Order] = TypeAdapter(Order)
MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
