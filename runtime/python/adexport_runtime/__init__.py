"""The adexport runtime: bind many tenants' adapters to one exported base, one for each row.

Needs numpy and ONNX Runtime; never torch.
"""

from .bind import bind_into_bundle, load_adapter
from .bound import BoundAdapter
from .bundle import Bundle
from .engine import Engine
from .errors import (
    AdapterError,
    AdexportError,
    BankFullError,
    BuildError,
    BundleError,
    Code,
    DependencyError,
    Problem,
    ProviderError,
    RequestError,
    UnknownAdapterError,
)
from .generation import Generated, Sampling, Session, Stream
from .manifest import Manifest
from .outputs import Outputs

__all__ = [
    "AdapterError",
    "AdexportError",
    "BankFullError",
    "BoundAdapter",
    "BuildError",
    "Bundle",
    "BundleError",
    "Code",
    "DependencyError",
    "Engine",
    "Generated",
    "Manifest",
    "Outputs",
    "Problem",
    "ProviderError",
    "RequestError",
    "Sampling",
    "Session",
    "Stream",
    "UnknownAdapterError",
    "bind_into_bundle",
    "load_adapter",
]
