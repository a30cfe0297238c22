"""A WordPiece vocabulary from texts, by the trainer of `tokenizers`."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from bert_fast.io import atomic_directory, atomic_write
from bert_fast.rows import InputError, Rows, read_rows
from bert_fast.tokenizer.files import BERT_TOKENS, wordpiece
from bert_fast.tokenizer.tokenizer import Tokenizer

_ROLES = ("pad", "unk", "cls", "sep", "mask")  # ids 0 to 4, [PAD] at 0 as in every BERT
_TEXTS = 1000  # handed over at a time


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 30522,
    lowercase: bool = True,
    min_frequency: int = 2,
    alphabet: int = 1000,
    model_max_length: int = 512,
) -> Tokenizer:
    """A BERT tokenizer whose WordPiece vocabulary is learnt from texts: the same again from the same texts.

    Args:
        texts: read two or three times, as a stream; an iterator by way of a temporary file. Kept are counts of words.
        vocab_size: the most tokens, special ones included; fewer where the texts have no more to learn.
        lowercase: lower-cased and without accents ("uncased"), or as written.
        min_frequency: how often a pair of pieces must occur to become a token.
        alphabet: the most characters that the vocabulary knows, the most frequent ones; each is a token, and one more
            with "##". What has others becomes [UNK].
        model_max_length: how many tokens the model will take.

    Raises:
        ValueError: an argument that must be at least 1 is not, or the characters alone need more than ``vocab_size``.
        InputError: there are no words in the texts.
    """
    sizes = {"vocab_size": vocab_size, "min_frequency": min_frequency, "alphabet": alphabet}
    for name, value in (sizes | {"model_max_length": model_max_length}).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    special = {role: BERT_TOKENS[role] for role in _ROLES}
    with _readable_again(texts) as again:
        start = [*special.values(), *_characters(again, special, lowercase, alphabet)]
        if len(start) == len(special):
            raise InputError("the texts hold no words to learn a vocabulary from")
        if len(start) > vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size} is too small: special tokens and the characters alone are {len(start)}; "
                f"raise it, or lower alphabet ({alphabet})"
            )
        # Named beforehand, all characters have known ids, by which the trainer orders pairs that occur equally often.
        options = {"min_frequency": min_frequency, "limit_alphabet": 0, "special_tokens": start}
        learnt = _learn(again, special, lowercase, vocab_size=vocab_size, **options).get_vocab()
    backend = wordpiece(learnt, special, lowercase=lowercase)
    return Tokenizer(backend, special, model_max_length, {"do_lower_case": lowercase})


def _characters(texts: Iterable[str], special: dict[str, str], lowercase: bool, most: int) -> list[str]:
    """The most frequent characters (of equally frequent ones the first), and those that continue words, with "##".

    The trainer alone would number them in the order of a hash table, another in every run, and so learn other tokens.
    """
    found = _learn(texts, special, lowercase, vocab_size=1, special_tokens=list(special.values())).get_vocab()
    kept = sorted(token for token in found if len(token) == 1)
    if len(kept) > most:
        normalizer = wordpiece({t: k for k, t in enumerate(special.values())}, special, lowercase=lowercase).normalizer
        counts: Counter[str] = Counter()
        for batch in _batches(texts):
            counts.update(normalizer.normalize_str("\n".join(batch)))
        kept = sorted(sorted(kept, key=lambda c: (-counts[c], c))[:most])
    return kept + [f"##{c}" for c in kept if f"##{c}" in found]


def _learn(texts: Iterable[str], special: dict[str, str], lowercase: bool, **options: Any) -> tokenizers.Tokenizer:
    learner = wordpiece({token: k for k, token in enumerate(special.values())}, special, lowercase=lowercase)
    trainer = tokenizers.trainers.WordPieceTrainer(show_progress=False, **options)
    learner.train_from_iterator(_batches(texts), trainer)
    return learner


@contextmanager
def _readable_again(texts: Iterable[str]) -> Iterator[Iterable[str]]:
    if iter(texts) is not texts:
        yield texts
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        yield read_rows(path).map(lambda row: row["text"])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _TEXTS)):
        yield batch


def train_tokenizer_files(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    input_format: str | None = None,
    text_field: str = "text",
    force: bool = False,
    **options: Any,
) -> str:
    """Trains on files and writes a directory that :class:`Tokenizer` and `transformers` load; complete or absent.

    Args:
        inputs: files as :func:`bert_fast.rows.read_rows` reads them.
        output: the directory: tokenizer.json, vocab.txt, tokenizer_config.json and special_tokens_map.json.
        input_format: None tells by the suffix.
        text_field: the field or column with the text, of formats that have any.
        force: replace a directory that is there.
        options: of :func:`train_tokenizer`.

    Returns:
        one line that says what was made.

    Raises:
        FileExistsError: the directory is there, and not empty; before anything is read.
        InputError, ValueError: as reading and training do.
    """
    texts = _Texts(read_rows(list(inputs), input_format, columns=[text_field]), text_field)
    with atomic_directory(output, force=force) as folder:
        tokenizer = train_tokenizer(iter(texts) if "-" in map(str, inputs) else texts, **options)
        tokenizer.save_pretrained(folder)
        named = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
        atomic_write(folder / "special_tokens_map.json", (json.dumps(named, indent=2) + "\n").encode())
    return f"{len(tokenizer):,} tokens learnt from {texts.count:,} texts: {output}"


class _Texts:
    """The texts of rows, and how many there were in the last pass."""

    def __init__(self, rows: Rows, field: str) -> None:
        self._rows, self._field = rows.map(self._text), field
        self.count = 0

    def _text(self, row: dict[str, Any]) -> str:
        if not isinstance(row[self._field], str):
            raise InputError(f"field {self._field!r} is {row[self._field]!r:.40}, not a string")
        return row[self._field]

    def __iter__(self) -> Iterator[str]:
        self.count = 0
        for text in self._rows:
            self.count += 1
            yield text
