"""Tokenized documents: flat arrays of tokens, sentences and documents."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bert_fast.training.arrays import Integers, integers, rising, token_ids


@dataclass(frozen=True, eq=False)
class Documents:
    """Tokenized sentences of documents, without special tokens.

    Attributes:
        tokens: int32 or int64 ``[tokens]``, of all sentences one after another.
        sentence_offsets: int64 ``[sentences + 1]``, where sentences start in ``tokens``, and the end.
        document_offsets: int64 ``[documents + 1]``, where documents start among the sentences, and the end.

    Raises:
        ValueError: offsets that do not rise from 0 to the end, or an empty sentence or document.
    """

    tokens: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray

    def __post_init__(self) -> None:
        tokens = token_ids("tokens", self.tokens)
        sentences = rising("sentence_offsets", self.sentence_offsets, tokens.size, "tokens", least=1)
        documents = rising("document_offsets", self.document_offsets, sentences.size - 1, "sentences", least=1)
        for name, value in [("tokens", tokens), ("sentence_offsets", sentences), ("document_offsets", documents)]:
            object.__setattr__(self, name, value)

    @classmethod
    def from_lists(cls, documents: Iterable[Iterable[Integers]], dtype: type = np.int64) -> "Documents":
        """Documents as lists of sentences as lists of ids; empty sentences and documents are left out."""
        read: Iterable[list[np.ndarray]] = (
            [integers("a sentence", sentence).astype(dtype) for sentence in sentences if len(sentence)]
            for sentences in documents
        )
        kept = [sentences for sentences in read if sentences]
        flat = [sentence for sentences in kept for sentence in sentences]
        return cls(
            np.concatenate(flat) if flat else np.empty(0, dtype=dtype),
            np.cumsum([0, *map(len, flat)]),
            np.cumsum([0, *map(len, kept)]),
        )

    def __len__(self) -> int:
        return len(self.document_offsets) - 1
