"""Examples to batches: packed for bert_fast's models, or padded for those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from bert_fast.packing import PackedBatch
from bert_fast.training.data.example import Batch, Example
from bert_fast.training.masking import IGNORED

LabelKind = Literal["class", "value", "multi", "token", "span", "choice"]
_OF_ONE_SEQUENCE = ("class", "value", "multi", "span")


@dataclass(frozen=True)
class PackedCollator:
    """Makes a batch of examples, for ``model(**batch)``.

    Args:
        labels: what the examples' ``labels`` are, and what becomes of them:

            ========== =============================== ====================================================
            None       are not looked at               nothing
            "class"    a class's number                ``labels`` int64 ``[B]``
            "value"    a number (regression)           ``labels`` float32 ``[B]``
            "multi"    a number for each label         ``labels`` float32 ``[B, labels]``
            "token"    a class for each token          ``labels`` int64 ``[T]``; -100 is ignored
            "span"     (first token, last token)       ``start_positions``, ``end_positions`` int64 ``[B]``
            "choice"   the right sequence's number     ``labels`` int64 ``[examples]``, and ``num_choices``
            ========== =============================== ====================================================

        padded: False: ``input_ids`` is a PackedBatch, its ``cu_seqlens`` made here, on the host. True: ``input_ids``,
            ``attention_mask`` and ``token_type_ids`` are int64 ``[B, S]`` (with "choice" ``[examples, choices, S]``)
            and per-token labels ``[B, S]``, as the models of `transformers` take them.
        pad_token_id, pad_to_multiple_of: for ``padded``: what fills rows, and to which multiple.

    With labels None, examples with several sequences give their sequences one after another; padded, they must have
    equally many.

    Calling it raises ValueError, with the example's place in the batch, for labels that do not fit the kind.
    """

    labels: LabelKind | None = None
    padded: bool = False
    pad_token_id: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels not in get_args(LabelKind):
            raise ValueError(f"labels must be None or one of {', '.join(get_args(LabelKind))}, not {self.labels!r}")

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """``examples``: one or more."""
        ids, types, lengths = joined(examples)
        data = self.arranged(ids, types, lengths)
        if self.padded and any(example.lengths is not None for example in examples):
            choices = _equal_choices(examples)
            data = {name: rows.unflatten(0, (-1, choices)) for name, rows in data.items()}
        counts: dict[str, int] = {}
        if self.labels is not None:
            if self.labels in _OF_ONE_SEQUENCE and len(lengths) > len(examples):
                raise ValueError(f'labels of kind "{self.labels}" are for examples of one sequence each')
            targets, counts = _LABELS[self.labels](examples)
            data |= {name: torch.from_numpy(array) for name, array in targets.items()}
            if self.labels == "token":
                data["labels"] = self.arranged_labels(targets["labels"], lengths)
            if self.labels == "choice" and not self.padded:
                data["num_choices"] = len(examples[0].sequence_lengths)
        return Batch(data, label_counts=counts, infos=[example.info for example in examples], tokens=len(ids))

    def arranged(self, ids: np.ndarray, types: np.ndarray | None, lengths: Sequence[int]) -> dict[str, Any]:
        """The inputs of a model, of sequences that lie one after another in arrays ``[T]``."""
        if not self.padded:
            return {"input_ids": PackedBatch.from_arrays(ids, lengths, types)}
        columns = {
            "input_ids": (ids, self.pad_token_id),
            "attention_mask": (np.ones_like(ids), 0),
            "token_type_ids": (np.zeros_like(ids) if types is None else types, 0),
        }
        return {name: self._filled(values, lengths, filler) for name, (values, filler) in columns.items()}

    def arranged_labels(self, labels: np.ndarray, lengths: Sequence[int]) -> torch.Tensor:
        """Labels of tokens beside these inputs: int64 ``[T]``, padded ``[B, S]`` with -100."""
        if self.padded:
            return self._filled(labels, lengths, IGNORED)
        return torch.from_numpy(labels.astype(np.int64, copy=False))

    def _filled(self, values: np.ndarray, lengths: Sequence[int], filler: int) -> torch.Tensor:
        multiple = self.pad_to_multiple_of or 1
        width = -(-max(lengths) // multiple) * multiple
        filled = np.full((len(lengths), width), filler, dtype=np.int64)
        filled[np.arange(width) < np.asarray(lengths)[:, None]] = values
        return torch.from_numpy(filled)


def joined(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
    """``input_ids [T]``, ``token_type_ids [T]`` (None if no example has any), and each sequence's tokens."""
    if not examples:
        raise ValueError("a batch needs at least one example")
    ids = np.concatenate([example.input_ids for example in examples])
    types = None
    if any(example.token_type_ids is not None for example in examples):
        types = np.concatenate([_types(example) for example in examples])
    return ids, types, [length for example in examples for length in example.sequence_lengths]


