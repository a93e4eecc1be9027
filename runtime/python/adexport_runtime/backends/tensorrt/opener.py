"""From a bundle to its engine on this machine's GPU; says which part is missing where one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...bundle import Bundle
from ...engine_file import EngineFile, engine_targets
from ...errors import Code, Problem, ProviderError
from ..cuda import CudaDevice
from .backend import TensorRTBackend
from .kernel_cache import kernel_file
from .loader import PACKAGES, installed, load_engine

if TYPE_CHECKING:
    from ..open import Settings


def open_tensorrt(bundle: Bundle, settings: Settings) -> TensorRTBackend:
    """Open the bundle's engine; of the settings it has ``cache``: nothing of it runs on the CPU.

    Raises:
        BundleError: the bundle has no engine, or not one of its own.
        RequestError: the cache cannot be written, or there is nothing to keep in one.
        ProviderError: the package of its engine, the driver or a GPU is missing, or the engine is for
            another version or GPU.
    """
    file = EngineFile.open(bundle, choose_target(bundle))
    device = CudaDevice()
    executable = load_engine(file, device.compute_capability, kernel_file(bundle, file, settings.cache))
    return TensorRTBackend(bundle, file.record, executable, device)


def choose_target(bundle: Bundle) -> str:
    """The target whose engine is in the bundle and whose package is here.

    Raises:
        ProviderError: no package of its engines is installed.
    """
    built = [target for target in PACKAGES if target in engine_targets(bundle.root)]
    if not built:
        return next((target for target in PACKAGES if installed(target)), next(iter(PACKAGES)))
    found = next((target for target in built if installed(target)), None)
    if found is None:
        raise ProviderError(
            "tensorrt is not to be had",
            [
                Problem(
                    Code.PACKAGE_MISSING,
                    PACKAGES[target].module,
                    got=f"an engine for {target} and no package that runs it",
                    mend=f"pip install {PACKAGES[target].install}",
                )
                for target in built
            ],
        )
    return found
