"""A WordPiece vocabulary from texts, by the trainer of `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers

from bert_fast.io import atomic_directory, atomic_write
from bert_fast.rows import InputError, read_rows
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
    """A BERT tokenizer whose WordPiece vocabulary is learnt from texts.

    Args:
        texts: read once, as a stream; what is kept is a count of each word.
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
    start = {token: index for index, token in enumerate(special.values())}
    learner = wordpiece(start, special, lowercase=lowercase)
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        limit_alphabet=alphabet,
        special_tokens=list(start),
        show_progress=False,
    )
    learner.train_from_iterator(_batches(texts), trainer)
    learnt = learner.get_vocab()
    if len(learnt) <= len(start):
        raise InputError("the texts hold no words to learn a vocabulary from")
    if len(learnt) > vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: special tokens and the characters alone are {len(learnt)}; "
            f"raise it, or lower alphabet ({alphabet})"
        )
    backend = wordpiece(learnt, special, lowercase=lowercase)
    return Tokenizer(backend, special, model_max_length, {"do_lower_case": lowercase})


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
    rows = read_rows(list(inputs), input_format, columns=[text_field]).map(lambda row: _text(row, text_field))
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for text in rows:
            count += 1
            yield text

    with atomic_directory(output, force=force) as folder:
        tokenizer = train_tokenizer(counted(), **options)
        tokenizer.save_pretrained(folder)
        named = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
        atomic_write(folder / "special_tokens_map.json", (json.dumps(named, indent=2) + "\n").encode())
    return f"{len(tokenizer):,} tokens learnt from {count:,} texts: {output}"


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row[field], str):
        raise InputError(f"field {field!r} is {row[field]!r:.40}, not a string")
    return row[field]
