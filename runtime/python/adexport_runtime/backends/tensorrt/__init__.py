"""Native TensorRT: runs the engine that ``adexport build --target tensorrt`` wrote into the bundle."""

from .opener import open_tensorrt

__all__ = ["open_tensorrt"]
