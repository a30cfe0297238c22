"""Pre-training data: documents to masked pairs, segments or windows, a part of the corpus at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_fast.tokenizer import Tokenizer
from bert_fast.training import draws
from bert_fast.training.arrays import whole
from bert_fast.training.data.corpus import Corpus, Source, tokenizer_identity
from bert_fast.training.data.example import Example
from bert_fast.training.data.masked import MaskingCollator
from bert_fast.training.masking import TokenMasking
from bert_fast.training.pairing import ChosenPairs, SentencePairing
from bert_fast.training.windows import Windows, pack_windows

_MOST_SEGMENTS = 2**24  # of a document, as of pairs
_STREAM = 0xFFFFFFFF  # of permutations: no plan's


class PretrainingData:
    """What a model is pre-trained on: for a :class:`PackedLoader`, with :attr:`collator`.

        data = PretrainingData("corpus.txt", tokenizer, seq_length=128, cache="cache")
        loader = PackedLoader(data, BatchPlan([], batch_size=256, shuffle=True), data.collator)
        for batch in loader:
            loss = model(**batch, return_logits=False).loss

    Every epoch pairs and masks anew. All draws depend on seed, epoch and a sequence's own number, so a batch is the
    same for any workers, ranks and moment of resuming. An epoch comes in parts of the corpus, chosen at random among
    the documents and shuffled by the plan: in memory are a part's table of sequences (about 100 bytes each) and some 50
    bytes for each document of the corpus; tokens stay on disk until their batch.

    Args:
        documents: a :class:`Corpus`, or what one is made of.
        tokenizer: of the model.
        seq_length: the most tokens of a sequence (of a window), special tokens included.
        nsp: pairs of sentences and whether the second follows (:class:`SentencePairing`). Without, segments: a
            document's tokens in runs of ``seq_length - 2`` between [CLS] and [SEP].
        packed_windows: an example is a window: several sequences that together have up to ``seq_length`` tokens, each
            seeing only itself. Batches of n windows then have much the same number of tokens, always.
        masking: None: :meth:`TokenMasking.for_tokenizer` with ``seed``.
        short_probability: of a document whose pairs are shorter.
        seed: 0 .. 2**64 - 1.
        cache, text_field, on_bad_row: as in :class:`Corpus`.
        part_tokens: about how many tokens of documents make a part.

    Raises:
        ValueError: an argument outside what is said above; with ``nsp``, fewer than two documents; a corpus of
            another tokenizer.
    """

    def __init__(
        self,
        documents: Corpus | Source,
        tokenizer: Tokenizer,
        *,
        seq_length: int = 128,
        nsp: bool = True,
        packed_windows: bool = False,
        masking: TokenMasking | None = None,
        short_probability: float = 0.1,
        seed: int = 0,
        cache: str | Path | None = None,
        text_field: str = "text",
        on_bad_row: str = "raise",
        part_tokens: int = 1 << 24,
    ) -> None:
        for name, value, least in [("seq_length", seq_length, 5), ("part_tokens", part_tokens, 1)]:
            whole(name, value)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        draws.check_seed(seed)
        self.pairing = SentencePairing(
            tokenizer.cls_token_id, tokenizer.sep_token_id, seq_length, short_probability, seed
        )
        self.masking = TokenMasking.for_tokenizer(tokenizer, seed=seed) if masking is None else masking
        if isinstance(documents, Corpus):
            self.corpus = documents
            if documents.tokenizer_identity != tokenizer_identity(tokenizer):
                raise ValueError("the corpus was made with another tokenizer: its ids mean other tokens")
        else:
            self.corpus = Corpus(documents, tokenizer, cache=cache, text_field=text_field, on_bad_row=on_bad_row)
        if nsp and len(self.corpus) < 2:
            raise ValueError(
                "pairs of sentences need two documents or more: put a blank line between them, or nsp=False"
            )
        self.seq_length, self.nsp, self.packed_windows, self.seed = seq_length, nsp, packed_windows, seed
        self._pad_token_id = tokenizer.pad_token_id
        self._parts = max(1, round(self.corpus.token_count / part_tokens))
        self._dealt: tuple[int, list[np.ndarray]] | None = None

    @property
    def identity(self) -> str:
        """A short text that is another for other documents or settings."""
        size = f"{len(self.corpus)} documents of {self.corpus.token_count} tokens in {self._parts} parts"
        return f"{size}, {self.pairing}, nsp={self.nsp}, windows={self.packed_windows}"

    @property
    def collator(self) -> MaskingCollator:
        """Makes packed batches with ``labels`` and, with ``nsp``, ``next_sentence_label``."""
        return MaskingCollator(self.masking, pad_token_id=self._pad_token_id)

    def part_count(self, epoch: int) -> int:
        """How many parts an epoch has."""
        return len(self._documents_of_parts(epoch))

    def part(self, epoch: int, number: int) -> PretrainingPart:
        """A part of an epoch, the same whenever it is asked for."""
        chosen = self._documents_of_parts(epoch)[number]
        documents = self.corpus.documents
        pairs = self.pairing.choose(documents, chosen, epoch=epoch) if self.nsp else self._segments(chosen)
        windows = pack_windows(pairs.lengths, self.seq_length) if self.packed_windows else None
        return PretrainingPart(self.corpus, self.pairing, pairs, windows)

    def _documents_of_parts(self, epoch: int) -> list[np.ndarray]:
        if self._dealt is None or self._dealt[0] != epoch:
            self._dealt = (epoch, self._deal(epoch))
        return self._dealt[1]

    def _deal(self, epoch: int) -> list[np.ndarray]:
        count = len(self.corpus)
        if self._parts == 1:
            return [np.arange(count)]
        order = draws.permutation(count, self.seed, epoch, _STREAM)
        documents = self.corpus.documents
        ends = np.cumsum(np.diff(documents.sentence_offsets[documents.document_offsets])[order])
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, self._parts) // self._parts, side="right")
        # In the files' order, which is the disk's; the plan shuffles.
        return [np.sort(part) for part in np.split(order, np.unique(cuts)) if part.size]

    def _segments(self, chosen: np.ndarray) -> Segments:
        documents = self.corpus.documents
        bounds = documents.sentence_offsets[documents.document_offsets]
        begins, ends = bounds[:-1][chosen], bounds[1:][chosen]
        most = self.seq_length - 2
        counts = -(-(ends - begins) // most)
        if counts.max() > _MOST_SEGMENTS:
            raise ValueError(
                f"a document makes {counts.max()} segments, more than {_MOST_SEGMENTS}: cut it into several"
            )
        in_document = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(begins, counts) + in_document * most
        last = np.minimum(first + most, np.repeat(ends, counts))
        return Segments(np.stack([first, last], axis=1), np.repeat(chosen, counts) * _MOST_SEGMENTS + in_document)


class Segments(NamedTuple):
    """Runs of tokens: ``ranges`` int64 ``[B, 2]``, first token and end; ``indices`` int64 ``[B]``, by which to mask."""

    ranges: np.ndarray
    indices: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each with its two special tokens: int64 ``[B]``."""
        return self.ranges[:, 1] - self.ranges[:, 0] + 2


