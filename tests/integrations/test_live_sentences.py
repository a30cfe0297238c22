"""What an accelerated SentenceTransformer hands out: the untouched one's numbers, in every way that it can be asked."""

import contextlib
import copy
import pickle
import queue

import pytest
import torch
from integrations.families import encoder_of
from integrations.test_live_libraries import TEXTS, saved
from torch import nn

import bert_fast

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer  # noqa: E402

OUTPUTS = ("sentence_embedding", "token_embeddings", None)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def made(tmp_path):
    def make(name="BertModel", side="right", more=(), pooling="mean"):
        net = library.SentenceTransformer(
            modules=[Transformer(saved(tmp_path, name)), Pooling(48, pooling), *more], device="cpu"
        )
        net.tokenizer.padding_side = side
        return net

    return make


@pytest.fixture
def rows(monkeypatch):
    """How many rows every batch had in the packed encoder."""
    from bert_fast.integrations.bert import BertAdapter

    seen, embed = [], BertAdapter.embed

    def counted(*args):
        x = embed(*args)
        seen.append(x.shape[0])
        return x

    monkeypatch.setattr(BertAdapter, "embed", counted)
    return seen


def same(got, want):
    assert type(got) is type(want)
    if isinstance(want, list):
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            same(mine, theirs)
    elif isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            same(got[key], want[key])
    elif isinstance(want, torch.Tensor) or hasattr(want, "shape"):
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want), **CLOSE)
    else:
        assert got == want


class _Ended(Exception):
    pass


class _Queue(list):
    """What a worker reads its chunks from and writes its results to."""

    put = list.append

    def __init__(self, items=(), end=_Ended):
        super().__init__(items)
        self.end = end

    def get(self):
        if not self:
            raise self.end
        return self.pop(0)


def by_a_worker(net, output_value):
    """The chunk that a worker process would send back: as the library runs one, in this process."""
    options = {"batch_size": 3, "output_value": output_value, "show_progress_bar": False, "normalize_embeddings": False}
    if hasattr(type(net), "_inference"):
        options |= {"prompt": None, "save_to_cpu": True, "truncate_dim": None}
    results = _Queue()
    with contextlib.suppress(_Ended):  # older workers end when there is nothing left
        chunks = _Queue([[0, TEXTS, options]], _Ended if hasattr(type(net), "_inference") else queue.Empty)
        type(net)._multi_process_worker("cpu", net, chunks, results)
    ((number, result),) = results
    assert number == 0
    return result


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["BertModel", "RobertaModel"])
def test_every_output_value_at_every_place(made, rows, name, side):
    net = made(name, side)
    want = [net.encode(TEXTS, batch_size=3, output_value=value) for value in OUTPUTS]
    worked = [by_a_worker(net, value) for value in OUTPUTS]
    singular = net.encode(TEXTS[0], output_value=None)
    bert_fast.accelerate(net)
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        rows.clear()
        got = [each.encode(TEXTS, batch_size=3, output_value=value) for value in OUTPUTS]
        same(got, want)
        packed, *others = (sum(rows[i : i + 2]) for i in (0, 2, 4))
        assert packed < others[0] == others[1]
    same([by_a_worker(net, value) for value in OUTPUTS], worked)
    same(net.encode(TEXTS[0], output_value=None), singular)
    assert not encoder_of(net).reasons


@pytest.mark.parametrize("side", ["right", "left"])
def test_called_as_a_module(made, side):
    net = made(side=side)
    batch = getattr(net, "preprocess", net.tokenize)(TEXTS)
    want = net(dict(batch))
    bert_fast.accelerate(net)
    same(net(dict(batch)), want)
    same(net[0](dict(batch)), {k: v for k, v in want.items() if k != "sentence_embedding"})


def test_whoever_looks_into_the_chain_sees_every_place(made, rows):
    net, seen = made(), []
    net.encode(TEXTS[:2])
    bert_fast.accelerate(net)
    handle = net[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]["token_embeddings"].clone()))
    net.encode(TEXTS[:2])
    handle.remove()
    net.encode(TEXTS[:2])
    want = []
    bert_fast.restore(net)[1].register_forward_pre_hook(
        lambda module, args: want.append(args[0]["token_embeddings"].clone())
    )
    net.encode(TEXTS[:2])
    same(seen, want)
    assert rows[1] < rows[0]


class _Mean(nn.Module):
    def forward(self, features):
        features["sentence_embedding"] = features["token_embeddings"].mean(1)
        return features


def test_a_module_of_the_users_own_behind(made):
    net = made(more=[_Mean()])
    want = net.encode(TEXTS)
    same(bert_fast.accelerate(net).encode(TEXTS), want)
    later = bert_fast.accelerate(made())
    later.append(_Mean()) if hasattr(later, "append") else later.add_module("2", _Mean())
    same(later.encode(TEXTS), want)


def test_a_subclass_with_an_encode_of_its_own(made):
    class Mine(library.SentenceTransformer):
        def encode(self, sentences, output_value="sentence_embedding", **options):
            return [tokens.sum(0) for tokens in super().encode(sentences, output_value="token_embeddings", **options)]

    net = made(side="left")
    net.__class__ = Mine
    want = net.encode(TEXTS)
    same(bert_fast.accelerate(net).encode(TEXTS), want)
    assert "not the library's own" in encoder_of(net).positions.why


def test_every_module_of_the_library_and_what_stays_of_it(made):
    net = made("MPNetModel", more=[Dense(48, 20), Normalize()], pooling="cls")
    want, before = net.encode(TEXTS), {name: dict(m.__dict__) for name, m in net.named_modules()}
    bert_fast.accelerate(bert_fast.accelerate(net))
    same(net.encode(TEXTS, normalize_embeddings=True), want)
    assert encoder_of(net).positions.hidden_positions == "zero"
    bert_fast.restore(net)
    assert {name: m.__dict__.keys() for name, m in net.named_modules()} == {k: v.keys() for k, v in before.items()}


def test_a_router(made):
    router = pytest.importorskip("sentence_transformers.models").Router
    parts = [list(made(pooling=pooling).children()) for pooling in ("mean", "max")]
    net = library.SentenceTransformer(
        modules=[router.for_query_document(query_modules=parts[0], document_modules=parts[1])], device="cpu"
    )

    def every():
        return [net.encode_query(TEXTS), net.encode_document(TEXTS), net.encode(TEXTS, task="query")]

    want = every()
    bert_fast.accelerate(net)
    same(every(), want)
    assert [live.positions.hidden_positions for live in bert_fast.integrations.lives(net)] == ["zero", "zero"]
