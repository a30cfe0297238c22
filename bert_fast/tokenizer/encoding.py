"""What comes out of a tokenizer: ids for packing, or a dictionary for `model(**batch)`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch


class Encoded(NamedTuple):
    """Token ids without padding.

    Attributes:
        input_ids: one list per text or pair.
        token_type_ids: the same for pairs; None for single texts (all zeros).
        cut: how many texts or pairs were longer than `max_length` and lost tokens.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    cut: int


class BatchEncoding(dict[str, Any]):
    """What calling a Tokenizer returns: a dict for `model(**batch)`, with attribute access and `.to(device)`."""

    encodings: list[tokenizers.Encoding]

    def __init__(self, data: dict[str, Any], encodings: list[tokenizers.Encoding]) -> None:
        super().__init__(data)
        object.__setattr__(self, "encodings", encodings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are {sorted(self)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return (BatchEncoding, (dict(self), self.encodings))

    def to(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Moves every tensor with `Tensor.to(*args, **kwargs)`, in place, and returns self."""
        for key, value in self.items():
            if isinstance(value, torch.Tensor):
                self[key] = value.to(*args, **kwargs)
        return self

    def word_ids(self, index: int = 0) -> list[int | None]:
        """For each token of text `index`, the number of the word it came from; None for special tokens."""
        return list(self.encodings[index].word_ids)

    def tokens(self, index: int = 0) -> list[str]:
        """The tokens of text `index` as strings, special tokens included, padding not."""
        return list(self.encodings[index].tokens)


def as_tensor(rows: list[list[Any]], name: str, kind: str) -> Any:
    """Rows as an int64 torch tensor ("pt") or numpy array ("np"); ValueError, with `name`, if their lengths differ."""
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{name}: rows of different lengths make no tensor; use padding=True (and truncation=True)")
    # an empty batch and a batch of empty rows keep two dimensions
    array = np.asarray(rows, dtype=np.int64) if any(rows) else np.zeros((len(rows), 0), dtype=np.int64)
    return torch.from_numpy(array) if kind == "pt" else array
