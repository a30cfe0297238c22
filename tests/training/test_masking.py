"""Masking: by its definition, in C++ and in NumPy; its statistics; independence of batches; edges and errors."""

import hashlib
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import by_definition as plain
from training.by_definition import running, ways

from bert_fast.training.masking import TokenMasking, word_continuations

QUICK = settings(max_examples=80, deadline=None)
VOCAB, MASK, SPECIAL = 40, 4, (0, 2, 3)
CONTINUES = np.arange(VOCAB) % 3 == 1  # of 4, the mask token, and 7, 10, ...


def packed(sequences, dtype=np.int64):
    flat = [i for ids in sequences for i in ids]
    return np.array(flat, dtype=dtype), np.cumsum([0, *map(len, sequences)])


@st.composite
def rules(draw):
    return TokenMasking(
        VOCAB,
        MASK,
        draw(st.sampled_from([(), SPECIAL])),
        probability=draw(st.sampled_from([0.0, 0.15, 0.5, 0.9, 1.0])),
        max_predictions=draw(st.sampled_from([None, 1, 3, 20])),
        continues_word=draw(st.sampled_from([None, CONTINUES])),
        seed=draw(st.sampled_from([0, 1, 2**63, 2**64 - 1])),
    )


batches = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=30), max_size=5)


@ways
@QUICK
@given(rules(), batches, st.data())
def test_masking_is_the_definitions(fallback, rule, sequences, data):
    epoch = data.draw(st.sampled_from([0, 3, 2**32 - 1]))
    indices = data.draw(st.lists(st.integers(0, 2**56 - 1), min_size=len(sequences), max_size=len(sequences)))
    ids, cu_seqlens = packed(sequences, data.draw(st.sampled_from([np.int32, np.int64])))
    marks = None
    if data.draw(st.booleans()):
        marks = np.array(data.draw(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size)), dtype=bool)
    before = ids.copy()
    how = {"epoch": epoch, "indices": indices, "special_mask": marks}
    with running(fallback):
        masked, labels = rule(ids, cu_seqlens, **how)
    assert np.array_equal(ids, before), "the input was changed"
    assert masked.dtype == labels.dtype == ids.dtype
    for b, sequence in enumerate(sequences):
        here = slice(cu_seqlens[b], cu_seqlens[b + 1])
        special = None if marks is None else marks[here].tolist()
        want = plain.mask_sequence(sequence, indices[b], rule, special, epoch)
        assert (masked[here].tolist(), labels[here].tolist()) == want


@ways
@pytest.mark.parametrize("most", [None, 150])
@pytest.mark.parametrize("continues", [None, CONTINUES], ids=["tokens", "words"])
def test_sequences_of_more_tokens_than_are_drawn_for_at_once(fallback, most, continues):
    rule = TokenMasking(VOCAB, MASK, SPECIAL, 0.5, max_predictions=most, continues_word=continues, seed=5)
    sequences = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (63, 64, 65, 0, 128, 300)]
    ids, cu_seqlens = packed(sequences)
    with running(fallback):
        masked, labels = rule(ids, cu_seqlens)
    want = [plain.mask_sequence(sequence, b, rule) for b, sequence in enumerate(sequences)]
    assert masked.tolist() == [i for one in want for i in one[0]]
    assert labels.tolist() == [i for one in want for i in one[1]]


def corpus(count=3000, vocab=1000, seed=1):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 120, count)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, vocab, cu_seqlens[-1])
    ids[cu_seqlens[:-1]] = 2
    ids[cu_seqlens[1:] - 1] = 3
    return ids, cu_seqlens


