"""Pre-training data: from raw documents to masked batches, the same for any parts' order, workers, ranks and resume."""

import json
import os
import pickle
import time
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch

from bert_fast import BertConfig, BertForMaskedLM, BertForPreTraining, Tokenizer
from bert_fast.rows import InputError
from bert_fast.tokenizer.files import BERT_TOKENS, wordpiece
from bert_fast.training import TokenMasking
from bert_fast.training.data import BatchPlan, Corpus, Example, MaskingCollator, PackedLoader, PretrainingData
from bert_fast.training.data import corpus as corpus_module

WORDS = [f"w{i}" for i in range(90)]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {token: i for i, token in enumerate([*BERT_TOKENS.values(), *WORDS, "##x"])}
    return Tokenizer(wordpiece(vocabulary, BERT_TOKENS, lowercase=True), BERT_TOKENS, 8)


def documents(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(rng.integers(1, 12))] for _ in range(count)
    ]


def text_of(docs):
    return "\n\n".join("\n".join(doc) for doc in docs) + "\n"


def arrays(corpus):
    found = corpus.documents
    return [x.tolist() for x in (found.tokens, found.sentence_offsets, found.document_offsets)]


def loader(data, *, batch_size=8, collate=None, **options):
    return PackedLoader(
        data, BatchPlan([], batch_size=batch_size, shuffle=True, seed=2), collate or data.collator, **options
    )


def sequences(batch):
    """Each sequence of a batch: (ids, labels, types, next-sentence label)."""
    packed = batch["input_ids"]
    cuts = packed.cu_seqlens[1:-1].tolist()
    columns = [packed.input_ids, batch["labels"]]
    columns += [packed.token_type_ids] if packed.token_type_ids is not None else []
    rows = zip(*(np.split(c.numpy(), cuts) for c in columns), strict=True)
    following = batch.get("next_sentence_label", torch.zeros(len(cuts) + 1)).tolist()
    return [(tuple(tuple(x.tolist()) for x in row), label) for row, label in zip(rows, following, strict=True)]


