"""Collators: packed and padded batches of the same examples give every head the same loss, and Trainer takes both."""

import copy
import pickle

import numpy as np
import pytest
import torch

import bert_fast
from bert_fast import BertConfig
from bert_fast.training.data import Batch, Example, PackedCollator

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (7, 3, 12, 1)


def ids(length, seed=0):
    return np.random.default_rng(length + seed).integers(1, 50, length)


def examples(kind):
    rng = np.random.default_rng(1)
    if kind == "choice":
        choices = [[ids(n, k) for k in range(3)] for n in LENGTHS]
        types = [[np.arange(n) % 2 for _ in range(3)] for n in LENGTHS]
        return [Example.of_sequences(c, t, k % 3, f"q{k}") for k, (c, t) in enumerate(zip(choices, types, strict=True))]
    labels = {
        "class": [0, 2, 1, -100],
        "value": [0.5, -1, 2.25, np.float32(3)],
        "multi": rng.integers(0, 2, (4, 3)),
        "token": [np.where(rng.random(n) < 0.3, -100, rng.integers(0, 3, n)) for n in LENGTHS],
        "span": [(1, 3), (0, 2), (5, 11), (0, 0)],
        None: [None] * 4,
    }[kind]
    # the second has no types, as texts without a pair have none
    return [Example(ids(n), None if k == 1 else np.arange(n) % 2, labels[k], f"q{k}") for k, n in enumerate(LENGTHS)]


HEADS = {
    "class": ("BertForSequenceClassification", {"num_labels": 3}, 3),
    "value": ("BertForSequenceClassification", {"num_labels": 1}, 4),
    "multi": ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}, 12),
    "token": ("BertForTokenClassification", {"num_labels": 3}, None),
    "span": ("BertForQuestionAnswering", {"num_labels": 2, "hidden_positions": "zero"}, 4),
    "choice": ("BertForMultipleChoice", {}, 4),
}


@pytest.mark.parametrize("kind", HEADS)
def test_packed_and_padded_give_the_same_loss(kind):
    name, options, count = HEADS[kind]
    model = getattr(bert_fast, name)(BertConfig(**CONFIG, **options)).eval()
    given = examples(kind)
    packed, padded = PackedCollator(kind)(given), PackedCollator(kind, padded=True)(given)
    assert torch.allclose(model(**packed).loss, model(**padded).loss, atol=1e-6)
    if count is None:
        count = sum(int((e.labels != -100).sum()) for e in given)
    assert packed.label_counts == padded.label_counts == {"labels": count}
    assert packed.infos == ["q0", "q1", "q2", "q3"]
    assert packed.tokens == padded["attention_mask"].sum() == sum(map(len, given))


@pytest.mark.parametrize("kind", ["class", "token", "choice"])
def test_padded_batches_are_what_transformers_takes(kind):
    transformers = pytest.importorskip("transformers")
    name, options, _ = HEADS[kind]
    ours = getattr(bert_fast, name)(BertConfig(**CONFIG, **options)).eval()
    theirs = getattr(transformers, name)(transformers.BertConfig(**CONFIG, **options)).eval()
    theirs.load_state_dict(ours.state_dict())
    batch = PackedCollator(kind)(examples(kind))
    padded = PackedCollator(kind, padded=True, pad_to_multiple_of=8)(examples(kind))
    assert padded["input_ids"].shape[-1] == 16
    assert torch.allclose(ours(**batch).loss, theirs(**padded).loss, atol=1e-6)


def test_a_batch_by_hand():
    batch = PackedCollator("token")([Example([4, 5], labels=[1, -100]), Example([6], [1], labels=[0])])
    packed = batch["input_ids"]
    assert packed.input_ids.tolist() == [4, 5, 6] and packed.input_ids.dtype == torch.int64
    assert packed.cu_seqlens.tolist() == [0, 2, 3] and packed.cu_seqlens.dtype == torch.int32
    assert packed.position_ids.tolist() == [0, 1, 0] and packed.token_type_ids.tolist() == [0, 0, 1]
    assert packed.max_seqlen == 2 and batch["labels"].tolist() == [1, -100, 0]
    padded = PackedCollator("token", padded=True, pad_token_id=9)(
        [Example([4, 5], labels=[1, 2]), Example([6], labels=[0])]
    )
    assert {name: rows.tolist() for name, rows in padded.items()} == {
        "input_ids": [[4, 5], [6, 9]],
        "attention_mask": [[1, 1], [1, 0]],
        "token_type_ids": [[0, 0], [0, 0]],
        "labels": [[1, 2], [0, -100]],
    }
    assert set(PackedCollator()(examples(None))) == {"input_ids"}