RULES = {
    "each": TokenMasking(1000, MASK, SPECIAL, seed=7),
    "exact": TokenMasking(1000, MASK, SPECIAL, max_predictions=20, seed=7),
    "words": TokenMasking(1000, MASK, SPECIAL, continues_word=np.arange(1000) % 3 == 0, seed=7),
    "exact words": TokenMasking(
        1000, MASK, SPECIAL, max_predictions=20, continues_word=np.arange(1000) % 3 == 0, seed=7
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_same_whatever_the_batches_workers_and_order(rule):
    ids, cu_seqlens = corpus(400)
    whole = rule(ids, cu_seqlens, epoch=2)
    rng = np.random.default_rng(3)
    for sizes in ([400], [1] * 400, [7, 250, 0, 143]):
        order = rng.permutation(400)
        for share in np.split(order, np.cumsum(sizes)[:-1]):
            parts = [ids[cu_seqlens[i] : cu_seqlens[i + 1]] for i in share]
            got = rule(*packed([part.tolist() for part in parts]), epoch=2, indices=share)
            wanted = [np.concatenate([x[cu_seqlens[i] : cu_seqlens[i + 1]] for i in share] or [[]]) for x in whole]
            assert all(np.array_equal(x, y) for x, y in zip(got, wanted, strict=True))
    again = pickle.loads(pickle.dumps(rule))(ids, cu_seqlens, epoch=2)
    assert all(np.array_equal(x, y) for x, y in zip(again, whole, strict=True))
    other = rule(ids, cu_seqlens, epoch=3)
    assert not np.array_equal(other.labels, whole.labels)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("each", "6199fcac4c64b7cd"),
        ("exact", "ca94cbafe3da2081"),
        ("words", "ad2aa6276867e728"),
        ("exact words", "15ffa762dded2f4c"),
    ],
)
def test_what_masking_gives_never_changes_between_releases(name, digest):
    ids = (np.arange(20000) * 7919 % 995 + 5).astype(np.int64)
    cu_seqlens = np.minimum(np.arange(0, 20100, 97), 20000)
    masked, labels = RULES[name](ids, cu_seqlens, epoch=1)
    got = hashlib.sha256(masked.astype("<i8").tobytes() + labels.astype("<i8").tobytes())
    assert got.hexdigest()[:16] == digest


def within(found, n, p, deviations=5):
    """Whether a count is as a binomial with probability p gives it, but once in two million times."""
    return abs(found - n * p) <= deviations * math.sqrt(n * p * (1 - p)) + 1


@pytest.mark.parametrize("p", [0.15, 0.4])
def test_proportions(p):
    ids, cu_seqlens = corpus()
    rule = TokenMasking(1000, MASK, SPECIAL, probability=p)
    masked, labels = rule(ids, cu_seqlens)
    allowed = ~np.isin(ids, SPECIAL)
    chosen = labels != -100
    assert not (chosen & ~allowed).any()
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(masked[~chosen], ids[~chosen])
    n = int(chosen.sum())
    assert within(n, int(allowed.sum()), p)
    assert within(int((masked[chosen] == MASK).sum()), n, 0.8 + 0.1 / 1000)
    kept = masked[chosen] == ids[chosen]
    assert within(int(kept.sum()), n, 0.1 + 0.1 / 1000)
    random = masked[chosen][~kept & (masked[chosen] != MASK)]
    assert within(len(random), n, 0.1 * (1 - 2 / 1000))
    assert within(int((random < 500).sum()), len(random), 499 / 998)
    assert (random < 5).any(), "random tokens may be special ones, as in transformers and google-research/bert"
    # By position: no lane of a block of words is favoured.
    position = np.arange(ids.size) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    for lane in range(4):
        here = allowed & (position % 4 == lane)
        assert within(int((chosen & here).sum()), int(here.sum()), p)


def test_exact_counts_are_exact_and_every_token_is_as_likely():
    ids, cu_seqlens = corpus()
    _, labels = RULES["exact"](ids, cu_seqlens)
    lengths, counts = np.diff(cu_seqlens), np.add.reduceat(labels != -100, cu_seqlens[:-1])
    allowed = np.add.reduceat(~np.isin(ids, SPECIAL), cu_seqlens[:-1])
    want = np.minimum(np.minimum(20, np.maximum(1, np.rint(lengths * 0.15))), allowed)
    assert np.array_equal(counts, want)
    sequences = 20000
    _, labels = RULES["exact"](np.full(sequences * 10, 9), np.arange(0, sequences * 10 + 1, 10))
    hits = (labels.reshape(sequences, 10) != -100).sum(0)
    assert hits.sum() == 2 * sequences
    assert all(within(int(hit), sequences, 0.2) for hit in hits)


