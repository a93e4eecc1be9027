"""AdapterHub checkpoints: ``adapter_config.json`` and ``adapter.safetensors`` (adapters 1.3)."""

from __future__ import annotations

from .folder import read, recognises, refuse_without_config

__all__ = ["read", "recognises", "refuse_without_config"]
