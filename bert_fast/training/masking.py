"""Masked language modelling: which tokens to predict and what stands in their place, the same in every run.

The draws depend on the seed, the epoch, a sequence's index in the data set and the position in it, and on nothing else:
not on workers, batches or platform. In C++ (csrc/host/masking.cpp); in NumPy, to the same bits, without the extension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bert_fast.tokenizer import Tokenizer
from bert_fast.training import draws
from bert_fast.training.arrays import Integers, function, integers, offsets, rising, token_ids, whole
from bert_fast.training.draws import Draws, Purpose

IGNORED = -100
_SPECIAL, _CONTINUES = 1, 2  # bits of a vocabulary entry's kind, as in csrc/host/masking.h


class Masked(NamedTuple):
    """``input_ids [T]`` for the model, and ``labels [T]``: the token that was there, -100 where none is asked."""

    input_ids: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class TokenMasking:
    """The rule by which tokens are masked; call it on packed sequences.

    Of the chosen tokens 80% become the mask token, 10% any token of the vocabulary (special ones included, as in
    `transformers` and google-research/bert) and 10% stay as they are.

    Args:
        vocab_size: ids are in ``0 .. vocab_size - 1``; below 2**31.
        mask_token_id: what stands in place of a masked token.
        special_ids: ids that are never chosen, such as [CLS], [SEP] and [PAD].
        probability: of a token to be chosen.
        max_predictions: None: every token (or word) is chosen by itself, as the collators of `transformers` do. A
            number: exactly ``min(max_predictions, max(1, round(length * probability)))`` tokens of every sequence, its
            length counting special tokens, as google-research/bert's create_pretraining_data.py; fewer only where the
            sequence has no more, or where what is left are longer words than still fit: a word is never split.
        continues_word: for whole words, bool ``[vocab_size]``: which ids continue the word of the token before
            them (see :func:`word_continuations`). A word is chosen as a whole; each of its tokens is then replaced by
            itself. A continuation at the start of a sequence or after a special token begins a word.
        seed: 0 .. 2**64 - 1.

    Raises:
        ValueError: an argument outside what is said above.
    """

    vocab_size: int
    mask_token_id: int
    special_ids: Sequence[int] = ()
    probability: float = 0.15
    max_predictions: int | None = None
    continues_word: np.ndarray | None = None
    seed: int = 0
    _kinds: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        draws.check_seed(self.seed)
        object.__setattr__(self, "special_ids", tuple(self.special_ids))  # an iterator would be used up by the checks
        whole("vocab_size", self.vocab_size)
        whole("mask_token_id", self.mask_token_id)
        if self.max_predictions is not None:
            whole("max_predictions", self.max_predictions)
        if not 1 <= self.vocab_size < 2**31:
            raise ValueError(f"vocab_size must be in 1 .. 2**31 - 1, not {self.vocab_size}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], not {self.probability}")
        if self.max_predictions is not None and not 1 <= self.max_predictions < 2**31:
            raise ValueError(f"max_predictions must be in 1 .. 2**31 - 1, or None, not {self.max_predictions}")
        for name, value in [("mask_token_id", self.mask_token_id), *(("special_ids", i) for i in self.special_ids)]:
            if not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} must be in the vocabulary of {self.vocab_size}, not {value}")
        kinds = np.zeros(self.vocab_size, dtype=np.uint8)
        if self.continues_word is not None:
            continues = np.asarray(self.continues_word)
            if continues.shape != (self.vocab_size,):
                raise ValueError(f"continues_word must be [{self.vocab_size}], not {list(continues.shape)}")
            kinds[continues != 0] = _CONTINUES
        kinds[list(self.special_ids)] = _SPECIAL
        object.__setattr__(self, "_kinds", kinds)

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: Tokenizer,
        *,
        whole_words: bool = False,
        probability: float = 0.15,
        max_predictions: int | None = None,
        seed: int = 0,
    ) -> "TokenMasking":
        """The rule for a tokenizer: its vocabulary, mask and special tokens and, for whole words, its "##" pieces."""
        return cls(
            vocab_size=len(tokenizer),
            mask_token_id=tokenizer.mask_token_id,
            special_ids=tuple(tokenizer.all_special_ids),
            probability=probability,
            max_predictions=max_predictions,
            continues_word=word_continuations(tokenizer) if whole_words else None,
            seed=seed,
        )

    def __call__(
        self,
        input_ids: Integers,
        cu_seqlens: Integers,
        *,
        epoch: int = 0,
        indices: Integers | None = None,
        special_mask: np.ndarray | None = None,
    ) -> Masked:
        """Mask packed sequences.

        Args:
            input_ids: int32 or int64 ``[T]``; it is not changed. Other integers are taken as int64.
            cu_seqlens: ``[B + 1]``, rising from 0 to T: where sequences start, and the end.
            epoch: 0 .. 2**32 - 1: every pass over the data masks anew.
            indices: ``[B]``, each sequence's number in the data set, 0 .. 2**56 - 1; None for 0 .. B - 1. Give it
                wherever batches or workers vary: it is what makes their results the same.
            special_mask: bool ``[T]``, more tokens that are never chosen; None for none.

        Returns:
            ``input_ids`` and ``labels``, both ``[T]`` of the dtype of ``input_ids``.

        Raises:
            ValueError: shapes that do not fit, an id outside the vocabulary, an epoch or index outside its range.
        """
        draws.check_seed(self.seed, epoch)
        ids = token_ids("input_ids", input_ids)
        starts = offsets("cu_seqlens", cu_seqlens, ids.size, "tokens of input_ids")
        sequences = starts.size - 1
        numbers = np.arange(sequences) if indices is None else integers("indices", indices)
        if numbers.size != sequences:
            raise ValueError(f"indices must be [{sequences}], one for each sequence, not [{numbers.size}]")
        special = None if special_mask is None else np.ascontiguousarray(np.asarray(special_mask) != 0)
        if special is not None and special.shape != ids.shape:
            raise ValueError(f"special_mask must be [{ids.size}], not {list(special.shape)}")
        compiled = function("mask_tokens", ids)
        if compiled is None:
            return self._in_numpy(ids, starts, numbers, special, epoch)
        masked, labels = np.empty_like(ids), np.empty_like(ids)
        compiled(
            ids.ctypes.data,
            starts.ctypes.data,
            sequences,
            numbers.ctypes.data,
            0 if special is None else special.ctypes.data,
            self._kinds.ctypes.data,
            self.vocab_size,
            self.mask_token_id,
            self.probability,
            -1 if self.max_predictions is None else self.max_predictions,
            self.seed,
            epoch,
            masked.ctypes.data,
            labels.ctypes.data,
        )
        return Masked(masked, labels)

    def _in_numpy(
        self, ids: np.ndarray, starts: np.ndarray, numbers: np.ndarray, special: np.ndarray | None, epoch: int
    ) -> Masked:
        rising("cu_seqlens", starts, ids.size, "tokens of input_ids")
        far = (numbers < 0) | (numbers > draws.MAX_INDEX)
        if far.any():
            raise ValueError(f"indices must be in 0 .. 2**56 - 1, not {numbers[np.argmax(far)]}")
        outside = (ids < 0) | (ids >= self.vocab_size)
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(f"input_ids[{at}] is {ids[at]}, outside the vocabulary of {self.vocab_size}")
        lengths = np.diff(starts)
        position = np.arange(ids.size) - np.repeat(starts[:-1], lengths)
        number = np.repeat(numbers, lengths)
        kinds = self._kinds[ids] if special is None else np.where(special, _SPECIAL, self._kinds[ids])
        allowed = kinds & _SPECIAL == 0
        joined = (kinds == _CONTINUES) & (position > 0)
        joined[1:] &= allowed[:-1]
        begins = allowed & ~joined
        if self.max_predictions is None:
            first = np.maximum.accumulate(np.where(begins, np.arange(ids.size), 0))
            chosen = np.flatnonzero(allowed & self._drawn(number, position, epoch)[first])
        else:
            chosen = self._exactly(starts, numbers, np.flatnonzero(begins), allowed, epoch)
        masked, labels = ids.copy(), np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        drawn = draws.words(self.seed, epoch, Purpose.REPLACE, number[chosen], position[chosen])
        random = draws.scaled_below(drawn[:, 2], drawn[:, 3], self.vocab_size)
        other = np.where(drawn[:, 0] < draws.threshold(0.9), random, ids[chosen])
        masked[chosen] = np.where(drawn[:, 0] < draws.threshold(0.8), self.mask_token_id, other)
        return Masked(masked, labels)

    def _drawn(self, number: np.ndarray, position: np.ndarray, epoch: int) -> np.ndarray:
        """Which tokens their own draws choose; four positions share a block of words."""
        lane = position % 4
        heads = np.flatnonzero(lane == 0)
        blocks = draws.words(self.seed, epoch, Purpose.SELECT, number[heads], position[heads] // 4)
        return blocks[np.cumsum(lane == 0) - 1, lane] < draws.threshold(self.probability)

    def _exactly(
        self, starts: np.ndarray, numbers: np.ndarray, begins: np.ndarray, allowed: np.ndarray, epoch: int
    ) -> np.ndarray:
        assert self.max_predictions is not None
        # A word ends where the next one begins, or at the next token that is none's.
        edges = np.flatnonzero(~allowed)
        stops = np.minimum(
            np.append(begins[1:], allowed.size), np.append(edges, allowed.size)[np.searchsorted(edges, begins)]
        )
        stops = np.minimum(stops, starts[np.searchsorted(starts, begins, side="right")])
        bounds = np.searchsorted(begins, starts).tolist()
        chosen: list[int] = []
        for b, number in enumerate(numbers.tolist()):
            words = list(zip(begins[bounds[b] : bounds[b + 1]], stops[bounds[b] : bounds[b + 1]], strict=True))
            share = round(int(starts[b + 1] - starts[b]) * self.probability)
            room = min(self.max_predictions, max(1, share))
            source = Draws(self.seed, epoch, Purpose.SHUFFLE, number)
            for k in range(len(words)):
                if room == 0:
                    break
                other = k + source.below(len(words) - k)
                words[k], words[other] = words[other], words[k]
                begin, stop = words[k]
                if stop - begin <= room:
                    room -= stop - begin
                    chosen.extend(range(begin, stop))
        return np.array(sorted(chosen), dtype=np.int64)


def word_continuations(tokenizer: Tokenizer) -> np.ndarray:
    """Which ids of a WordPiece vocabulary continue a word ("##ing"): bool ``[len(tokenizer)]``.

    Raises:
        ValueError: the vocabulary has no such piece, so that whole words could not be told.
    """
    continues = np.zeros(len(tokenizer), dtype=bool)
    continues[[index for token, index in tokenizer.get_vocab().items() if token.startswith("##")]] = True
    if not continues.any():
        raise ValueError('no token of the vocabulary begins with "##": whole words need a WordPiece vocabulary')
    return continues
