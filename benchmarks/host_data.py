"""The making of pre-training data, beside the plain Python that it replaces: masking, sentence pairs, windows.

    python -m benchmarks.host_data --texts FILE [--json OUT] [--rounds 5]

FILE holds one sentence a line and a blank line between documents. Every task is first done in C++ and without the
extension, to the same bits; then both, plain Python with `random` and lists, and the collator of transformers take
turns. All deliver packed arrays, masking a batch at a time, and what is made is let go at once, as a loader's consumer
does.
"""

import argparse
import collections
import functools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from transformers.data.data_collator import DataCollatorForLanguageModeling

import bert_fast
from benchmarks.environment import environment
from benchmarks.rounds import interleaved
from bert_fast import extension
from bert_fast.demo.run import model_folder
from bert_fast.io import atomic_write
from bert_fast.training.masking import TokenMasking
from bert_fast.training.pairing import Documents, SentencePairing
from bert_fast.training.windows import pack_windows

Lists = list[list[int]]
Makers = dict[str, Callable[[], Iterable]]
BATCH = 256


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 if C++ and Python differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    extension.required()
    tokenizer = bert_fast.Tokenizer.from_pretrained(model_folder())
    documents = _documents(tokenizer, options.texts)
    pairing = SentencePairing(tokenizer.cls_token_id, tokenizer.sep_token_id, 128, seed=1)
    pairs = pairing(Documents.from_lists(documents))
    sequences = [ids.tolist() for ids in np.split(pairs.input_ids, pairs.cu_seqlens[1:-1])]
    tokens = sum(map(len, sequences))
    single = TokenMasking.for_tokenizer(tokenizer, seed=1)
    words = TokenMasking.for_tokenizer(tokenizer, whole_words=True, max_predictions=20, seed=1)
    mask_words = functools.partial(_mask_words, words.continues_word.tolist())
    lengths = np.diff(pairs.cu_seqlens)
    sentences = np.array([len(s) for document in documents for s in document if len(s) <= 512])
    drawn = np.random.default_rng(0).lognormal(5.0, 0.6, 200_000).astype(np.int64).clip(1, 512)
    tasks: dict[str, tuple[Makers, int, str]] = {
        "masking, each token": (
            _masking(sequences, single)
            | {"plain Python": lambda: _packed(sequences, single, _mask_each)}
            | {"transformers": _collator(sequences, model_folder())},
            tokens,
            "tokens",
        ),
        "masking, exact, whole words": (
            _masking(sequences, words) | {"plain Python": lambda: _packed(sequences, words, mask_words)},
            tokens,
            "tokens",
        ),
        "sentence pairs": (_pairing(documents, pairing), tokens, "tokens"),
        "windows of 512, Brown's pairs": (_windows(lengths), len(lengths), "sequences"),
        "windows of 512, Brown's sentences": (_windows(sentences), len(sentences), "sequences"),
        "windows of 512, random lengths": (_windows(drawn), len(drawn), "sequences"),
    }
    rows, good = {}, True
    for name, (contenders, size, unit) in tasks.items():
        same = _same(list(contenders["bert_fast"]()), list(contenders["bert_fast, no extension"]()))
        draining = {who: functools.partial(_drain, maker) for who, maker in contenders.items()}
        timings = interleaved(draining, options.rounds)
        base = timings["plain Python"].median
        rows[name] = {
            who: {f"{unit}_per_second": size / t.median, "times_plain": base / t.median, "spread": t.worst / t.best}
            for who, t in timings.items()
        }
        good = good and same
        print(f"{name} ({size} {unit}; C++ and Python {'agree' if same else 'DIFFER'})")
        for who, row in rows[name].items():
            print(f"    {who:26s} {row[f'{unit}_per_second']:13,.0f} {unit}/s {row['times_plain']:8.1f}x")
    if options.json:
        texts = {"documents": len(documents), "tokens": tokens, "sequences": len(sequences)}
        report = {"environment": environment(), "texts": texts, "batch": BATCH, "results": rows}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())
    return 0 if good else 1


def _documents(tokenizer: bert_fast.Tokenizer, file: Path) -> list[Lists]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    ids = tokenizer.encode_batch([line for line in lines if line], max_length=10**6, add_special_tokens=False)
    following = iter(ids.input_ids)
    documents: list[Lists] = [[]]
    for line in lines:
        if line:
            documents[-1].append(next(following))
        else:
            documents.append([])
    return [[ids for ids in document if ids] for document in documents if any(document)]


def _drain(maker: Callable[[], Iterable]) -> None:
    collections.deque(maker(), maxlen=0)


def _same(one: Iterable, other: Iterable) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def _both(run: Callable[[], Iterable]) -> Makers:
    def without() -> Iterator:
        with mock.patch.object(extension, "module", lambda: None):
            yield from run()

    return {"bert_fast": run, "bert_fast, no extension": without}


# ---------------------------------------------------------------- masking


def _masking(sequences: Lists, rule: TokenMasking) -> Makers:
    batches = [
        (np.concatenate([np.array(ids) for ids in part]), np.cumsum([0, *map(len, part)]), np.arange(i, i + len(part)))
        for i in range(0, len(sequences), BATCH)
        for part in [sequences[i : i + BATCH]]
    ]

    def run() -> Iterator:
        for ids, starts, numbers in batches:
            yield from rule(ids, starts, indices=numbers)

    return _both(run)


