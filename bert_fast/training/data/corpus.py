"""Raw documents to tokens on disk: read once as a stream, memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_fast.io import atomic_directory
from bert_fast.rows import InputError
from bert_fast.rows.files import File
from bert_fast.tokenizer import Tokenizer
from bert_fast.tokenizer.files import UNLIMITED
from bert_fast.training.data.sentences import paths_of, sentences_of
from bert_fast.training.documents import Documents

_VERSION = 1  # of the files' meaning: raise it where the same text would give other arrays
_ABANDONED = 3600.0  # seconds without a sentence
_SENTENCES = 4096  # tokenized at a time
_ARRAYS = {"tokens": np.int32, "sentence_offsets": np.int64, "document_offsets": np.int64}
Source = str | Path | Sequence[str | Path] | Iterable[Any]


class Corpus:
    """Tokenized documents in memory-mapped files, whose pages the system reads and lets go as it likes.

    Args:
        documents: a path or a list of paths (of text: a sentence a line, a blank line between documents; of other
            formats: a document a row, its sentences being the lines of ``text_field``), or an iterable of documents,
            each a text of lines, a list of sentences or a row with ``text_field``. A list of strings is one of paths
            only if there are such files. A sentence without tokens is left out, and so is a document without sentences.
        tokenizer: of the model.
        cache: a directory to keep the files in, under a name made of the documents' content, the tokenizer and
            ``text_field``: the same again is found again, whatever its path. Complete or absent. None: a temporary
            directory, which goes with this object.
        text_field: the rows' field that holds the text.
        on_bad_row: "raise" or "skip", of what files hold; see :func:`read_rows`.

    Attributes:
        documents: :class:`Documents` of mapped arrays, tokens int32.
        tokenizer_identity: of the tokenizer, as :func:`tokenizer_identity` tells it.

    Raises:
        InputError: what cannot be read, or holds no tokens.

    Memory does not grow with the documents. An iterator is read once and therefore always tokenized; anything that can
    be read twice is first read for its name. Processes that start together without the files each make them; one stays.
    """

    documents: Documents

    def __init__(
        self,
        documents: Source,
        tokenizer: Tokenizer,
        *,
        cache: str | Path | None = None,
        text_field: str = "text",
        on_bad_row: str = "raise",
    ) -> None:
        self.tokenizer_identity = tokenizer_identity(tokenizer)
        if cache is None:
            self.path = temporary_folder(self) / "corpus"
        else:
            self.path = Path(cache) / _key(documents, self.tokenizer_identity, text_field, on_bad_row)
        if not self.path.is_dir():
            _remove_abandoned(self.path)
            try:
                with atomic_directory(self.path) as folder:
                    if not _tokenize(sentences_of(documents, text_field, on_bad_row), tokenizer, folder):
                        raise InputError(f"{_named(documents)}: there are no tokens in it")
                    if self.path.is_dir():
                        raise _MadeByAnother
            except _MadeByAnother:
                pass
        self._open()

    def _open(self) -> None:
        self.documents = Documents(*(_mapped(self.path / f"{name}.bin", kind) for name, kind in _ARRAYS.items()))

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def token_count(self) -> int:
        """Tokens of all documents, without special tokens."""
        return self.documents.tokens.size

    def __getstate__(self) -> dict[str, Any]:
        # another process maps the files for itself
        return {"path": self.path, "tokenizer_identity": self.tokenizer_identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


def temporary_folder(owner: Any) -> Path:
    """A new directory that goes with ``owner``, in the process that made it: not with the copies of its workers."""
    path = Path(tempfile.mkdtemp(prefix="bert_fast-"))
    weakref.finalize(owner, _remove, path, os.getpid())
    return path


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """What a killed process has left of the same corpus: nothing was written to it for an hour."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(FileNotFoundError):  # its process lives, and has just given it its name
            if time.time() - max(file.stat().st_mtime for file in (left, *left.iterdir())) > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


class _MadeByAnother(Exception):
    """Another process has put the same files in place."""


def _mapped(path: Path, kind: type) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))


def tokenizer_identity(tokenizer: Tokenizer) -> str:
    """A short text that is another for a tokenizer that gives other ids."""
    state = json.loads(tokenizer.backend.to_str())
    state.update(truncation=None, padding=None)  # how it was last called, not what it is
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def _key(documents: Any, tokenizer: str, text_field: str, on_bad_row: str) -> str:
    """A name for the result: the same content, tokenizer and settings have the same."""
    facts = [_VERSION, tokenizer, text_field, on_bad_row]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    paths = paths_of(documents)
    if (paths is None and iter(documents) is documents) or Path("-") in (paths or []):
        return os.urandom(16).hex()  # it can be read once: there is no finding it again
    for path in paths or []:
        digest.update(f"\0{path.suffixes}\0{File(path).size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    if paths is None:
        for sentence in sentences_of(documents, text_field, on_bad_row):
            digest.update(b"\0" if sentence is None else sentence.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------- sentences to files


def _tokenize(sentences: Iterator[str | None], tokenizer: Tokenizer, folder: Path) -> int:
    files = {name: open(folder / f"{name}.bin", "wb") for name in _ARRAYS}  # noqa: SIM115 - closed below
    try:
        tokens = 0
        sentence_count = document_end = 0
        for name in ("sentence_offsets", "document_offsets"):
            _write(files[name], [0], np.int64)
        while taken := list(islice(sentences, _SENTENCES)):
            texts = [sentence for sentence in taken if sentence is not None]
            encoded = iter(tokenizer.encode_batch(texts, max_length=UNLIMITED, add_special_tokens=False).input_ids)
            flat: list[int] = []
            sentence_ends, document_ends = [], []
            for sentence in taken:
                if sentence is None:
                    if sentence_count > document_end:
                        document_end = sentence_count
                        document_ends.append(document_end)
                    continue
                ids = next(encoded)
                if ids:
                    flat += ids
                    sentence_count += 1
                    sentence_ends.append(tokens + len(flat))
            tokens += len(flat)
            for name, values in zip(_ARRAYS, (flat, sentence_ends, document_ends), strict=True):
                _write(files[name], values, _ARRAYS[name])
        if sentence_count > document_end:
            _write(files["document_offsets"], [sentence_count], np.int64)
    finally:
        for file in files.values():
            file.close()
    return tokens


def _named(documents: Any) -> str:
    paths = documents if isinstance(documents, (list, tuple)) and documents else [documents]
    return ", ".join(map(str, paths)) if all(isinstance(path, (str, Path)) for path in paths) else "the documents"


def _write(file: BinaryIO, values: Sequence[int], kind: type) -> None:
    file.write(np.asarray(values, dtype=kind).tobytes())
