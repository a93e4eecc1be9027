"""Engines for TensorRT and TensorRT-RTX, built ahead of time. Needs no torch.

``builder.py`` is where to start. The native builder may crash, or be killed for want of memory: it runs in
a process of its own (``worker.py``), which ``child.py`` starts and watches; they talk in ``messages.py``.
"""
