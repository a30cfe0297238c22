"""Next-sentence prediction: pairs of sentences from documents, as google-research/bert makes its pre-training data.

The rule is that of create_pretraining_data.py (create_instances_from_document); the draws depend on the seed, the epoch
and the document's number alone, so that documents can be shared out among workers in any way. In C++
(csrc/host/pairing.cpp); in Python, to the same bits, without the extension.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bert_fast import extension
from bert_fast.training import draws
from bert_fast.training.arrays import Integers, function, integers, whole
from bert_fast.training.documents import Documents
from bert_fast.training.draws import Draws, Purpose

_MOST_PAIRS = 2**24  # of a document: a pair's number takes the low bits of its index


class SentencePairs(NamedTuple):
    """Pairs ``[CLS] A [SEP] B [SEP]``, packed one after another.

    Attributes:
        input_ids: ``[T]`` in the dtype of the documents' tokens.
        token_type_ids: ``[T]`` in that dtype: 0 up to the first [SEP] included, 1 after it.
        cu_seqlens: int64 ``[B + 1]``, where pairs start, and the end.
        next_sentence_label: int64 ``[B]``: 0 where B follows A, 1 where it is from another document.
        indices: int64 ``[B]``: document * 2**24 + the pair's number in it, which is what
            :class:`bert_fast.training.masking.TokenMasking` takes to mask each pair the same in any batch.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    cu_seqlens: np.ndarray
    next_sentence_label: np.ndarray
    indices: np.ndarray


