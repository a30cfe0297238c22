"""Reading a tokenizer from its files.

`tokenizer.json` if it is there, else `vocab.txt` as Google's releases have it, together with `tokenizer_config.json`.
Where both say something about lower case, accents or Chinese characters, `tokenizer_config.json` wins, as in
`transformers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from bert_fast.tokenizer.errors import TokenizerError

ROLES = ("unk", "sep", "pad", "cls", "mask")
BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA_TOKENS = {"unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
UNLIMITED = int(1e30)  # what transformers uses for "no limit known"


class Parts(NamedTuple):
    """What a Tokenizer is made of; see its constructor."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    model_max_length: int
    config: dict[str, Any]


def read_parts(folder: Path, do_lower_case: bool | None = None, model_max_length: int | None = None) -> Parts:
    """What `folder` says a tokenizer is. Raises TokenizerError, naming the file, where that is nothing usable."""
    if not folder.is_dir():
        raise TokenizerError(f"no such folder: {folder}")
    config = _json(folder / "tokenizer_config.json")
    tokenizer_json, vocab_txt = folder / "tokenizer.json", folder / "vocab.txt"
    if tokenizer_json.is_file():
        source = tokenizer_json
        backend = _from_tokenizer_json(tokenizer_json, config, do_lower_case)
    elif vocab_txt.is_file():
        source = vocab_txt
        backend = _from_vocab_txt(vocab_txt, config, do_lower_case)
    else:
        raise TokenizerError(f"{folder} has neither tokenizer.json nor vocab.txt")
    special = _special_tokens(backend, config, _json(folder / "special_tokens_map.json"))
    missing = [role for role in ("unk", "sep", "cls") if role not in special]
    if missing:
        raise TokenizerError(f"{source}: no {' or '.join(missing)} token in the vocabulary")
    return Parts(
        backend, special, _max_length(folder, config) if model_max_length is None else model_max_length, config
    )


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _from_tokenizer_json(path: Path, config: dict[str, Any], do_lower_case: bool | None) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception for everything
        raise TokenizerError(
            f"{path} is no tokenizer that `tokenizers` {tokenizers.__version__} reads: {error}"
        ) from error
    state = json.loads(backend.to_str()).get("normalizer") or {}
    if state.get("type") == "BertNormalizer":
        lower = config.get("do_lower_case") if do_lower_case is None else do_lower_case
        accents = config.get("strip_accents", state["strip_accents"])
        chinese = config.get("tokenize_chinese_chars")
        backend.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=state["clean_text"],
            handle_chinese_chars=state["handle_chinese_chars"] if chinese is None else chinese,
            strip_accents=accents,
            lowercase=state["lowercase"] if lower is None else lower,
        )
    elif do_lower_case is not None:
        kind = state.get("type")
        raise TokenizerError(f"{path}: do_lower_case cannot be set, its normalizer is {kind}, not BertNormalizer")
    return backend


def _from_vocab_txt(path: Path, config: dict[str, Any], do_lower_case: bool | None) -> tokenizers.Tokenizer:
    try:
        with open(path, encoding="utf-8") as file:
            vocabulary = {line.rstrip("\n"): index for index, line in enumerate(file)}
    except (UnicodeDecodeError, OSError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    special = {role: _content(config.get(f"{role}_token")) or BERT_TOKENS[role] for role in ROLES}
    missing = [special[role] for role in ("unk", "sep", "cls") if special[role] not in vocabulary]
    if missing:
        raise TokenizerError(f"{path} ({len(vocabulary)} lines) lacks {', '.join(missing)}: not a BERT vocabulary")
    lower = config.get("do_lower_case") if do_lower_case is None else do_lower_case
    chinese = config.get("tokenize_chinese_chars")
    backend = wordpiece(
        vocabulary,
        special,
        lowercase=not _looks_cased(vocabulary) if lower is None else lower,
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=True if chinese is None else chinese,
    )
    _add_tokens(backend, path, config)
    return backend


def wordpiece(
    vocabulary: dict[str, int],
    special: dict[str, str],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer for a vocabulary.

    Args:
        vocabulary: token -> id; it has the unk, cls and sep tokens.
        special: role -> token, as :class:`bert_fast.Tokenizer` takes them.
        lowercase, strip_accents, handle_chinese_chars: of BERT's normalizer; accents None: as `lowercase` says.
    """
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=special["unk"]))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    cls, sep = special["cls"], special["sep"]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    backend.add_special_tokens([token for token in special.values() if token in vocabulary])
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, path: Path, config: dict[str, Any]) -> None:
    """Tokens that were added to a `vocab.txt` tokenizer later: `added_tokens_decoder` or `added_tokens.json`."""
    added: dict[int, dict[str, Any]] = {}
    for content, index in _json(path.with_name("added_tokens.json")).items():
        added[index] = {"content": content}
    for index, entry in (config.get("added_tokens_decoder") or {}).items():
        added[int(index)] = entry
    for index in sorted(added):
        entry = {k: v for k, v in added[index].items() if k != "__type"}
        content, special = entry.pop("content"), entry.pop("special", False)
        token = tokenizers.AddedToken(content, special=special, **entry)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(content) != index:
            got = backend.token_to_id(content)
            raise TokenizerError(f"{path}: added token {content!r} should have id {index} but would get {got}")


def _content(token: Any) -> str | None:
    """The text of a special token, which files give as a string or as an AddedToken's fields."""
    return token.get("content") if isinstance(token, dict) else token


def _special_tokens(
    backend: tokenizers.Tokenizer, config: dict[str, Any], special_map: dict[str, Any]
) -> dict[str, str]:
    """Role -> token: as the files say, else BERT's or RoBERTa's usual names where the vocabulary has them."""
    found: dict[str, str] = {}
    for role in ROLES:
        named = _content(config.get(f"{role}_token")) or _content(special_map.get(f"{role}_token"))
        for token in [named] if named else [BERT_TOKENS[role], _ROBERTA_TOKENS[role]]:
            if backend.token_to_id(token) is not None:
                found[role] = token
                break
    return found


def _looks_cased(vocabulary: dict[str, int]) -> bool:
    """Whether words of a vocabulary have capital letters. A lower-casing vocabulary has at most a stray one."""
    words = [token for token in vocabulary if token.isalpha() and token.lower() != token.upper()]
    return sum(word != word.lower() for word in words) > 0.01 * len(words)


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    """`model_max_length`, never more than the model has positions for."""
    limit = int(config.get("model_max_length") or UNLIMITED)
    for name in ("config.json", "bert_config.json"):
        model = _json(folder / name)
        positions = model.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            if model.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
                positions -= (model.get("pad_token_id") or 0) + 1  # their positions start after the padding's
            return min(limit, positions)
    return limit