def _types(example: Example) -> np.ndarray:
    return np.zeros_like(example.input_ids) if example.token_type_ids is None else example.token_type_ids


def _equal_choices(examples: Sequence[Example]) -> int:
    counts = {len(example.sequence_lengths) for example in examples}
    if len(counts) > 1:
        raise ValueError(f"every example of a batch must have as many sequences, not {sorted(counts)}")
    return counts.pop()


Targets = tuple[dict[str, np.ndarray], dict[str, int]]


def _refused(place: int, kind: str, wanted: str, labels: Any) -> ValueError:
    return ValueError(f'labels of kind "{kind}" are {wanted}, but example {place} of the batch has {labels!r:.80}')


def _whole_number(kind: str, place: int, labels: Any) -> int:
    if isinstance(labels, bool) or not isinstance(labels, (int, np.integer)):
        raise _refused(place, kind, "an integer", labels)
    return int(labels)


def _classes(examples: Sequence[Example]) -> Targets:
    labels = np.array([_whole_number("class", k, e.labels) for k, e in enumerate(examples)], dtype=np.int64)
    return {"labels": labels}, {"labels": int((labels != IGNORED).sum())}


def _values(examples: Sequence[Example]) -> Targets:
    for k, example in enumerate(examples):
        if isinstance(example.labels, bool) or not isinstance(example.labels, (int, float, np.number)):
            raise _refused(k, "value", "a number", example.labels)
    return {"labels": np.array([e.labels for e in examples], dtype=np.float32)}, {"labels": len(examples)}


def _multi(examples: Sequence[Example]) -> Targets:
    rows: list[np.ndarray] = []
    for k, example in enumerate(examples):
        try:
            rows.append(np.asarray(example.labels, dtype=np.float32))
        except (TypeError, ValueError):
            raise _refused(k, "multi", "numbers", example.labels) from None
    for k, row in enumerate(rows):
        if row.shape != rows[0].shape or row.ndim != 1:
            raise _refused(k, "multi", f"{rows[0].size} numbers, as the batch's first has", examples[k].labels)
    labels = np.stack(rows)
    return {"labels": labels}, {"labels": labels.size}


def _tokens(examples: Sequence[Example]) -> Targets:
    rows = [np.asarray(example.labels) for example in examples]
    for k, (row, example) in enumerate(zip(rows, examples, strict=True)):
        if row.shape != (len(example),) or (row.size and row.dtype.kind not in "iu"):
            raise _refused(k, "token", f"{len(example)} integers, one for each token", example.labels)
    labels = np.concatenate(rows).astype(np.int64)
    return {"labels": labels}, {"labels": int((labels != IGNORED).sum())}


def _spans(examples: Sequence[Example]) -> Targets:
    for k, example in enumerate(examples):
        if np.shape(example.labels) != (2,):
            raise _refused(k, "span", "the first and the last token's place", example.labels)
    both = np.array([example.labels for example in examples], dtype=np.int64)
    lengths = np.array([len(example) for example in examples])[:, None]
    inside = int(((both >= 0) & (both < lengths)).all(axis=1).sum())
    start, end = np.ascontiguousarray(both.T)
    return {"start_positions": start, "end_positions": end}, {"labels": inside}


def _choices(examples: Sequence[Example]) -> Targets:
    choices = _equal_choices(examples)
    labels = np.array([_whole_number("choice", k, e.labels) for k, e in enumerate(examples)], dtype=np.int64)
    for k, label in enumerate(labels.tolist()):
        if label != IGNORED and not 0 <= label < choices:
            raise _refused(k, "choice", f"0 .. {choices - 1}", label)
    return {"labels": labels}, {"labels": int((labels != IGNORED).sum())}


_LABELS: dict[str, Callable[[Sequence[Example]], Targets]] = {
    "class": _classes,
    "value": _values,
    "multi": _multi,
    "token": _tokens,
    "span": _spans,
    "choice": _choices,
}
