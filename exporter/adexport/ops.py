"""The opaque ops of the trace, and the local functions of lowered graphs: one ``adexport`` domain.

In the trace (target-free; ``runtime/FORMAT.md`` has the semantics):

``Linear(x, weight, bias?) -> y``
    a frozen linear layer, and the site of a linear slot.
``AttentionMask(padding) -> mask``
    the bool mask ``[batch, 1, queries, keys]`` of a ``[batch, keys]`` padding mask.
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
