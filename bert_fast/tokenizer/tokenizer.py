"""Tokenizer: texts to ids and back."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from bert_fast.io import atomic_write
from bert_fast.tokenizer.encoding import BatchEncoding, Encoded, as_tensor
from bert_fast.tokenizer.errors import TokenizerError
from bert_fast.tokenizer.files import UNLIMITED, read_parts

_STRATEGIES = ("longest_first", "only_first", "only_second")
# what describes the folder it was read from rather than the tokenizer
_NOT_SAVED = {"name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file", "is_local"}


class Tokenizer:
    """A BERT tokenizer; make one with `Tokenizer.from_pretrained(folder)`.

    Calling it is calling a tokenizer of `transformers` (same names, same defaults, same ids). `encode_batch` is the
    quick way to unpadded ids, for packing.

    Args:
        backend: a `tokenizers.Tokenizer`; its truncation and padding are switched off here.
        special_tokens: role ("unk", "sep", "pad", "cls", "mask") -> token; each must be in the vocabulary.
        model_max_length: how many tokens the model takes, special tokens included.
        config: what `tokenizer_config.json` held, kept for `save_pretrained`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: dict[str, str],
        model_max_length: int = UNLIMITED,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.model_max_length = model_max_length
        self.config = dict(config or {})
        self.padding_side = self.config.get("padding_side", "right")
        self.special_tokens = dict(special_tokens)
        self._lock = threading.Lock()  # truncation is state of the backend: set and used under one lock
        self._truncation: tuple[int, str, int] | None = None
        for role, token in special_tokens.items():
            if backend.token_to_id(token) is None:
                raise TokenizerError(f"the {role} token {token!r} is not in the vocabulary")

    # ---------------------------------------------------------------- reading and writing

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, do_lower_case: bool | None = None, model_max_length: int | None = None
    ) -> Tokenizer:
        """Reads a tokenizer from `folder`: `tokenizer.json` if there, else `vocab.txt`.

        do_lower_case: None takes what `tokenizer_config.json` says; where nothing says it, a vocabulary with
            capital letters in its words is taken as cased (`transformers` would lower-case all the same and
            turn every capitalised word into [UNK]).
        model_max_length: None takes `tokenizer_config.json`, but never more than the positions in `config.json`.

        Raises TokenizerError, naming the file, if there is none or it cannot be used.
        """
        return cls(*read_parts(Path(folder), do_lower_case, model_max_length))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and, for WordPiece, `vocab.txt`; each complete or absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self.backend.no_truncation()
            self._truncation = None
            text = self.backend.to_str(pretty=True)
        config = {k: v for k, v in self.config.items() if k not in _NOT_SAVED}
        config.update({f"{role}_token": token for role, token in self.special_tokens.items()})
        config.setdefault("tokenizer_class", "BertTokenizer" if self._is_wordpiece else "PreTrainedTokenizerFast")
        config["model_max_length"] = self.model_max_length
        normalizer = json.loads(text).get("normalizer") or {}
        if normalizer.get("type") == "BertNormalizer":
            config["do_lower_case"] = normalizer["lowercase"]
            config["strip_accents"] = normalizer["strip_accents"]
            config["tokenize_chinese_chars"] = normalizer["handle_chinese_chars"]
        atomic_write(folder / "tokenizer.json", text.encode())
        atomic_write(
            folder / "tokenizer_config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        )
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        if self._is_wordpiece and sorted(vocabulary.values()) == list(range(len(vocabulary))):
            lines = sorted(vocabulary, key=vocabulary.__getitem__)
            atomic_write(folder / "vocab.txt", "".join(f"{token}\n" for token in lines).encode())

    @property
    def _is_wordpiece(self) -> bool:
        return isinstance(self.backend.model, tokenizers.models.WordPiece)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    # ---------------------------------------------------------------- vocabulary

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without tokens added later."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self.backend.get_vocab()

    def _token(self, role: str) -> str:
        try:
            return self.special_tokens[role]
        except KeyError:
            raise TokenizerError(f"this tokenizer has no {role} token; it has {self.special_tokens}") from None

    def _id(self, role: str) -> int:
        found = self.backend.token_to_id(self._token(role))
        assert found is not None  # the constructor checks
        return found

    unk_token = property(lambda self: self._token("unk"))
    sep_token = property(lambda self: self._token("sep"))
    pad_token = property(lambda self: self._token("pad"))
    cls_token = property(lambda self: self._token("cls"))
    mask_token = property(lambda self: self._token("mask"))
    unk_token_id = property(lambda self: self._id("unk"))
    sep_token_id = property(lambda self: self._id("sep"))
    pad_token_id = property(lambda self: self._id("pad"))
    cls_token_id = property(lambda self: self._id("cls"))
    mask_token_id = property(lambda self: self._id("mask"))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._id(role) for role in self.special_tokens]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Ids of tokens; one that is not in the vocabulary gives the id of the unk token."""
        if isinstance(tokens, str):
            found = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        found_or_none = [self.backend.token_to_id(token) for token in tokens]
        return [self.unk_token_id if found is None else found for found in found_or_none]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Tokens of ids; raises TokenizerError for an id outside the vocabulary."""
        return self._token_of(int(ids)) if isinstance(ids, (int, np.integer)) else [self._token_of(int(i)) for i in ids]

    def _token_of(self, index: int) -> str:
        token = self.backend.id_to_token(index) if index >= 0 else None
        if token is None:
            raise TokenizerError(f"id {index} is not in the vocabulary of {len(self)}")
        return token

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text (or a pair) gets."""
        return self.backend.num_special_tokens_to_add(pair)

    # ---------------------------------------------------------------- texts to ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of `text` as strings, without special tokens, never truncated."""
        return self._run([text], None, None, False, False, False)[0].tokens

    def encode(self, text: str, text_pair: str | None = None, add_special_tokens: bool = True) -> list[int]:
        """Ids of one text or pair, never truncated."""
        pairs = None if text_pair is None else [text_pair]
        return self._run([text], pairs, None, add_special_tokens, False, False)[0].ids

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        *,
        truncation: str = "longest_first",
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
    ) -> Encoded:
        """Ids without padding, the quick way: no offsets are kept, all cores are used.

        max_length: texts are cut to this many tokens, special tokens included, and what is beyond is dropped
            WITHOUT a word: look at `.cut` if you need to know. None cuts to `model_max_length`.
        truncation: which of a pair loses tokens: "longest_first", "only_first", "only_second".
        """
        limit = self.model_max_length if max_length is None else max_length
        cut = None if limit >= UNLIMITED else (limit, truncation, 0)
        found = self._run(texts, pairs, cut, add_special_tokens, is_split_into_words, True)
        lost = 0 if cut is None else sum(len(e) == limit and bool(e.overflowing) for e in found)
        return Encoded([e.ids for e in found], None if pairs is None else [e.type_ids for e in found], lost)

    def __call__(
        self,
        text: str | Sequence[Any],
        text_pair: str | Sequence[Any] | None = None,
        *,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
        return_token_type_ids: bool = True,
        return_attention_mask: bool = True,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
    ) -> BatchEncoding:
        """Tokenizes a text, a list of texts, or pairs of them, as a tokenizer of `transformers` does.

        padding: False; True or "longest" (to the longest of the batch); "max_length" (to `max_length`).
        truncation: False (nothing is cut, however long); True or "longest_first"; "only_first"; "only_second".
            What is cut is dropped without a word.
        max_length: for both; None means `model_max_length`.
        stride: how many tokens what is cut off shares with what is kept. It is not in the result, but cut to the same
            length in `result.encodings[i].overflowing`.
        return_tensors: None gives lists; "pt" torch tensors int64 [B, S]; "np" numpy arrays int64 [B, S].

        A single text gives flat lists without return_tensors, and B = 1 with it.
        """
        single = isinstance(text, str) or (is_split_into_words and (not text or isinstance(text[0], str)))
        texts: Sequence[Any] = [text] if single else text
        pairs = text_pair if text_pair is None else ([text_pair] if single else text_pair)
        if isinstance(pairs, str):
            raise TypeError("text_pair is one text but text is a list: give as many pairs as texts")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r}: allowed are None, 'pt' and 'np'")
        cut = self._cut(truncation, max_length, stride)
        found = self._run(texts, pairs, cut, add_special_tokens, is_split_into_words, False)
        columns: dict[str, tuple[list[list[Any]], Any]] = {"input_ids": ([e.ids for e in found], None)}
        if return_token_type_ids:
            columns["token_type_ids"] = ([e.type_ids for e in found], 0)
        if return_attention_mask:
            columns["attention_mask"] = ([e.attention_mask for e in found], 0)
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = ([e.special_tokens_mask for e in found], 1)
        if return_offsets_mapping:
            columns["offset_mapping"] = ([e.offsets for e in found], (0, 0))
        width = self._width(found, padding, max_length, pad_to_multiple_of)
        data: dict[str, Any] = {}
        for name, (rows, filler) in columns.items():
            filled = rows if width is None else self._pad(rows, width, self.pad_token_id if filler is None else filler)
            data[name] = as_tensor(filled, name, return_tensors) if return_tensors else filled[0] if single else filled
        return BatchEncoding(data, found)

    def _cut(self, truncation: bool | str, max_length: int | None, stride: int) -> tuple[int, str, int] | None:
        if truncation is False or truncation == "do_not_truncate":
            return None
        strategy = "longest_first" if truncation is True else truncation
        limit = self.model_max_length if max_length is None else max_length
        if limit >= UNLIMITED:
            raise ValueError(f"truncation={truncation!r} needs max_length: no file of this tokenizer says how long")
        return limit, strategy, stride

    def _width(
        self, found: list[tokenizers.Encoding], padding: bool | str, max_length: int | None, multiple: int | None
    ) -> int | None:
        """To how many tokens rows are padded; None for not at all."""
        if padding is False or padding == "do_not_pad":
            return None
        width = max((len(e) for e in found), default=0)
        if padding == "max_length":
            limit = self.model_max_length if max_length is None else max_length
            if limit >= UNLIMITED:
                raise ValueError("padding='max_length' needs max_length: no file of this tokenizer says how long")
            width = max(width, limit)
        elif padding is not True and padding != "longest":
            raise ValueError(f"padding={padding!r}: allowed are False, True, 'longest' and 'max_length'")
        return -(-width // multiple) * multiple if multiple else width

    def _pad(self, rows: list[list[Any]], width: int, filler: Any) -> list[list[Any]]:
        if self.padding_side == "left":
            return [[filler] * (width - len(row)) + row for row in rows]
        return [row + [filler] * (width - len(row)) for row in rows]

    def _run(
        self,
        texts: Sequence[Any],
        pairs: Sequence[Any] | None,
        cut: tuple[int, str, int] | None,
        special: bool,
        words: bool,
        fast: bool,
    ) -> list[tokenizers.Encoding]:
        """Calls the backend; `cut` is (max_length, strategy, stride) or None."""
        if isinstance(texts, str):
            raise TypeError("texts is a single string: give a list of texts")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} pairs: give as many pairs as texts")
        if cut is not None:
            self._check_cut(cut, pairs is not None, special)
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        backend = self.backend
        run = backend.encode_batch_fast if fast else backend.encode_batch
        with self._lock:
            if cut != self._truncation:
                if cut is None:
                    backend.no_truncation()
                else:
                    backend.enable_truncation(cut[0], strategy=cut[1], stride=cut[2])
                self._truncation = cut
            try:
                return run(inputs, is_pretokenized=words, add_special_tokens=special)
            except (TypeError, UnicodeEncodeError):
                _explain_bad_text(texts, pairs, words)
                raise

    def _check_cut(self, cut: tuple[int, str, int], pair: bool, special: bool) -> None:
        limit, strategy, stride = cut
        least = self.backend.num_special_tokens_to_add(pair) if special else 0
        if limit < least or limit < 1:
            raise ValueError(f"max_length={limit}: at least {max(least, 1)} (the special tokens alone take {least})")
        if not 0 <= stride < max(limit - least, 1):
            raise ValueError(f"stride={stride}: at least 0, and less than the {limit - least} tokens of text that fit")
        if strategy not in _STRATEGIES:
            raise ValueError(f"truncation={strategy!r}: allowed are True, False and {', '.join(_STRATEGIES)}")
        if strategy == "only_second" and not pair:
            raise ValueError("truncation='only_second' needs pairs of texts")

    # ---------------------------------------------------------------- ids to texts

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of ids (a list, array or tensor of one row); pieces are joined, punctuation closed up."""
        row = ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else list(ids)
        if row and not isinstance(row[0], int):
            raise TypeError("decode takes one row of ids; use batch_decode for several")
        return self.backend.decode(row, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, batch: Any, skip_special_tokens: bool = False) -> list[str]:
        """`decode` of every row."""
        return [self.decode(row, skip_special_tokens) for row in batch]

    def __repr__(self) -> str:
        limit = "unlimited" if self.model_max_length >= UNLIMITED else self.model_max_length
        return f"Tokenizer(vocab_size={self.vocab_size}, model_max_length={limit}, {self.special_tokens})"


def _explain_bad_text(texts: Sequence[Any], pairs: Sequence[Any] | None, words: bool) -> None:
    """Raises an error that names the first text the backend cannot take; returns if all look well."""
    for index, item in enumerate(texts if pairs is None else chain.from_iterable(zip(texts, pairs, strict=True))):
        where = index if pairs is None else index // 2
        for part in item if words and not isinstance(item, str) else [item]:
            if not isinstance(part, str):
                kind = type(part).__name__
                raise TypeError(f"text {where} is {kind} ({part!r:.40}), not str" + (" words" if words else ""))
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise TokenizerError(f"text {where} holds a lone surrogate at character {error.start}") from None