def test_words_are_never_split_and_are_as_likely_whatever_their_length():
    ids, cu_seqlens = corpus()
    for name in ("words", "exact words"):
        rule = RULES[name]
        _, labels = rule(ids, cu_seqlens)
        chosen = labels != -100
        joined = rule.continues_word[ids] & ~np.isin(ids, SPECIAL)
        joined[1:] &= ~np.isin(ids[:-1], SPECIAL)
        joined[cu_seqlens[:-1]] = False
        assert np.array_equal(chosen[1:][joined[1:]], chosen[:-1][joined[1:]])
        counts = np.add.reduceat(chosen, cu_seqlens[:-1])
        if name == "words":
            begins = ~joined & ~np.isin(ids, SPECIAL)
            assert within(int((chosen & begins).sum()), int(begins.sum()), 0.15)
        else:
            assert (counts <= np.minimum(20, np.maximum(1, np.rint(np.diff(cu_seqlens) * 0.15)))).all()


@ways
def test_edges(fallback):
    def run(rule, sequences, **how):
        ids, cu_seqlens = packed(sequences)
        with running(fallback):
            return [x.tolist() for x in rule(ids, cu_seqlens, **how)]

    for rule in (TokenMasking(VOCAB, MASK, SPECIAL, 1.0), TokenMasking(VOCAB, MASK, SPECIAL, 1.0, max_predictions=9)):
        assert run(rule, []) == [[], []]
        assert run(rule, [[], []]) == [[], []]
        assert run(rule, [[2, 3], [], [0]]) == [[2, 3, 0], [-100] * 3]
        assert run(rule, [[2, 7, 3], [8]])[1] == [-100, 7, -100, 8], "at probability 1 all but special tokens"
        marks = np.array([False, True, False, True])
        assert run(rule, [[2, 7, 3], [8]], special_mask=marks) == [[2, 7, 3, 8], [-100] * 4]
    never = TokenMasking(VOCAB, MASK, SPECIAL, 0.0)
    assert run(never, [list(range(VOCAB))])[1] == [-100] * VOCAB
    once = TokenMasking(VOCAB, MASK, SPECIAL, 0.0, max_predictions=5)
    assert sum(label != -100 for label in run(once, [list(range(VOCAB))])[1]) == 1, "Google's rule: one at least"
    words = TokenMasking(VOCAB, MASK, SPECIAL, 0.15, max_predictions=20, continues_word=CONTINUES)
    assert run(words, [[2, 5, 7, 7, 7, 3]])[1] == [-100] * 6, "one word of 4 tokens, and a budget of 1"
    assert run(words, [[2, 7, 3]])[1] == [-100, 7, -100], "a continuation after a special token begins a word"


def test_reads_what_numpy_reads():
    rule = TokenMasking(VOCAB, MASK, SPECIAL, 0.5)
    ids, cu_seqlens = packed([list(range(20)), list(range(9))])
    want = rule(ids, cu_seqlens)
    for like in (ids.tolist(), torch.from_numpy(ids), ids.astype(np.uint16), np.repeat(ids, 2)[::2]):
        got = rule(like, torch.from_numpy(cu_seqlens).int())
        assert got.input_ids.dtype == np.int64
        assert all(np.array_equal(x, y) for x, y in zip(got, want, strict=True))


@ways
@pytest.mark.parametrize("wrong", [-1, VOCAB, 2**40])
def test_an_id_outside_the_vocabulary_is_named(fallback, wrong):
    ids, cu_seqlens = packed([[5, 6], [7, wrong, 8]])
    message = f"input_ids\\[3\\] is {wrong}, outside the vocabulary of 40"
    with running(fallback), pytest.raises(ValueError, match=message):
        TokenMasking(VOCAB, MASK)(ids, cu_seqlens)