def _collator(sequences: Lists, folder: Path) -> Callable[[], Iterable]:
    """transformers pads: its batches are of sequences sorted by length, so that it has next to no padding to mask."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    collate = DataCollatorForLanguageModeling(tokenizer, return_tensors="np")
    special = set(tokenizer.all_special_ids)
    rows = [
        {"input_ids": np.array(ids), "special_tokens_mask": np.array([i in special for i in ids])}
        for ids in sorted(sequences, key=len)
    ]
    padded = [tokenizer.pad(rows[i : i + BATCH], return_tensors="np").data for i in range(0, len(rows), BATCH)]

    def run() -> Iterator:
        for batch in padded:
            yield collate.numpy_mask_tokens(batch["input_ids"].copy(), batch["special_tokens_mask"])

    return run


def _packed(sequences: Lists, rule: TokenMasking, mask: Callable) -> Iterator:
    rng, special = random.Random(1), set(rule.special_ids)
    for i in range(0, len(sequences), BATCH):
        masked: list[int] = []
        labels: list[int] = []
        for ids in sequences[i : i + BATCH]:
            one, other = mask(ids, rule, special, rng)
            masked += one
            labels += other
        yield np.array(masked)
        yield np.array(labels)


def _replacement(token: int, rule: TokenMasking, rng: random.Random) -> int:
    if rng.random() < 0.8:
        return rule.mask_token_id
    return token if rng.random() < 0.5 else rng.randint(0, rule.vocab_size - 1)


def _mask_each(ids: list[int], rule: TokenMasking, special: set[int], rng: random.Random) -> tuple:
    masked, labels = list(ids), [-100] * len(ids)
    for i, token in enumerate(ids):
        if token not in special and rng.random() < rule.probability:
            masked[i], labels[i] = _replacement(token, rule, rng), token
    return masked, labels


def _mask_words(
    continues: list[bool], ids: list[int], rule: TokenMasking, special: set[int], rng: random.Random
) -> tuple:
    assert rule.max_predictions is not None
    words: Lists = []
    for i, token in enumerate(ids):
        if token in special:
            continue
        if words and continues[token]:
            words[-1].append(i)
        else:
            words.append([i])
    rng.shuffle(words)
    masked, labels = list(ids), [-100] * len(ids)
    room = min(rule.max_predictions, max(1, round(len(ids) * rule.probability)))
    for word in words:
        if room == 0:
            break
        if len(word) <= room:
            room -= len(word)
            for i in word:
                masked[i], labels[i] = _replacement(ids[i], rule, rng), ids[i]
    return masked, labels


# ---------------------------------------------------------------- pairs and windows


def _pairing(documents: list[Lists], rule: SentencePairing) -> Makers:
    corpus = Documents.from_lists(documents)
    return _both(lambda: rule(corpus)) | {"plain Python": lambda: _pair(documents, rule)}


def _pair(documents: list[Lists], rule: SentencePairing) -> list:
    rng, most = random.Random(1), rule.max_length - 3
    ids: list[int] = []
    types: list[int] = []
    starts, labels = [0], []
    for number, document in enumerate(documents):
        target = rng.randint(2, most) if rng.random() < rule.short_probability else most
        chunk: Lists = []
        length = i = 0
        while i < len(document):
            chunk.append(document[i])
            length += len(document[i])
            if i == len(document) - 1 or length >= target:
                of_a = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a = [token for sentence in chunk[:of_a] for token in sentence]
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    b = _random_sentences(documents, number, target - len(a), rng)
                    i -= len(chunk) - of_a
                else:
                    b = [token for sentence in chunk[of_a:] for token in sentence]
                while len(a) + len(b) > most:
                    longer = a if len(a) > len(b) else b
                    if rng.random() < 0.5:
                        del longer[0]
                    else:
                        longer.pop()
                ids += [rule.cls_token_id, *a, rule.sep_token_id, *b, rule.sep_token_id]
                types += [0] * (len(a) + 2) + [1] * (len(b) + 1)
                starts.append(len(ids))
                labels.append(int(is_random))
                chunk, length = [], 0
            i += 1
    return [np.array(x) for x in (ids, types, starts, labels)]


def _random_sentences(documents: list[Lists], number: int, target: int, rng: random.Random) -> list[int]:
    other = number
    while other == number:
        other = rng.randrange(len(documents))
    found: list[int] = []
    for sentence in documents[other][rng.randrange(len(documents[other])) :]:
        found.extend(sentence)
        if len(found) >= target:
            break
    return found


def _windows(lengths: np.ndarray) -> Makers:
    def run() -> list:
        windows = pack_windows(lengths, 512)
        return [windows.order, windows.offsets]

    print(f"windows of 512: {pack_windows(lengths, 512).utilization:.2%} of {len(lengths)} sequences' windows is taken")
    both = _both(run)
    # Without the extension it is plain Python: the best a dictionary of stacks and a sorted list of rooms can do.
    return both | {"plain Python": both["bert_fast, no extension"]}


if __name__ == "__main__":
    sys.exit(main())
