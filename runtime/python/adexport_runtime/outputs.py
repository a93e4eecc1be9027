"""What a run gives back: arrays for the whole batch, and what each row of them means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .tensors import Array

LOGITS = "logits"


class Outputs(dict[str, Array]):
    """The outputs by name, float32, the batch first.

    ``labels`` are the label names of each row: none for a row without a head, and for a model that
    does not classify. Rows may have different heads: ``logits`` is as wide as the widest of the batch,
    and minus infinity where a row has no label.
    """

    def __init__(
        self, arrays: Mapping[str, Array], labels: Sequence[tuple[str, ...]], *, classified: bool
    ) -> None:
        """Keep the arrays of a batch and the labels of its rows; ``classified``: logits are by label."""
        super().__init__(arrays)
        self.labels = tuple(labels)
        self._classified = classified

    def row(self, index: int) -> dict[str, Array]:
        """The outputs of one row; its logits are cut to its own labels."""
        cut = {name: array[index] for name, array in self.items()}
        if LOGITS in cut and self._classified:
            cut[LOGITS] = cut[LOGITS][..., : len(self.labels[index])]
        return cut


def cut_logits(arrays: dict[str, Array], labels: Iterable[tuple[str, ...]]) -> None:
    """Cut logits to the batch's widest head, and put minus infinity where a row has no label.

    The graph's are as wide as the widest head that is resident, which is no caller's affair; and no
    argmax or softmax must fall beyond a row's own labels.
    """
    counts = np.array([len(names) for names in labels])
    logits = np.ascontiguousarray(arrays[LOGITS][..., : counts.max()])
    beyond = np.arange(logits.shape[-1])[None, :] >= counts[:, None]
    if beyond.any():
        logits[np.broadcast_to(beyond if logits.ndim == 2 else beyond[:, None, :], logits.shape)] = -np.inf
    arrays[LOGITS] = logits
