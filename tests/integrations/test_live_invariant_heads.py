"""accelerate(..., batch_invariant=True) of heads and pipelines: a text's result has the same bits in any batch."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from integrations import families
from integrations.test_live_batch_invariant import pytestmark  # noqa: F401 - the same machines
from integrations.test_live_libraries import TEXTS, tokenizer
from torch import nn

import bert_fast
from bert_fast.layers.fixed_order import ELEMENT_BLOCK, FixedOrder

LENGTHS = (1, 2, 3, 7, 12, 24)
BATCHES = ([0], [5, 0], [0, 5, 2], [3, 4, 1, 0, 2], [1, 2, 3, 4, 5, 0, 5], [5, 0, 1] * 23)
WIDE = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 200, "num_hidden_layers": 1}
OF_TOKENS = ("ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(net, name):
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, families.VOCAB, (1, n), generator=generator) for n in LENGTHS]
    alone = [net(input_ids=row) for row in rows]
    for batch in BATCHES:
        width = max(LENGTHS[i] for i in batch) + len(batch) % 5
        ids, mask = torch.ones(len(batch), width, dtype=torch.int64), torch.zeros(len(batch), width, dtype=torch.int64)
        for b, i in enumerate(batch):
            ids[b, : LENGTHS[i]], mask[b, : LENGTHS[i]] = rows[i][0], 1
        output = net(input_ids=ids, attention_mask=mask)
        for b, i in enumerate(batch):
            for key in alone[i]:
                seen = output[key][b]
                seen = seen[: LENGTHS[i]] if name.endswith(OF_TOKENS) else seen
                assert torch.equal(seen, alone[i][key][0]), (batch, b, key)


CASES = [
    *((f"{family}ForSequenceClassification", {"num_labels": 3}) for family in (
        "Bert", "Roberta", "Electra", "DistilBert", "MPNet", "Albert"
    )),
    ("BertForSequenceClassification", {**WIDE, "num_labels": 1}),
    ("BertForTokenClassification", {**WIDE, "num_labels": 9}),
    ("BertForQuestionAnswering", WIDE),
    ("DistilBertForQuestionAnswering", {}),
    ("ElectraForTokenClassification", {"num_labels": 5}),
    ("RobertaForMaskedLM", {}),
    ("BertForNextSentencePrediction", {}),
]  # fmt: skip


@pytest.mark.parametrize("name, settings", CASES, ids=lambda x: x if isinstance(x, str) else "")
@torch.no_grad()
def test_heads(name, settings, threads, dtype=torch.float32):
    net, given = families.model(name, **settings).to(dtype), families.batch(name)
    want, state = net(**given), {key: x.data_ptr() for key, x in net.state_dict().items()}
    bert_fast.accelerate(net, batch_invariant=True)
    for key, value in net(**given).items():
        torch.testing.assert_close(value, want[key], rtol=0.03, atol=1e-4 if dtype == torch.float32 else 0.1)
    check(net, name)
    assert {key: x.data_ptr() for key, x in net.state_dict().items()} == state


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "ElectraForTokenClassification"])
def test_heads_in_bfloat16(name):
    test_heads(name, {"num_labels": 3}, 1, torch.bfloat16)


@torch.no_grad()
def test_multiple_choice():
    name = "BertForMultipleChoice"
    net = bert_fast.accelerate(families.model(name, **WIDE), batch_invariant=True)
    ids = families.batch(name)["input_ids"]
    whole = net(input_ids=ids).logits
    for b in range(len(ids)):
        assert torch.equal(net(input_ids=ids[b : b + 1]).logits[0], whole[b])


@torch.no_grad()
def test_lora_has_to_be_merged_and_a_head_that_peft_wraps_is_one():
    peft = pytest.importorskip("peft")
    name = "BertForSequenceClassification"
    for targets in (["query", "value"], ["classifier"]):
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        net = peft.get_peft_model(families.model(name, **WIDE), config).eval()
        bert_fast.accelerate(net, batch_invariant=True)
        if targets != ["classifier"]:
            with pytest.raises(RuntimeError, match=r"batch_invariant.*adapters that are not merged"):
                net(**families.batch(name))
            net = bert_fast.accelerate(net.merge_and_unload(), batch_invariant=True)
        check(net, name)


class TestSentenceTransformers:
    @pytest.fixture(autouse=True)
    def _library(self, tmp_path):
        self.library = pytest.importorskip("sentence_transformers")
        self.folder = tmp_path

    def saved(self, name, **settings):
        families.model(name, **settings).save_pretrained(self.folder)
        tokenizer().save_pretrained(self.folder)
        return str(self.folder)

    def pooled(self, pooling="mean", more=(), name="BertModel", **settings):
        from sentence_transformers.models import Pooling, Transformer

        transformer = Transformer(self.saved(name, **settings))
        width = families.model(name, **settings).config.hidden_size
        return self.library.SentenceTransformer(modules=[transformer, Pooling(width, pooling), *more], device="cpu")

    def same_bits(self, encode):
        """``encode(texts, batch_size=...)`` of a text alone, of all, in other orders, repeated."""
        alone = {text: encode([text], batch_size=1)[0] for text in TEXTS}
        for texts in (TEXTS, TEXTS[::-1], TEXTS[2:] + TEXTS[:1], TEXTS[1:2] * 7 + TEXTS * 6):
            for size in (2, 3, 7, 40):
                for text, found in zip(texts, encode(texts, batch_size=size), strict=True):
                    assert (found == alone[text]).all(), (text, size, len(texts))

    @pytest.mark.parametrize("pooling", ["mean", "cls", "max", "weightedmean", "lasttoken", "mean_sqrt_len_tokens"])
    def test_every_pooling(self, pooling):
        net = self.pooled(pooling)
        want = net.encode(TEXTS)
        bert_fast.accelerate(net, batch_invariant=True)
        assert abs(net.encode(TEXTS) - want).max() < 1e-4
        self.same_bits(net.encode)

    def test_dense_normalize_and_what_encode_normalizes(self, threads):
        from sentence_transformers.models import Dense, LayerNorm, Normalize

        more = [LayerNorm(384), Dense(384, 100), Dense(100, 33, activation_function=nn.GELU()), Normalize()]
        net = self.pooled(more=more, **WIDE)
        options = {"truncate_dim": 10, "normalize_embeddings": True}
        want = net.encode(TEXTS, **options)
        bert_fast.accelerate(net, batch_invariant=True)
        self.same_bits(net.encode)
        self.same_bits(pickle.loads(pickle.dumps(net)).encode)
        self.same_bits(lambda texts, batch_size: net.encode(texts, batch_size=batch_size, **options))
        assert abs(net.encode(TEXTS, **options) - want).max() < 1e-4

    def test_in_bfloat16(self):
        net = self.pooled(**WIDE).to(torch.bfloat16)
        want = net.encode(TEXTS)
        bert_fast.accelerate(net, batch_invariant=True)
        assert abs(net.encode(TEXTS) - want).max() < 0.05
        self.same_bits(net.encode)

    @pytest.mark.parametrize("labels", [1, 3])
    def test_cross_encoder(self, labels):
        net = self.library.CrossEncoder(
            self.saved("BertForSequenceClassification", num_labels=labels, **WIDE), device="cpu"
        )
        options = {"apply_softmax": labels == 3}
        pairs = [(text, TEXTS[0]) for text in TEXTS]
        want = net.predict(pairs, **options)
        bert_fast.accelerate(net, batch_invariant=True)
        assert abs(net.predict(pairs, **options) - want).max() < 1e-4
        self.same_bits(lambda texts, **more: net.predict([(text, TEXTS[0]) for text in texts], **options, **more))

    def test_what_cannot_hold(self):
        net = bert_fast.accelerate(self.pooled(), batch_invariant=True)
        with pytest.raises(RuntimeError, match=r"batch_invariant.*precision='int8' takes its ranges from all"):
            net.encode(TEXTS, precision="int8")
        net.tokenizer.padding_side = "left"
        with pytest.raises(RuntimeError, match=r"batch_invariant.*(padding on the left|pad on the right)"):
            net.encode(TEXTS)
        net.tokenizer.padding_side = "right"
        net.add_module("2", nn.Identity())
        with pytest.raises(RuntimeError, match=r"batch_invariant.*Identity may read every place"):
            net.encode(TEXTS)
        bert_fast.restore(net)
        with pytest.raises(ValueError, match=r"batch_invariant.*Identity may read every place; hand over .*'0\.\w+'"):
            bert_fast.accelerate(net, batch_invariant=True)


def held(name="BertForSequenceClassification", **settings):
    return bert_fast.accelerate(families.model(name, **settings), batch_invariant=True)


@torch.no_grad()
def test_what_cannot_hold():
    name = "BertForSequenceClassification"
    net, given = held(), families.batch(name)
    with pytest.raises(RuntimeError, match=r"batch_invariant.*cross_entropy in BertForSeq\w+ .*leave out labels"):
        net(**given, **families.labels(name))
    with pytest.raises(RuntimeError, match=r"batch_invariant.*its own code: output_attentions"):
        net(**given, output_attentions=True)
    net.classifier.register_forward_hook(lambda module, args, output: output - output.mean())
    with pytest.raises(RuntimeError, match=r"batch_invariant.*mean in BertForSequenceClassification is not known"):
        net(**given)
    net = held()
    net.dropout.train()
    net.dropout.p = 0.5
    with pytest.raises(RuntimeError, match=r"batch_invariant.*drops at random"):
        net(**given)
    net.classifier = nn.Sequential(nn.Linear(48, 2))
    with pytest.raises(RuntimeError, match=r"batch_invariant.*Sequential stands in"):
        net(**given)
    with pytest.raises(ValueError, match=r"Sequential stands in .* hand over the encoder inside, 'bert'"):
        bert_fast.accelerate(net, batch_invariant=True)
    with pytest.raises(ValueError, match=r"batch_invariant.*summarises by 'mean'"):
        held("ElectraForMultipleChoice", summary_type="mean")
    net = families.model(name)
    net.forward = net.forward
    with pytest.raises(RuntimeError, match=r"batch_invariant.*the forward of BertForSeq\w+ was replaced"):
        bert_fast.accelerate(net, batch_invariant=True)


class _Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = families.model("BertModel")

    def forward(self, ids):
        return self.bert(ids).last_hidden_state[:, -1]


def test_a_users_own_module_may_read_what_is_not_computed():
    with pytest.raises(ValueError, match=r"batch_invariant.*_Own may read hidden places.*'bert'"):
        bert_fast.accelerate(_Own(), batch_invariant=True)


@torch.no_grad()
def test_left_padding_where_places_are_counted():
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(RuntimeError, match=r"batch_invariant.*padding on the left"):
        held("DistilBertModel")(torch.tensor([[5, 6, 7]]), mask)
    given = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": mask}
    net = families.model("ElectraModel")
    alone = bert_fast.accelerate(net, batch_invariant=True)(torch.tensor([[6, 7]])).last_hidden_state[0]
    assert torch.equal(net(**given, position_ids=torch.tensor([[0, 0, 1]])).last_hidden_state[0, 1:], alone)


@torch.no_grad()
def test_it_is_kept_by_copies_ended_by_accelerating_again_and_leaves_no_trace():
    name = "BertForSequenceClassification"
    net = families.model(name)
    before = {path: m.__dict__.keys() for path, m in net.named_modules()}
    bert_fast.accelerate(bert_fast.accelerate(net), batch_invariant=True)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(RuntimeError, match="leave out labels"):
            twin(**families.batch(name), **families.labels(name))
    bert_fast.accelerate(net)
    net(**families.batch(name), **families.labels(name))
    assert families.encoder_of(net).positions.hidden_positions == "zero" and not families.encoder_of(net).asked
    bert_fast.restore(bert_fast.accelerate(net, batch_invariant=True))
    assert {path: m.__dict__.keys() for path, m in net.named_modules()} == before


class TestFixedOrder:
    """One function at a time, against what it is without."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("shape", [(3, 5), (70, 129), (2, 3, ELEMENT_BLOCK)])
    def test_what_it_computes(self, shape, dtype):
        x = torch.randn(shape).to(dtype)
        weight, bias, scale = (torch.randn(*s, shape[-1]).to(dtype) for s in ((4,), (), ()))
        for function in (
            lambda: F.linear(x, weight), lambda: F.linear(x, weight, bias[:4]), lambda: F.normalize(x, dim=-1),
            lambda: F.layer_norm(x, shape[-1:], scale), lambda: x.softmax(-1), lambda: F.gelu(x, approximate="tanh"),
            lambda: F.softmax(x, -1, dtype=torch.float32), lambda: torch.tanh(x), lambda: x.log_softmax(dim=-1),
            lambda: x.sum(1), lambda: torch.sum(x, dim=(-1,), keepdim=True), lambda: x.sum(1, True, dtype=torch.float),
            lambda: x.max(1).values, lambda: x.amax(-1), lambda: F.dropout(x, 0.5, False), lambda: x**3, lambda: x + x,
        ):  # fmt: skip
            want = function()
            with FixedOrder("a test", strict=True):
                got = function()
            assert got.dtype == want.dtype and got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)

    def test_zeros_beside_do_not_change_a_sum(self):
        x = torch.randn(2, 37, 5)
        with FixedOrder("a test", strict=True):
            sums = [F.pad(x, (0, 0, left, right)).sum(1) for left, right in ((0, 0), (1, 0), (0, 30), (64, 7))]
        assert all(torch.equal(total, sums[0]) for total in sums)

    def test_what_it_refuses(self):
        x = torch.randn(4, 6)
        for function in (
            x.sum, x.mean, x.std, lambda: x.sum(0), lambda: x.max(), lambda: x.max(0), lambda: x.softmax(0),
            lambda: F.normalize(x, dim=0), lambda: x @ x.T, lambda: torch.add(x, x, alpha=2), lambda: x.abs().pow(x),
            lambda: F.layer_norm(x, (4, 6)), lambda: F.dropout(x), lambda: F.mse_loss(x, x), lambda: x.cumsum(1),
        ):  # fmt: skip
            with FixedOrder("a test", strict=True), pytest.raises(RuntimeError, match="a test"):
                function()
            with FixedOrder("a test", strict=False):
                torch.manual_seed(0)
                got = function()
            torch.manual_seed(0)
            for mine, theirs in zip(got, function(), strict=True) if isinstance(got, tuple) else [(got, function())]:
                assert torch.equal(mine, theirs)
