"""ONNX Runtime's providers for GPUs: CUDA, and TensorRT with engines that ONNX Runtime builds."""

from .opener import open_ort_gpu

__all__ = ["open_ort_gpu"]
