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
``CachedAttention(query, key, value, past_key, past_value, lengths, past_lengths, cos?, sin?)``
    the same with a KV cache, causal and within a window, rotary embedding inside; gives the context
    and the caches with the new keys and values in them.

``Residual(h, x, weight?, bias?) -> y``
    the end of a sub-block: ``h + x``, behind it a LayerNorm if the op has its weights; the site of
    a bottleneck slot.
``Head(hidden, pooled?, padding?, own?) -> logits``
    the place of heads: ``own`` are the logits of the base's own head.

In lowered graphs, local functions that a native kernel may replace; ``used`` is a guard's flag:

``LoraAdd(y, x, A, B, ids)``
    ``y + (x A[ids]) B[ids]``
``LoraAddIf(y, x, A, B, used, ids)``, ``LoraBiasAddIf(y, bias, x, A, B, used, ids)``
    the same, and with a frozen bias; without the slot's part if nothing is used
``RowScale(x, scale, ids)``, ``RowAdd(y, bias, ids)``
    ``x * scale[ids]``, ``y + bias[ids]``
``RowLinear(x, weight, bias, ids)``
    ``x weight[ids] + bias[ids]``
``BottleneckAdd(y, x, down, down_bias, up, up_bias, code?, ids)``
    ``y + act(x down[ids] + down_bias[ids]) up[ids] + up_bias[ids]``
``BottleneckAddIf(y, x, down, down_bias, up, up_bias, code?, used, ids)``
    the same; ``y`` if nothing is used
"""

DOMAIN = "adexport"
VERSION = 1

LINEAR = "Linear"
ATTENTION = "Attention"
CACHED_ATTENTION = "CachedAttention"
ATTENTION_MASK = "AttentionMask"
RESIDUAL = "Residual"
HEAD = "Head"
LORA_ADD = "LoraAdd"
LORA_ADD_IF = "LoraAddIf"
LORA_BIAS_ADD_IF = "LoraBiasAddIf"
ROW_SCALE = "RowScale"
ROW_ADD = "RowAdd"
ROW_LINEAR = "RowLinear"
BOTTLENECK_ADD = "BottleneckAdd"
BOTTLENECK_ADD_IF = "BottleneckAddIf"

#: how the names of caches begin, as a graph takes them and gives them back
PAST = "past."
PRESENT = "present."