class PretrainingPart:
    """A part of an epoch: sequences, or windows of them, that are put together when they are asked for.

    Attributes:
        lengths: int64 ``[n]``, tokens of each example.
    """

    def __init__(
        self, corpus: Corpus, pairing: SentencePairing, sequences: ChosenPairs | Segments, windows: Windows | None
    ) -> None:
        self._corpus, self._pairing = corpus, pairing
        self._sequences, self._windows = sequences, windows
        lengths = sequences.lengths
        if windows is not None:
            lengths = np.add.reduceat(lengths[windows.order], windows.offsets[:-1]) if len(windows) else lengths[:0]
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: np.ndarray) -> list[Example]:
        """These examples; ``labels`` says of each sequence whether its B is random (int64), ``numbers`` masks it."""
        groups = [np.array([k]) for k in indices] if self._windows is None else [self._windows[k] for k in indices]
        flat = np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
        ids, types = self._gather(self._sequences.ranges[flat])
        lengths = self._sequences.lengths[flat]
        pairs = isinstance(self._sequences, ChosenPairs)
        examples, first, token = [], 0, 0
        for group in groups:
            sizes = lengths[first : first + len(group)]
            here = slice(token, token + int(sizes.sum()))
            examples.append(
                Example(
                    ids[here],
                    None if types is None else types[here],
                    self._sequences.next_sentence_label[group] if pairs else None,
                    lengths=None if self._windows is None else tuple(sizes.tolist()),
                    numbers=self._sequences.indices[group],
                )
            )
            first, token = first + len(group), here.stop
        return examples

    def _gather(self, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = self._corpus.documents.tokens
        if ranges.shape[1] == 4:
            return self._pairing.pack(tokens, ranges)
        cls, sep = (np.array([i], dtype=tokens.dtype) for i in (self._pairing.cls_token_id, self._pairing.sep_token_id))
        parts = [part for first, last in ranges.tolist() for part in (cls, tokens[first:last], sep)]
        return np.concatenate(parts) if parts else tokens[:0], None
