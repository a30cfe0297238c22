"""A tiny checkpoint, and rows of which a tiny model can learn something, for every task."""

import random
from pathlib import Path

import torch

import bert_fast
from bert_fast.tokenizer import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "awful"]
NAMES, FILL = ["ann", "bob", "kim"], ["the", "a", "film", "was", "seen", "by", "and", "today"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), ".", ",", "?"]
VOCABULARY = [*SPECIAL, *dict.fromkeys([*GOOD, *BAD, *NAMES, *FILL, "who", "##ly", *LETTERS])]


def checkpoint(folder: Path, positions: int = 64, layers: int = 1) -> Path:
    """A BERT of random weights and its tokenizer; words that it does not know are spelt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    config = bert_fast.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    bert_fast.BertModel(config).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> Tokenizer:
    """Of :func:`checkpoint`."""
    return Tokenizer.from_pretrained(folder)


def _sentence(draw, *words):
    filling = [draw.choice(FILL) for _ in range(draw.randrange(2, 9))]
    for word in words:
        filling.insert(draw.randrange(len(filling) + 1), word)
    return filling


def classification(n, seed=0):
    draw = random.Random(seed)
    for _ in range(n):
        label = draw.choice(["negative", "positive"])
        yield {"text": " ".join(_sentence(draw, draw.choice(GOOD if label == "positive" else BAD))), "label": label}


def regression(n, seed=0):
    draw = random.Random(seed)
    for _ in range(n):
        good = draw.randrange(4)
        words = [draw.choice(GOOD) for _ in range(good)] + [draw.choice(BAD) for _ in range(3 - good)]
        yield {"text": " ".join(_sentence(draw, *words)), "label": good / 3}


def multilabel(n, seed=0):
    draw = random.Random(seed)
    for _ in range(n):
        labels = [name for name in NAMES if draw.random() < 0.5]
        yield {"text": " ".join(_sentence(draw, *labels)), "labels": labels}


def tokens(n, seed=0):
    draw = random.Random(seed)
    for _ in range(n):
        words = _sentence(draw, *(draw.choice(NAMES) for _ in range(draw.randrange(3))))
        yield {"tokens": words, "labels": ["B-PER" if word in NAMES else "O" for word in words]}


def qa(n, seed=0):
    draw = random.Random(seed)
    for number in range(n):
        name = draw.choice(NAMES)
        words = _sentence(draw, name)
        start = sum(len(word) + 1 for word in words[: words.index(name)])
        yield {
            "id": f"q{number}",
            "question": "who ?",
            "context": " ".join(words),
            "answers": {"text": [name], "answer_start": [start]},
        }


def choice(n, seed=0):
    draw = random.Random(seed)
    for _ in range(n):
        label = draw.randrange(3)
        endings = [draw.choice(GOOD if place == label else BAD) for place in range(3)]
        yield {"text": " ".join(_sentence(draw)), "choices": endings, "label": label}


ROWS = {
    "classification": classification,
    "regression": regression,
    "multilabel": multilabel,
    "tokens": tokens,
    "qa": qa,
    "choice": choice,
}
