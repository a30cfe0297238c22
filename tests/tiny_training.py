"""A small model, its data and short runs, for tests of the training loop."""

import json

import numpy as np
import torch

from bert_fast import BertConfig, BertForPreTraining, BertForSequenceClassification, PackedBatch
from bert_fast.training import AdamW, fit, linear_schedule, parameter_groups

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "some", "dog", "ran", "to", "its", "house", "then", "more"]


def documents_and_tokenizer(folder):
    """Writes documents, a tokenizer's folder and a small model's config."""
    draw = torch.Generator().manual_seed(2)

    def sentence():
        count = int(torch.randint(3, 9, (), generator=draw))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=draw).tolist())

    documents = ["\n".join(sentence() for _ in range(6)) for _ in range(30)]
    (folder / "documents.txt").write_text("\n\n".join(documents) + "\n")
    (folder / "tokenizer").mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join([*special, *WORDS, "##s"]) + "\n")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    (folder / "small.json").write_text(json.dumps({**sizes, "max_position_embeddings": 64}))
    return folder


def pretraining_model(**settings):
    torch.manual_seed(0)
    return BertForPreTraining(BertConfig(**SIZES, **settings))


def classifier(**settings):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3, **settings))


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, SIZES["vocab_size"], size=rng.integers(4, 30)) for _ in range(count)]


def pretraining_batch(rows, seed=0):
    """Packed texts with labels at some places, at very different numbers of them in different texts."""
    rng = np.random.default_rng(seed)
    labels = [np.where(rng.random(len(row)) < rng.uniform(0.05, 0.6), row, -100) for row in rows]
    return {
        "input_ids": PackedBatch.from_sequences(rows),
        "labels": torch.from_numpy(np.concatenate(labels)),
        "next_sentence_label": torch.from_numpy(rng.integers(0, 2, len(rows))),
    }


def pretraining_batches(count, size=4):
    rows = texts(count * size)
    return [pretraining_batch(rows[size * k : size * (k + 1)], k) for k in range(count)]


def joined(batches):
    """Several batches as one."""
    rows = [row.numpy() for b in batches for row in torch.tensor_split(b["input_ids"].input_ids, _cuts(b))]
    names = ("labels", "next_sentence_label")
    return {"input_ids": PackedBatch.from_sequences(rows), **{n: torch.cat([b[n] for b in batches]) for n in names}}


def _cuts(batch):
    return batch["input_ids"].cu_seqlens[1:-1].tolist()


def train(model, batches, steps=6, optimizer=None, **options):
    """A run with AdamW and a schedule, measured at every step."""
    optimizer = optimizer or AdamW(parameter_groups(model, 0.01), lr=1e-2)
    schedule = linear_schedule(optimizer, 2, 20)
    return fit(model, batches, optimizer, schedule, steps=steps, log_every=1, **options)


def collected(model, batches, **options):
    """The losses of a run, step by step."""
    lines = []
    train(model, batches, callbacks=[lines.append], **options)
    return [line["loss"] for line in lines if "loss" in line]


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