class ChosenPairs(NamedTuple):
    """Which tokens make which pair, before they are gathered.

    Attributes:
        ranges: int64 ``[B, 4]``: A's first token in the documents' tokens and the end, B's first and the end.
        next_sentence_label, indices: as in :class:`SentencePairs`.
    """

    ranges: np.ndarray
    next_sentence_label: np.ndarray
    indices: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair with its three special tokens: int64 ``[B]``."""
        return self.ranges[:, 1] - self.ranges[:, 0] + self.ranges[:, 3] - self.ranges[:, 2] + 3


@dataclass(frozen=True)
class SentencePairing:
    """The rule by which sentences are paired; call it on documents.

    Sentences of a document are gathered until they reach a target length: ``max_length - 3``, or, with
    ``short_probability`` and once for a document, a random length from 2 to that. A is a random number of them from the
    first on, at least one and, where there are two or more, not all. B is the rest, or, with probability 1/2 and always
    where there is no rest, sentences of another document from a random one on, until A and B reach the target; the
    rest then begins the next pair. While A and B are longer than ``max_length - 3``, the longer one (B if equal) loses
    a token from its front or its back at random.

    Unlike google-research/bert, which gives up after ten tries, a random B is never of the same document.

    Args:
        cls_token_id, sep_token_id: the special tokens around A and B.
        max_length: of a pair with its three special tokens: 5 or more.
        short_probability: of a document whose pairs are shorter.
        seed: 0 .. 2**64 - 1.

    Raises:
        ValueError: an argument outside what is said above.
    """

    cls_token_id: int
    sep_token_id: int
    max_length: int = 128
    short_probability: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        draws.check_seed(self.seed)
        if not 5 <= self.max_length < 2**31:
            raise ValueError(f"max_length must be in 5 .. 2**31 - 1, not {self.max_length}")
        if not 0 <= self.short_probability <= 1:
            raise ValueError(f"short_probability must be in [0, 1], not {self.short_probability}")
        for name in ("cls_token_id", "sep_token_id", "max_length"):
            whole(name, getattr(self, name))
        for name in ("cls_token_id", "sep_token_id"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} must be in 0 .. 2**31 - 1, not {getattr(self, name)}")

    def __call__(
        self, documents: Documents, chosen: Integers | None = None, *, epoch: int = 0
    ) -> SentencePairs:
        """Pair the sentences of documents.

        Args:
            documents: all of them, two or more: a random B may come from any.
            chosen: the numbers of the documents to make pairs of, in the order wanted, such as a worker's share; None
                for all.
            epoch: 0 .. 2**32 - 1: every pass over the data pairs anew.

        Raises:
            ValueError: fewer than two documents, a number that is not one of them, an epoch outside its range.
        """
        pairs = self.choose(documents, chosen, epoch=epoch)
        cu_seqlens = np.concatenate([[0], np.cumsum(pairs.lengths, dtype=np.int64)])
        ids, types = self.pack(documents.tokens, pairs.ranges)
        return SentencePairs(ids, types, cu_seqlens, pairs.next_sentence_label, pairs.indices)

    def choose(self, documents: Documents, chosen: Integers | None = None, *, epoch: int = 0) -> ChosenPairs:
        """The pairs that calling gives, without their tokens: 48 bytes a pair, whatever its length."""
        draws.check_seed(self.seed, epoch)
        if not 2 <= len(documents) < 2**32:
            raise ValueError(f"documents must be 2 or more (and below 2**32), not {len(documents)}")
        numbers = np.arange(len(documents)) if chosen is None else integers("chosen", chosen)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(documents)):
            raise ValueError(f"chosen must be in 0 .. {len(documents) - 1}, not {numbers.min()} .. {numbers.max()}")
        ranges, is_random, counts = self._ranges(documents, numbers, epoch)
        if counts.size and counts.max() > _MOST_PAIRS:
            raise ValueError(f"a document makes {counts.max()} pairs, more than {_MOST_PAIRS}: cut it into several")
        in_document = np.arange(len(ranges)) - np.repeat(np.cumsum(counts) - counts, counts)
        return ChosenPairs(ranges, is_random, np.repeat(numbers, counts) * _MOST_PAIRS + in_document)

    def pack(self, tokens: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``token_type_ids`` of pairs, each ``[T]`` in the dtype of ``tokens``.

        Args:
            tokens: the documents' tokens, int32 or int64.
            ranges: int64 ``[B, 4]``: rows of :attr:`ChosenPairs.ranges`.

        Raises:
            ValueError: a range that does not lie in the tokens.
        """
        ranges = np.ascontiguousarray(ranges, dtype=np.int64)
        lies_in = ranges.size == 0 or (ranges.min() >= 0 and ranges.max() <= tokens.size)
        if not lies_in or (ranges[:, 1::2] < ranges[:, ::2]).any():
            raise ValueError(f"ranges must rise and lie in 0 .. {tokens.size}, the number of tokens")
        total = int((ranges[:, 1::2] - ranges[:, ::2]).sum()) + 3 * len(ranges)
        compiled = function("pack_pairs", tokens)
        if compiled is not None:
            ids, types = np.empty(total, dtype=tokens.dtype), np.empty(total, dtype=tokens.dtype)
            pointers = (ids.ctypes.data, types.ctypes.data)
            special = (self.cls_token_id, self.sep_token_id)
            compiled(tokens.ctypes.data, ranges.ctypes.data, len(ranges), *special, *pointers)
            return ids, types
        cls, sep = np.array([[self.cls_token_id], [self.sep_token_id]], dtype=tokens.dtype)
        parts: list[np.ndarray] = []
        for a_begin, a_end, b_begin, b_end in ranges.tolist():
            parts += [cls, tokens[a_begin:a_end], sep, tokens[b_begin:b_end], sep]
        lengths = (ranges[:, 1::2] - ranges[:, ::2] + [2, 1]).flatten()
        types = np.repeat(np.tile(np.array([0, 1], dtype=tokens.dtype), len(ranges)), lengths)
        return np.concatenate(parts) if parts else np.empty(0, dtype=tokens.dtype), types

    def _ranges(
        self, documents: Documents, numbers: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A's and B's first token and end, int64 ``[B, 4]``; whether B is random ``[B]``; pairs of each document."""
        module = extension.module()
        if module is None:
            made = [list(self._pairs_of(documents, number, epoch)) for number in numbers.tolist()]
            flat = [pair for pairs in made for pair in pairs]
            ranges = np.array([pair[:4] for pair in flat], dtype=np.int64).reshape(-1, 4)
            is_random = np.array([pair[4] for pair in flat], dtype=np.int64)
            return ranges, is_random, np.array([len(pairs) for pairs in made], dtype=np.int64)
        most = int(np.diff(documents.document_offsets)[numbers].sum())
        ranges, is_random = np.empty((most, 4), dtype=np.int64), np.empty(most, dtype=np.int64)
        counts = np.empty(numbers.size, dtype=np.int64)
        found = module.pair_sentences(
            documents.sentence_offsets.ctypes.data,
            documents.document_offsets.ctypes.data,
            len(documents),
            numbers.ctypes.data,
            numbers.size,
            self.max_length - 3,
            self.short_probability,
            self.seed,
            epoch,
            ranges.ctypes.data,
            is_random.ctypes.data,
            counts.ctypes.data,
        )
        return ranges[:found].copy(), is_random[:found].copy(), counts

    def _pairs_of(self, documents: Documents, number: int, epoch: int) -> Iterable[tuple[int, int, int, int, bool]]:
        most = self.max_length - 3
        source = Draws(self.seed, epoch, Purpose.PAIR, number)
        target = most
        if source.chance(draws.threshold(self.short_probability)):
            target = 2 + source.below(most - 1)
        begin, last = documents.document_offsets[number : number + 2].tolist()
        start_of = documents.sentence_offsets
        while begin < last:
            end = _reaching(start_of, begin, last, target)
            middle = begin + (1 + source.below(end - begin - 1) if end - begin > 1 else 1)
            is_random = end - begin == 1 or source.chance(draws.threshold(0.5))
            b_begin, b_end = middle, end
            if is_random:
                other = source.below(len(documents) - 1)
                first, stop = documents.document_offsets[other + (other >= number) :][:2].tolist()
                b_begin = first + source.below(stop - first)
                b_end = _reaching(start_of, b_begin, stop, target - int(start_of[middle] - start_of[begin]))
            bounds = [int(start_of[sentence]) for sentence in (begin, middle, b_begin, b_end)]
            _truncate(bounds, most, source)
            yield bounds[0], bounds[1], bounds[2], bounds[3], is_random
            begin = middle if is_random else end


def _reaching(start_of: Sequence[int] | np.ndarray, begin: int, last: int, target: int) -> int:
    """The end of the fewest sentences from ``begin`` on, one at least, that have ``target`` tokens; else ``last``."""
    end = begin + 1
    while end < last and start_of[end] - start_of[begin] < target:
        end += 1
    return end


def _truncate(bounds: list[int], most: int, source: Draws) -> None:
    half = draws.threshold(0.5)
    while (bounds[1] - bounds[0]) + (bounds[3] - bounds[2]) > most:
        longer = 0 if bounds[1] - bounds[0] > bounds[3] - bounds[2] else 2
        if source.chance(half):
            bounds[longer] += 1
        else:
            bounds[longer + 1] -= 1
