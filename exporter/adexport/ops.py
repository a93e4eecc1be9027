"""The opaque ops of the trace, and the local functions of lowered graphs: one ``adexport`` domain.

In the trace (target-free; ``runtime/FORMAT.md`` has the semantics):

``Linear(x, weight, bias?) -> y``
    a frozen linear layer, and the site of a linear slot.
``AttentionMask(padding) -> mask``
    the bool mask ``[batch, 1, seq, seq]`` of a ``[batch, seq]`` padding mask; a query sees
    ``before`` keys before and ``after`` keys behind its own (-1: all; causal is after = 0).
``Attention(query, key, value, mask?) -> context``
    scaled dot-product attention on ``[batch, heads, seq, size]``; the result is
    ``[batch, seq, heads, size]``.

In lowered graphs:

``LoraAdd(y, x, A, B, ids) -> y'``
    ``y + (x A[ids]) B[ids]``, a local function that a native kernel may replace.
"""

DOMAIN = "adexport"
VERSION = 1

LINEAR = "Linear"
ATTENTION = "Attention"
ATTENTION_MASK = "AttentionMask"
LORA_ADD = "LoraAdd"