def test_moving_pinning_copying_and_pickling_keep_all_of_a_batch(monkeypatch):
    # Without CUDA there is no pinned memory to be had: what is asked for it shows.
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *_: pinned.append(x) or x.clone())
    batch = PackedCollator("class")(examples("class"))
    batch.indices = np.array([3, 1, 2, 0])
    for other in (
        batch.to("cpu", non_blocking=True),
        batch.pin_memory(),
        copy.copy(batch),
        pickle.loads(pickle.dumps(batch)),
    ):
        assert isinstance(other, Batch) and other.infos == batch.infos and other.tokens == batch.tokens
        assert other.label_counts == batch.label_counts and other.indices.tolist() == [3, 1, 2, 0]
        assert torch.equal(other["labels"], batch["labels"])
        assert torch.equal(other["input_ids"].cu_seqlens, batch["input_ids"].cu_seqlens)
    tensors = [batch["labels"], *(t for t in vars(batch["input_ids"]).values() if isinstance(t, torch.Tensor))]
    assert {id(t) for t in pinned} == {id(t) for t in tensors}
    meta = batch.to("meta")
    assert meta["labels"].is_meta and meta["input_ids"].input_ids.is_meta and meta["input_ids"].cu_seqlens.is_meta


def test_accelerate_moves_a_batch_as_a_whole():
    utils = pytest.importorskip("accelerate.utils")
    batch = PackedCollator("class")(examples("class"))
    moved = utils.send_to_device(batch, torch.device("meta"), non_blocking=True)
    assert isinstance(moved, Batch) and moved.infos == batch.infos and moved["input_ids"].position_ids.is_meta


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("class", 0.5, 'kind "class" are an integer, but example 1 of the batch has 0.5'),
        ("class", True, 'kind "class" are an integer'),
        ("value", "x", "are a number, but example 1 of the batch has 'x'"),
        ("multi", [1.0], "are 2 numbers, as the batch's first has, but example 1"),
        ("multi", ["a", "b"], "are numbers, but example 1 of the batch has"),
        ("token", [1, 2], "are 3 integers, one for each token, but example 1"),
        ("token", [1.0, 2.0, 3.0], "are 3 integers"),
        ("span", [1, 2, 3], "are the first and the last token's place"),
    ],
)
def test_labels_that_do_not_fit_are_named(kind, labels, message):
    first = {"class": 0, "value": 0.0, "multi": [0.0, 1.0], "token": [0, 0], "span": (0, 1)}[kind]
    with pytest.raises(ValueError, match=message):
        PackedCollator(kind)([Example([1, 2], labels=first), Example([1, 2, 3], labels=labels)])


def test_examples_and_collators_check_what_they_are_given():
    for arguments, message in [
        (([1.5],), "input_ids must be integers, not float64"),
        (([[1]],), "input_ids must have one dimension"),
        (([1, 2], [0]), r"token_type_ids must be \[2\] as input_ids are, not \[1\]"),
        (([1, 2], None, None, None, (1, 2)), "lengths must add up to the 2 tokens"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Example(*arguments)
    with pytest.raises(ValueError, match="labels must be None or one of class, value, .*, not 'classes'"):
        PackedCollator("classes")
    with pytest.raises(ValueError, match="at least one example"):
        PackedCollator()([])
    with pytest.raises(ValueError, match='"class" are for examples of one sequence each'):
        PackedCollator("class")([Example.of_sequences([[1]] * 2, labels=1)])
    two, three = (Example.of_sequences([[1]] * n, labels=1) for n in (2, 3))
    with pytest.raises(ValueError, match=r"must have as many sequences, not \[2, 3\]"):
        PackedCollator("choice")([two, three])
    with pytest.raises(ValueError, match='"choice" are 0 .. 1, but example 0 of the batch has 2'):
        PackedCollator("choice")([Example.of_sequences([[1]] * 2, labels=2)])


@pytest.mark.parametrize("padded", [False, True])
def test_the_trainer_of_hugging_face_takes_both(tmp_path, padded):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    settings = transformers.TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=2, learning_rate=0.01, report_to=[], use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = bert_fast.BertForSequenceClassification(BertConfig(**CONFIG, num_labels=3))
    given = [example for example in examples("class") if example.labels >= 0]
    trainer = transformers.Trainer(model, settings, PackedCollator("class", padded=padded), given)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(np.isfinite(losses))
