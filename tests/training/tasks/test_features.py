"""Rows as tokens and labels: what `transformers`' tokenizer and its examples' rules make of the same rows."""

import numpy as np
import pytest
import transformers
from training.tasks import generated

from bert_fast.training.tasks import task_from

TEXTS = ["the film was good", "a bad film, seen by ann and bob today.", "q", "", "goodly awful zzz xyz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generated.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def ours(folder):
    return generated.tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def encoded(task, rows, tokenizer, length, **options):
    return task.encoded([task.record(row) for row in rows], tokenizer, length, **options)


@pytest.mark.parametrize("length", [64, 12, 7])
def test_texts_and_pairs(ours, theirs, length):
    pairs = TEXTS[::-1]
    rows = [{"text": a, "pair": b, "label": 0.5} for a, b in zip(TEXTS, pairs, strict=True)]
    single = encoded(task_from("regression"), rows, ours, length)
    wanted = theirs(TEXTS, truncation=True, max_length=length)
    assert [own.input_ids.tolist() for (own,) in single.examples] == wanted["input_ids"]
    assert single.examples[0][0].labels == 0.5
    both = encoded(task_from("regression", {"pair": "pair"}), rows, ours, length)
    wanted = theirs(TEXTS, pairs, truncation="longest_first", max_length=length)
    assert [own.input_ids.tolist() for (own,) in both.examples] == wanted["input_ids"]
    assert [own.token_type_ids.tolist() for (own,) in both.examples] == wanted["token_type_ids"]
    whole = [len(ids) for ids in theirs(TEXTS, pairs)["input_ids"]]
    assert both.cut == sum(n > length for n in whole)


@pytest.mark.parametrize("length", [64, 10])
def test_choices(ours, theirs, length):
    rows = list(generated.choice(5))
    found = encoded(task_from("choice"), rows, ours, length)
    firsts = [row["text"] for row in rows for _ in row["choices"]]
    wanted = theirs(firsts, [c for row in rows for c in row["choices"]], truncation=True, max_length=length)
    flat = [part for (own,) in found.examples for part in np.split(own.input_ids, np.cumsum(own.lengths)[:-1])]
    assert [part.tolist() for part in flat] == wanted["input_ids"]
    assert [own.labels for (own,) in found.examples] == [row["label"] for row in rows]


SENTENCES = [
    (["ann", "saw", "xyz", "."], ["B-PER", "O", "B-ORG", "O"]),
    (["bob", "qrst", "tuv", "ly"], ["B-PER", "I-PER", "I-PER", "O"]),
    (["u.s.", "\u200b", "good"], ["B-ORG", "O", "O"]),  # pieces that are no ##; nothing is left of the second word
    (["x" * 150, "fine"], ["O", "B-PER"]),  # too long a word is [UNK]
]


def by_the_examples_rules(theirs, length, numbers, label_all):
    """What run_ner of `transformers` makes: a word's first piece has its label, the rest -100, or its inside label."""
    found = theirs([words for words, _ in SENTENCES], is_split_into_words=True, truncation=True, max_length=length)
    for index, (_, tags) in enumerate(SENTENCES):
        labels, before = [], None
        for word in found.word_ids(index):
            if word is None:
                labels.append(-100)
            elif word != before:
                labels.append(numbers[tags[word]])
            else:
                labels.append(numbers.get(tags[word].replace("B-", "I-"), numbers[tags[word]]) if label_all else -100)
            before = word
        yield found["input_ids"][index], labels


@pytest.mark.parametrize("pieces", ["first", "all"])
@pytest.mark.parametrize("length", [64, 6])
def test_labels_of_word_pieces(ours, theirs, pieces, length):
    names = ("B-ORG", "B-PER", "I-PER", "O")  # no I-ORG: its later pieces stay B-ORG
    task = task_from("tokens", {"labels": names, "label_pieces": pieces})
    rows = [{"tokens": words, "labels": tags} for words, tags in SENTENCES]
    found = encoded(task, rows, ours, length)
    numbers = {name: number for number, name in enumerate(names)}
    for (own,), (ids, labels) in zip(
        found.examples, by_the_examples_rules(theirs, length, numbers, pieces == "all"), strict=True
    ):
        assert own.input_ids.tolist() == ids
        assert own.labels.tolist() == labels


def test_windows_hold_every_words_first_piece_once_at_least(ours):
    words = ["good", "xyzuvw", "ann", "qrstuvwxyz", "fine", "abc"] * 5
    task = task_from("tokens", {"labels": ("A", "B")})
    (windows,) = task.encoded([task.record({"tokens": words}, labelled=False)], ours, 12, whole=True).examples
    assert len(windows) > 3
    assert all(len(window) <= 12 for window in windows)
    seen = [int(w) for window in windows for w in window.info["words"][window.info["first"]]]
    assert sorted(set(seen)) == list(range(len(words)))
    ids = ours(words, is_split_into_words=False, add_special_tokens=False)["input_ids"]
    for window in windows:
        for place in np.flatnonzero(window.info["first"]):
            assert window.input_ids[place] == ids[window.info["words"][place]][0]


QUESTIONS = [
    ("who was seen ?", "the film was good. ann was seen by bob today, and a bad film by kim xyz.", "ann", 19),
    ("who ?", "bob", "bob", 0),
    ("who ?", "the good film was seen by kim", "kim", 26),
    ("zz ?", "the film qrstuv and more words that go on for long enough to be cut", "rst", 10),
]


@pytest.mark.parametrize(("length", "stride"), [(64, 16), (20, 4), (16, 0)])
def test_windows_of_a_context(ours, theirs, length, stride):
    task = task_from("qa", {"stride": stride})
    rows = [{"question": q, "context": c, "answers": {"text": [a], "answer_start": [s]}} for q, c, a, s in QUESTIONS]
    found = encoded(task, rows, ours, length)
    wanted = theirs(
        [q for q, *_ in QUESTIONS],
        [c for _, c, *_ in QUESTIONS],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    flat = [(row, window) for row, own in enumerate(found.examples) for window in own]
    assert [row for row, _ in flat] == wanted["overflow_to_sample_mapping"]
    answered = set()
    for index, (row, window) in enumerate(flat):
        assert window.input_ids.tolist() == wanted["input_ids"][index]
        assert window.token_type_ids.tolist() == wanted["token_type_ids"][index]
        parts, offsets = wanted.sequence_ids(index), wanted["offset_mapping"][index]
        kept = [pair if part == 1 else (-1, -1) for part, pair in zip(parts, offsets, strict=True)]
        assert [tuple(pair) for pair in window.info["offsets"].tolist()] == kept
        _, _, answer, start = QUESTIONS[row]
        inside = [place for place, pair in enumerate(kept) if pair[0] >= 0]
        covered = kept[inside[0]][0] <= start and kept[inside[-1]][1] >= start + len(answer)
        if not covered:
            assert tuple(window.labels) == (0, 0)
            continue
        first, last = window.labels
        assert kept[first][0] <= start < kept[first][1]
        assert kept[last][0] < start + len(answer) <= kept[last][1]
        answered.add(row)
    assert answered == set(range(len(QUESTIONS)))


def test_a_question_without_an_answer_points_at_the_first_token(ours):
    task = task_from("qa", {"stride": 4})
    row = {"question": "who ?", "context": "the film", "answers": {"text": [], "answer_start": []}}
    ((example,),) = encoded(task, [row], ours, 32).examples
    assert tuple(example.labels) == (0, 0)


def test_a_question_that_leaves_no_room(ours):
    task = task_from("qa", {"stride": 8})
    row = {"question": "who was seen by ann and bob today ?", "context": "x", "answers": []}
    with pytest.raises(ValueError, match="has 9 tokens, which leaves no room in windows of 20 tokens that share 8"):
        encoded(task, [row], ours, 20)