def test_a_corpus_is_the_same_from_any_source(tokenizer, tmp_path):
    docs = documents()
    (tmp_path / "a.txt").write_text(text_of(docs) + "\n \n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "\n".join(d)}) + "\n" for d in docs))
    (tmp_path / "b.txt").write_text(text_of(docs[:25]))
    (tmp_path / "c.txt").write_text(text_of(docs[25:]))
    expected = arrays(Corpus(docs, tokenizer))
    ids = [[tokenizer.backend.encode(s, add_special_tokens=False).ids for s in doc] for doc in docs]
    assert expected[0] == [i for doc in ids for s in doc for i in s], "sentences longer than the model are not cut"
    assert expected[1] == np.cumsum([0] + [len(s) for doc in ids for s in doc]).tolist()
    assert expected[2] == np.cumsum([0] + [len(doc) for doc in docs]).tolist()
    with mock.patch.object(corpus_module, "_SENTENCES", 7):
        for source in (
            tmp_path / "a.txt",
            str(tmp_path / "a.jsonl"),
            [tmp_path / "b.txt", tmp_path / "c.txt"],
            [str(tmp_path / "b.txt"), str(tmp_path / "c.txt")],
            iter(docs),
            ["\n".join(d) for d in docs],
            [{"text": "\n".join(d)} for d in docs],
        ):
            assert arrays(Corpus(source, tokenizer)) == expected


def test_sentences_and_documents_without_tokens_are_left_out(tokenizer):
    corpus = Corpus([["w1", "", " "], [], [" "], ["w2 w3"]], tokenizer)
    assert arrays(corpus)[1:] == [[0, 1, 3], [0, 1, 2]]
    for nothing in ([], [[]], [[" "]]):
        with pytest.raises(InputError, match="the documents: there are no tokens in it"):
            Corpus(nothing, tokenizer)
    for bad, message in [
        ([3], "document 1: a document is a text, a list of sentences or a row with one, not 3"),
        ([["w1"], [4]], "document 2: a document is"),
        ([{"body": "x"}], "document 1: no field 'text'; there are 'body'"),
        ({"train": [], "test": []}, "documents cannot be a dict: give one of train, test"),
    ]:
        with pytest.raises(InputError, match=message):
            Corpus(bad, tokenizer)


def test_what_is_tokenized_is_found_again_by_its_content(tokenizer, tmp_path):
    docs, cache = documents(), tmp_path / "cache"
    (tmp_path / "a.txt").write_text(text_of(docs))
    first = Corpus(tmp_path / "a.txt", tokenizer, cache=cache)
    tokenizer.encode_batch(["w1"], max_length=5)  # a call's truncation is not what the tokenizer is
    (tmp_path / "moved.txt").write_text(text_of(docs))
    with mock.patch.object(corpus_module, "_tokenize", side_effect=AssertionError("tokenized again")):
        assert arrays(Corpus(tmp_path / "moved.txt", tokenizer, cache=cache)) == arrays(first)
    listed = Corpus(docs, tokenizer, cache=cache)
    with mock.patch.object(corpus_module, "_tokenize", side_effect=AssertionError("tokenized again")):
        assert arrays(Corpus(docs, tokenizer, cache=cache)) == arrays(listed) == arrays(first)
    (tmp_path / "a.txt").write_text(text_of(docs).replace("w1 ", "w2 ", 1))
    assert arrays(Corpus(tmp_path / "a.txt", tokenizer, cache=cache)) != arrays(first)
    cased = Tokenizer(wordpiece(tokenizer.get_vocab(), BERT_TOKENS, lowercase=False), BERT_TOKENS)
    Corpus(tmp_path / "a.txt", cased, cache=cache)
    assert len(list(cache.iterdir())) == 4


def test_bad_rows_of_files_are_errors_or_left_out(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "w1 w2"}\n{"text": 3}\n{"text": "w3"}\n')
    with pytest.raises(InputError, match="a.jsonl, line 2: a document is a text"):
        Corpus(tmp_path / "a.jsonl", tokenizer)
    with pytest.warns(UserWarning, match="skipped 1 bad rows; the first: .*a.jsonl, line 2"):
        corpus = Corpus(tmp_path / "a.jsonl", tokenizer, on_bad_row="skip")
    assert arrays(corpus)[1:] == [[0, 2, 3], [0, 1, 2]]


def test_a_corpus_is_complete_or_absent(tokenizer, tmp_path):
    def failing():
        yield ["w1 w2"] * 5000
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Corpus(failing(), tokenizer, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    corpus = Corpus(documents(), tokenizer)
    folder = corpus.path.parent
    assert folder.is_dir()
    del corpus
    assert not folder.exists(), "a temporary corpus goes with its object"


def test_what_a_killed_process_left_is_removed_in_time(tokenizer, tmp_path):
    docs = documents()
    name = Corpus(docs, tokenizer, cache=tmp_path / "elsewhere").path.name
    for kind, age in (("old", 4000), ("new", 0)):
        left = tmp_path / f".{name}.{kind}.tmp"
        left.mkdir()
        (left / "tokens.bin").write_bytes(b"1234")
        for path in (left, left / "tokens.bin"):
            os.utime(path, times=(time.time() - age,) * 2)
    Corpus(docs, tokenizer, cache=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", name, f".{name}.new.tmp"}


def test_another_process_that_was_quicker_is_left_alone(tokenizer, tmp_path):
    docs, tokenize = documents(), corpus_module._tokenize

    def slow(sentences, tokenizer, folder):
        count = tokenize(sentences, tokenizer, folder)
        with mock.patch.object(corpus_module, "_tokenize", tokenize):
            Corpus(docs, tokenizer, cache=tmp_path)  # meanwhile, elsewhere
        return count

    with mock.patch.object(corpus_module, "_tokenize", slow):
        corpus = Corpus(docs, tokenizer, cache=tmp_path)
    assert arrays(corpus) == arrays(Corpus(docs, tokenizer))
    assert [path.name for path in tmp_path.iterdir()] == [corpus.path.name]


def test_a_corpus_goes_to_another_process_as_its_path(tokenizer, tmp_path):
    corpus = Corpus(documents(400), tokenizer, cache=tmp_path)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 500
    assert arrays(pickle.loads(pickled)) == arrays(corpus)
    part = PretrainingData(corpus, tokenizer, seq_length=24, packed_windows=True).part(0, 0)
    ours, theirs = (p.take(np.arange(5)) for p in (part, pickle.loads(pickle.dumps(part))))
    assert [e.input_ids.tolist() for e in ours] == [e.input_ids.tolist() for e in theirs]


WAYS = {
    "pairs": {},
    "segments": {"nsp": False},
    "windows of pairs": {"packed_windows": True, "seq_length": 40},
    "windows of segments": {"nsp": False, "packed_windows": True, "seq_length": 33},
    "parts": {"part_tokens": 300},
    "parts of segments in windows": {"part_tokens": 300, "nsp": False, "packed_windows": True, "seq_length": 33},
}


@pytest.mark.parametrize("way", WAYS)
def test_batches_hold_what_the_rules_make_of_the_documents(tokenizer, way):
    options = {"seq_length": 24, "seed": 5} | WAYS[way]
    data = PretrainingData(documents(), tokenizer, **options)
    batches = list(loader(data))
    assert (data.part_count(0) > 3) == ("part" in way)
    found = sorted(s for batch in batches for s in sequences(batch))
    documents_, epoch = data.corpus.documents, 0
    if data.nsp:
        pairs = data.pairing(documents_, epoch=epoch)
        ids, cu, numbers = pairs.input_ids, pairs.cu_seqlens, pairs.indices
        types, following = pairs.token_type_ids, pairs.next_sentence_label.tolist()
    else:
        bounds = documents_.sentence_offsets[documents_.document_offsets].tolist()
        most, rows, numbers = data.seq_length - 2, [], []
        for d, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            for k, first in enumerate(range(begin, end, most)):
                tokens = documents_.tokens[first : min(first + most, end)].tolist()
                rows.append([tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id])
                numbers.append(d * 2**24 + k)
        ids, cu = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
        types, following = None, [0] * len(rows)
    masked = TokenMasking.for_tokenizer(tokenizer, seed=5)(ids, cu, epoch=epoch, indices=numbers)
    columns = [masked.input_ids, masked.labels, *([] if types is None else [types])]
    rows = zip(*(np.split(c, cu[1:-1]) for c in columns), strict=True)
    expected = [(tuple(tuple(x.tolist()) for x in row), k) for row, k in zip(rows, following, strict=True)]
    assert found == sorted(expected)
    for batch in batches:
        assert batch.label_counts["labels"] == int((batch["labels"] != -100).sum())
        assert batch["input_ids"].max_seqlen <= data.seq_length
        if data.packed_windows:
            assert batch.tokens <= 8 * data.seq_length
    if data.packed_windows and data.part_count(0) == 1:
        full = [batch.tokens / (8 * data.seq_length) for batch in batches[:-1]]
        assert np.mean(full) > 0.9


@pytest.mark.parametrize("way", ["pairs", "parts of segments in windows", "parts"])
def test_workers_ranks_and_resuming_change_nothing(tokenizer, way):
    data = PretrainingData(documents(), tokenizer, **({"seq_length": 24} | WAYS[way]))

    def made(load, epochs):
        return [sequences(batch) for _ in range(epochs) for batch in load]

    whole = made(loader(data), 2)
    assert made(loader(data, num_workers=1), 2) == whole
    first = len(loader(data))
    assert sorted(sum(whole[:first], [])) != sorted(sum(whole[first:], [])), "every epoch masks anew"
    for stop in (1, first - 1, first, first + 2):
        load = loader(data)
        done = []
        while len(done) < stop:
            for batch in load:
                done.append(sequences(batch))
                if len(done) == stop:
                    break
        again = loader(PretrainingData(data.corpus, tokenizer, **({"seq_length": 24} | WAYS[way])))
        again.load_state_dict(json.loads(json.dumps(load.state_dict())))
        while again.epoch < 2:
            done += [sequences(batch) for batch in again]
        assert done == whole
    with pytest.raises(ValueError, match="of another plan or other examples"):
        loader(PretrainingData(data.corpus, tokenizer, seq_length=25)).load_state_dict(loader(data).state_dict())
    shares = [list(loader(data, rank=rank, world_size=3)) for rank in range(3)]
    for batch, *parts in zip(whole[:first], *shares, strict=True):
        assert sorted(batch) == sorted(sum((sequences(part) for part in parts if not part.filler), []))


def test_models_take_the_batches(tokenizer):
    config = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "max_position_embeddings": 64}  # fmt: skip
    for kind, options in [(BertForPreTraining, {}), (BertForMaskedLM, {"nsp": False, "packed_windows": True})]:
        model = kind(BertConfig(**config)).eval()
        data = PretrainingData(documents(), tokenizer, seq_length=32, **options)
        batch = next(iter(loader(data)))
        loss = model(**batch, return_logits=False).loss
        loss.backward()
        if not data.packed_windows:
            padded = MaskingCollator(data.masking, padded=True)
            again = next(iter(loader(data, collate=padded)))
            assert again["input_ids"].shape == again["labels"].shape
            assert torch.allclose(model(**again).loss, loss, atol=1e-5)


def test_memory_does_not_grow_with_the_corpus(tokenizer):
    def many(count):
        for k in range(count):
            yield [f"w{k % 90} w{s} w3 w4 w5 w6 w7 w8 w9 w10 w11 w12" for s in range(20)]

    def peaks(count):
        tracemalloc.start()
        try:
            corpus = Corpus(many(count), tokenizer)
            made = tracemalloc.get_traced_memory()[1]
            data = PretrainingData(corpus, tokenizer, seq_length=64, part_tokens=12_000)
            tracemalloc.reset_peak()
            assert sum(1 for _ in loader(data)) > count // 4
            return corpus.token_count * 4, made, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with mock.patch.object(corpus_module, "_SENTENCES", 256):
        peaks(50)  # whatever is imported or kept at first use
        small, large = peaks(200), peaks(800)
    assert large[0] - small[0] == 576_000, "bytes of tokens more"
    for before, after in zip(small[1:], large[1:], strict=True):
        assert after - before < 100_000, f"{after - before:,} bytes more in memory"


def test_arguments_are_checked(tokenizer):
    with pytest.raises(ValueError, match="pairs of sentences need two documents or more"):
        PretrainingData(documents(1), tokenizer)
    PretrainingData(documents(1), tokenizer, nsp=False)
    with pytest.raises(ValueError, match="seq_length must be at least 5, not 4"):
        PretrainingData(documents(), tokenizer, seq_length=4)
    cased = Tokenizer(wordpiece(tokenizer.get_vocab(), BERT_TOKENS, lowercase=False), BERT_TOKENS)
    with pytest.raises(ValueError, match="the corpus was made with another tokenizer"):
        PretrainingData(Corpus(documents(), cased), tokenizer)
    masking = TokenMasking.for_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="without numbers cannot be masked"):
        MaskingCollator(masking)([Example([5, 6])])
    window = Example([5, 6], lengths=(1, 1), numbers=np.array([0, 1]))
    with pytest.raises(ValueError, match="windows are for packed batches"):
        MaskingCollator(masking, padded=True)([window])
