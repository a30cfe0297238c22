"""Pairs of sentences: by Google's rule, in C++ and in Python; their statistics; independence of workers; errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training import by_definition as plain
from training.by_definition import running, ways

from bert_fast.training.masking import TokenMasking
from bert_fast.training.pairing import Documents, SentencePairing

QUICK = settings(max_examples=60, deadline=None)
CLS, SEP = 1, 2
ONE, TWO = Documents.from_lists([[[5]]]), Documents.from_lists([[[5]], [[6]]])


def numbered(shapes):
    """Documents of sentences of these lengths, every token another id, from 10 on."""
    token = iter(range(10, 10**9))
    return [[[next(token) for _ in range(n)] for n in lengths] for lengths in shapes]


def make(rule, documents, chosen=None, epoch=0, fallback=False):
    with running(fallback):
        return rule(documents, chosen, epoch=epoch)


def parts(pairs):
    """(A, B, label) of every pair, its special tokens and types checked."""
    found = []
    for b, label in enumerate(pairs.next_sentence_label.tolist()):
        here = slice(pairs.cu_seqlens[b], pairs.cu_seqlens[b + 1])
        ids, types = pairs.input_ids[here].tolist(), pairs.token_type_ids[here].tolist()
        middle = ids.index(SEP)
        assert (ids[0], ids[-1], ids.count(CLS), ids.count(SEP)) == (CLS, SEP, 1, 2)
        assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
        found.append((ids[1:middle], ids[middle + 1 : -1], label))
    return found


corpora = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=2, max_size=5)


@ways
@QUICK
@given(corpora, st.sampled_from([5, 8, 16, 64]), st.sampled_from([0.0, 0.1, 1.0]), st.data())
def test_pairs_are_googles(fallback, shapes, max_length, short, data):
    lists = numbered(shapes)
    rule = SentencePairing(CLS, SEP, max_length, short, seed=data.draw(st.sampled_from([0, 5, 2**64 - 1])))
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(0, len(lists) - 1), max_size=6)))
    epoch = data.draw(st.sampled_from([0, 9, 2**32 - 1]))
    dtype = data.draw(st.sampled_from([np.int32, np.int64]))
    pairs = make(rule, Documents.from_lists(lists, dtype), chosen, epoch, fallback)
    numbers = range(len(lists)) if chosen is None else chosen
    want = [(d, k, p) for d in numbers for k, p in enumerate(plain.pairs_of_document(lists, d, rule, epoch))]
    assert parts(pairs) == [(a, b, int(is_random)) for _, _, (a, b, is_random) in want]
    assert pairs.indices.tolist() == [d * 2**24 + k for d, k, _ in want]
    assert pairs.input_ids.dtype == pairs.token_type_ids.dtype == dtype
    assert pairs.cu_seqlens[0] == 0 and pairs.cu_seqlens[-1] == pairs.input_ids.size
    assert (np.diff(pairs.cu_seqlens) <= max_length).all()


@ways
@QUICK
@given(corpora, st.integers(0, 2**32))
def test_where_nothing_is_cut_every_token_appears_once_and_in_order(fallback, shapes, seed):
    """But for the random Bs, which are whole sentences of one other document, up to its end or the target."""
    lists = numbered(shapes)
    documents = Documents.from_lists(lists)
    rule = SentencePairing(CLS, SEP, 10**6, 0.0, seed)
    for d, sentences in enumerate(lists):
        tokens = [token for sentence in sentences for token in sentence]
        made = parts(make(rule, documents, [d], fallback=fallback))
        assert [token for a, b, label in made for token in (a if label else a + b)] == tokens
        for _, b, label in made:
            if label:
                other = next(lists[k] for k in range(len(lists)) if b[0] in sum(lists[k], []))
                assert other is not sentences
                assert b in [sum(other[k:], []) for k in range(len(other))]


@ways
def test_a_share_of_the_documents_makes_its_share_of_the_pairs(fallback):
    rng = np.random.default_rng(0)
    documents = Documents.from_lists(numbered([rng.integers(1, 40, rng.integers(1, 30)) for _ in range(60)]))
    rule = SentencePairing(CLS, SEP, 64, seed=3)
    whole = make(rule, documents, epoch=4, fallback=fallback)
    shares = [make(rule, documents, np.arange(w, 60, 7), epoch=4, fallback=fallback) for w in range(7)]
    by_index = {i: pair for share in shares for i, pair in zip(share.indices.tolist(), parts(share), strict=True)}
    assert [by_index[i] for i in whole.indices.tolist()] == parts(whole)
    assert len(by_index) == len(whole.indices)
    assert parts(make(rule, documents, epoch=5, fallback=fallback)) != parts(whole)


def within(found, n, p):
    return abs(found - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1


def test_statistics():
    count = 4000
    documents = Documents.from_lists(numbered([[8] * 24] * count))  # of 24 sentences of 8 tokens
    rule = SentencePairing(CLS, SEP, 32 + 3, 0.0, seed=1)
    pairs = rule(documents)
    made = parts(pairs)
    # B is random in half the pairs, and in every one of which A is a document's last sentence alone.
    alone = [(a[0] - 10) // 8 % 24 == 23 for a, _, _ in made]
    assert all(label for (_, _, label), last in zip(made, alone, strict=True) if last) and sum(alone) > count / 4
    free = [label for (_, _, label), last in zip(made, alone, strict=True) if not last]
    assert within(sum(free), len(free), 0.5)
    # A has 1, 2 or 3 of 4 sentences, each as likely.
    full = [len(a) // 8 for a, b, label in made if not label and len(a + b) == 32]
    assert all(within(full.count(n), len(full), 1 / 3) for n in (1, 2, 3))
    # A random B is of any other document, and begins at any sentence.
    begins = [(b[0] - 10) // 8 for _, b, label in made if label]
    owners = [i >> 24 for i, label in zip(pairs.indices.tolist(), pairs.next_sentence_label, strict=True) if label]
    assert all(begin // 24 != owner for begin, owner in zip(begins, owners, strict=True))
    assert within(sum(begin // 24 < count // 2 for begin in begins), len(begins), 0.5)
    assert all(within(sum(begin % 24 == k for begin in begins), len(begins), 1 / 24) for k in range(24))


def test_short_documents_are_as_many_and_of_any_length():
    count, most = 6000, 61
    documents = Documents.from_lists(numbered([[1] * 64] * count))  # sentences of one token: no target is overshot
    for p in (0.1, 1.0):
        pairs = SentencePairing(CLS, SEP, most + 3, p, seed=2)(documents)
        first = pairs.indices % 2**24 == 0
        targets = np.diff(pairs.cu_seqlens)[first & (pairs.next_sentence_label == 0)] - 3
        assert targets.min() >= 2 and targets.max() == most
        short = targets < most
        assert within(int(short.sum()), len(targets), p * (most - 2) / (most - 1))
        if p == 1.0:
            assert within(int((targets <= 31).sum()), len(targets), 30 / 60)


def test_truncation_takes_from_both_ends_of_the_longer_one():
    documents = Documents.from_lists(numbered([[400], [300]] * 300))
    pairs = SentencePairing(CLS, SEP, 203, 0.0, seed=8)(documents)
    fronts = cut = 0
    for (a, b, label), index in zip(parts(pairs), pairs.indices.tolist(), strict=True):
        assert (len(a), len(b), label) == (100, 100, 1)
        start = int(documents.tokens[documents.sentence_offsets[index >> 24]])
        length = 400 if (index >> 24) % 2 == 0 else 300
        assert a == list(range(a[0], a[0] + 100))
        fronts, cut = fronts + a[0] - start, cut + length - 100
    assert within(fronts, cut, 0.5)


def test_pairs_can_be_masked_the_same_in_any_batch():
    documents = Documents.from_lists(numbered([[5, 6, 7]] * 20))
    pairs = SentencePairing(CLS, SEP, 32)(documents)
    rule = TokenMasking(1000, 3, (CLS, SEP))
    whole = rule(pairs.input_ids, pairs.cu_seqlens, indices=pairs.indices)
    last = slice(pairs.cu_seqlens[-2], pairs.cu_seqlens[-1])
    alone = rule(pairs.input_ids[last], [0, last.stop - last.start], indices=pairs.indices[-1:])
    assert np.array_equal(alone.input_ids, whole.input_ids[last])


def test_empty_sentences_and_documents_are_left_out():
    documents = Documents.from_lists([[[], [5, 6], []], [], [[]], [[7]]])
    assert len(documents) == 2
    assert documents.tokens.tolist() == [5, 6, 7]
    assert documents.sentence_offsets.tolist() == [0, 2, 3]
    assert documents.document_offsets.tolist() == [0, 1, 2]
    assert len(Documents.from_lists([])) == 0


@ways
def test_no_documents_chosen_give_no_pairs(fallback):
    pairs = make(SentencePairing(CLS, SEP), TWO, [], fallback=fallback)
    assert pairs.input_ids.size == pairs.token_type_ids.size == pairs.indices.size == 0
    assert pairs.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Documents([1, 2], [0, 1, 1, 2], [0, 3]), "sentence_offsets must rise by .* 1, but has 1 and then 1"),
        (lambda: Documents([1, 2], [0, 1, 2], [0, 2, 2]), "document_offsets must rise by at least 1"),
        (lambda: Documents([1, 2], [0, 1], [0, 1]), "sentence_offsets must rise from 0 to the 2 tokens, not 0 .. 1"),
        (lambda: Documents([1, 2], [0, 2], [0, 2]), "document_offsets must rise from 0 to the 1 sentences, not 0 .. 2"),
        (lambda: SentencePairing(CLS, SEP, 4), "max_length must be in 5 .. 2\\*\\*31 - 1, not 4"),
        (lambda: SentencePairing(CLS, SEP, 9, -0.1), "short_probability must be in \\[0, 1\\], not -0.1"),
        (lambda: SentencePairing(CLS, -1), "sep_token_id must be in 0 .. 2\\*\\*31 - 1, not -1"),
        (lambda: SentencePairing(CLS, SEP, seed=2**64), "seed must be"),
        (lambda: SentencePairing(CLS, SEP)(ONE), "documents must be 2 or more .* not 1"),
        (lambda: SentencePairing(CLS, SEP)(TWO, [2]), "chosen must be in 0 .. 1, not 2 .. 2"),
        (lambda: SentencePairing(CLS, SEP)(TWO, epoch=-1), "epoch must be in"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
