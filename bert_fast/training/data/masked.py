"""Masking examples as they become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bert_fast.training.data.collate import PackedCollator, joined
from bert_fast.training.data.example import Batch, Example
from bert_fast.training.masking import IGNORED, TokenMasking


@dataclass(frozen=True)
class MaskingCollator:
    """Masks examples and makes a batch of them, for BertForPreTraining or BertForMaskedLM.

    Each example needs ``numbers``: masks depend on the masking's seed, the epoch and these. Examples that have
    ``labels`` (of each sequence, whether its second part is random) give ``next_sentence_label`` int64 ``[B]``;
    ``labels`` of the batch are int64 ``[T]`` (padded ``[B, S]``), -100 where nothing is to be predicted.

    Args:
        masking: the rule.
        epoch: 0 .. 2**32 - 1; a :class:`PackedLoader` sets it.
        padded, pad_token_id, pad_to_multiple_of: as in :class:`PackedCollator`.
    """

    masking: TokenMasking
    epoch: int = 0
    padded: bool = False
    pad_token_id: int = 0
    pad_to_multiple_of: int | None = None

    def for_epoch(self, epoch: int) -> MaskingCollator:
        """The same for another epoch."""
        return replace(self, epoch=epoch)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """``examples``: one or more. Raises ValueError where numbers are missing, or windows are to be padded."""
        ids, types, lengths = joined(examples)
        if any(example.numbers is None for example in examples):
            raise ValueError(
                "an example without numbers cannot be masked: give each Example(..., numbers=[its number])"
            )
        if self.padded and any(example.lengths is not None for example in examples):
            raise ValueError("windows are for packed batches: padded, their sequences would see each other")
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        numbers = np.concatenate([example.numbers for example in examples])
        masked = self.masking(ids, cu_seqlens, epoch=self.epoch, indices=numbers)
        batches = PackedCollator(None, self.padded, self.pad_token_id, self.pad_to_multiple_of)
        data = batches.arranged(masked.input_ids, types, lengths)
        data["labels"] = batches.arranged_labels(masked.labels, lengths)
        counts = {"labels": int((masked.labels != IGNORED).sum())}
        if examples[0].labels is not None:
            following = np.concatenate([np.atleast_1d(example.labels) for example in examples]).astype(np.int64)
            data["next_sentence_label"] = torch.from_numpy(following)
            counts["next_sentence_label"] = following.size
        infos = [example.info for example in examples]
        return Batch(data, label_counts=counts, infos=infos, tokens=len(ids))