GOOD = {"vocab_size": VOCAB, "mask_token_id": MASK}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be in 1 .. 2\\*\\*31 - 1, not 0"),
        ({"mask_token_id": 40}, "mask_token_id must be in the vocabulary of 40, not 40"),
        ({"special_ids": (1, -1)}, "special_ids must be in the vocabulary of 40, not -1"),
        ({"probability": 1.5}, "probability must be in \\[0, 1\\], not 1.5"),
        ({"probability": float("nan")}, "probability must be in \\[0, 1\\], not nan"),
        ({"max_predictions": 0}, "max_predictions must be in 1 .. 2\\*\\*31 - 1, or None, not 0"),
        ({"continues_word": np.zeros(39)}, "continues_word must be \\[40\\], not \\[39\\]"),
        ({"seed": -1}, "seed must be in"),
    ],
    ids=str,
)
def test_a_bad_rule_is_an_error_that_names_it(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenMasking(**GOOD | changes)


@pytest.mark.parametrize(
    ("arguments", "how", "message"),
    [
        (([5, 6], [0, 1]), {}, "cu_seqlens must rise from 0 to the 2 tokens of input_ids, not 0 .. 1"),
        (([5, 6], []), {}, "cu_seqlens must rise from 0 to the 2 tokens of input_ids, not nothing"),
        (([5, 6], [0, 2, 1, 2]), {}, "cu_seqlens must rise by at least 0, but has 2 and then 1"),
        (([[5, 6]], [0, 2]), {}, "input_ids must have one dimension, not the shape \\(1, 2\\)"),
        (([5, 6], [0, 2]), {"indices": [1, 2]}, "indices must be \\[1\\], one for each sequence, not \\[2\\]"),
        (([5, 6], [0, 2]), {"indices": [-1]}, "indices must be in 0 .. 2\\*\\*56 - 1, not -1"),
        (([5, 6], [0, 2]), {"indices": [2**56]}, "indices must be in 0"),
        (([5, 6], [0, 2]), {"special_mask": [True]}, "special_mask must be \\[2\\], not \\[1\\]"),
        (([5, 6], [0, 2]), {"epoch": 2**32}, "epoch must be in"),
    ],
    ids=str,
)
@ways
def test_bad_arguments_are_named(fallback, arguments, how, message):
    with running(fallback), pytest.raises(ValueError, match=message):
        TokenMasking(**GOOD)(*arguments, **how)
    with pytest.raises(TypeError, match="input_ids must be integers, not float64"):
        TokenMasking(**GOOD)([0.5], [0, 1])


def test_the_rule_of_a_tokenizer():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "play": 5, "##ing": 6, "#": 7, "##": 8}

    class Stub(SimpleNamespace):
        def __len__(self):
            return len(vocabulary)

    stub = Stub(mask_token_id=4, all_special_ids=[1, 3, 0, 2, 4], get_vocab=lambda: vocabulary)
    rule = TokenMasking.for_tokenizer(stub, whole_words=True, probability=0.3, max_predictions=7, seed=9)
    assert (rule.vocab_size, rule.mask_token_id, set(rule.special_ids)) == (9, 4, {0, 1, 2, 3, 4})
    assert (rule.probability, rule.max_predictions, rule.seed) == (0.3, 7, 9)
    assert rule.continues_word.tolist() == [False] * 6 + [True, False, True]
    assert TokenMasking.for_tokenizer(stub).continues_word is None
    stub.get_vocab = lambda: {"a": 0}
    with pytest.raises(ValueError, match="whole words need a WordPiece vocabulary"):
        word_continuations(stub)


def test_special_ids_may_be_an_iterator():
    rule = TokenMasking(30, 4, special_ids=iter([1, 2]), probability=1.0)
    assert rule([1, 7, 2], [0, 3]).labels.tolist() == [-100, 7, -100]


@pytest.mark.parametrize(
    "change", [{"mask_token_id": 4.0}, {"max_predictions": 2.5}, {"seed": "1"}, {"vocab_size": 3e1}], ids=str
)
def test_what_is_no_integer_is_named(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be an integer, not"):
        TokenMasking(**{"vocab_size": 30, "mask_token_id": 4, **change})
