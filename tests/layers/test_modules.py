"""The module tree: Hugging Face's names and initialisation, and modules that are called because they must be."""

import copy
import functools

import pytest
import torch
import transformers
from torch import nn
from twins import CLASSES, HEADS, TINY, B, S, batch, config, ours, padding, randomize, twins

import bert_fast

H = TINY["hidden_size"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_names_and_shapes_are_those_of_transformers(name, tied):
    mine, theirs = twins(name, tie_word_embeddings=tied)
    want = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in mine.state_dict().items()} == want
    assert not [n for n, _ in mine.named_buffers()]


@pytest.mark.parametrize("name", CLASSES)
def test_parameter_names_and_their_order_are_those_of_transformers(name):
    """Optimizer states are stored by position."""
    mine, theirs = twins(name)
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize("name", CLASSES)
def test_module_names_that_users_address_are_those_of_transformers(name):
    mine, theirs = twins(name)
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout)
    got = {n: type(m) for n, m in mine.named_modules() if isinstance(m, kinds)}
    assert got == {n: type(m) for n, m in theirs.named_modules() if isinstance(m, kinds)}


def test_initialisation_is_berts():
    torch.manual_seed(0)
    model = bert_fast.BertForPreTraining(config(hidden_size=96, vocab_size=1000, initializer_range=0.05))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            rows = module.weight[1:] if name.endswith("word_embeddings") else module.weight
            assert rows.std().item() == pytest.approx(0.05, rel=0.15), name
            assert abs(rows.mean().item()) < 0.01, name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all()
    assert (model.bert.embeddings.word_embeddings.weight[0] == 0).all(), "the padding row starts at zero"


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_the_decoder_shares_its_weight_and_its_bias(name):
    model = ours(name)
    head = model.cls.predictions
    assert head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert head.bias is head.decoder.bias
    untied = ours(name, tie_word_embeddings=False)
    assert untied.cls.predictions.decoder.weight is not untied.bert.embeddings.word_embeddings.weight


def test_ties_survive_copies_moves_and_loading():
    model = ours("BertForMaskedLM")
    for changed in (copy.deepcopy(model), copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model).half().float()):
        assert changed.cls.predictions.decoder.weight is changed.bert.embeddings.word_embeddings.weight
        assert changed.cls.predictions.bias is changed.cls.predictions.decoder.bias


def test_padding_idx_row_gets_zero_gradient_from_the_words():
    """The tied decoder still reaches it; so does nothing else, and in no other place."""
    arguments = batch(padding("right"))
    arguments["input_ids"][:, 3] = 0
    for name, reached in (("BertModel", False), ("BertForMaskedLM", True)):
        mine, theirs = twins(name)
        for model in (mine, theirs):
            output = model(**arguments)[0]
            (output * torch.linspace(-1, 1, output.shape[-1]))[padding("right").bool()].sum().backward()
        got, want = (m.get_input_embeddings().weight.grad for m in (mine, theirs))
        assert (got[0] != 0).any() == reached
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_padding_idx_none_gives_every_row_its_gradient():
    model = ours(pad_token_id=None)
    arguments = batch()
    arguments["input_ids"][:, 3] = 0
    (model(**arguments)[0] * torch.linspace(-1, 1, H)).sum().backward()
    assert (model.embeddings.word_embeddings.weight.grad[0] != 0).any()


# Modules with hooks, or swapped for something else, are called


def norms(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}


@pytest.mark.parametrize(
    "hook, grad",
    [
        ("register_forward_hook", True),
        ("register_forward_hook", False),
        ("register_forward_pre_hook", True),
        ("register_forward_pre_hook", False),
        ("register_full_backward_hook", True),
    ],
)
def test_a_hook_on_any_layer_norm_is_called_once(hook, grad):
    for name in norms(ours("BertForMaskedLM")):
        model = ours("BertForMaskedLM")
        calls = []
        getattr(model.get_submodule(name), hook)(lambda module, *_, calls=calls: calls.append(module))
        with torch.set_grad_enabled(grad):
            output = model(**batch(padding("holes"))).logits
            if grad:
                output.sum().backward()
        assert len(calls) == 1, name
        assert torch.allclose(output, ours("BertForMaskedLM")(**batch(padding("holes"))).logits, rtol=0, atol=2e-5)


class RootMeanSquareNorm(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.scale = weight

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_swapped_layer_norm_is_what_runs(grad):
    """As adapters that tune LayerNorm swap it; the twin of transformers is changed the same way."""
    for name in norms(ours("BertForMaskedLM")):
        mine, theirs = twins("BertForMaskedLM")
        for model in (mine, theirs):
            parent, _, leaf = name.rpartition(".")
            swapped = RootMeanSquareNorm(model.get_submodule(name).weight)
            setattr(model.get_submodule(parent), leaf, swapped)
        with torch.set_grad_enabled(grad):
            got, want = (m(**batch(padding("right"))).logits for m in (mine, theirs))
        assert torch.allclose(got[padding("right").bool()], want[padding("right").bool()], rtol=0, atol=1e-4), name


def test_a_layer_norm_without_bias_or_weight_runs():
    mine, theirs = twins()
    for model in (mine, theirs):
        model.encoder.layer[0].output.LayerNorm = nn.LayerNorm(H, elementwise_affine=False)
        model.encoder.layer[1].attention.output.LayerNorm = nn.LayerNorm(H, bias=False)
        model.embeddings.LayerNorm = nn.LayerNorm(H, bias=False)
    assert torch.allclose(mine(**batch())[0], theirs(**batch())[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings", "token_type_embeddings"])
@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward"])
def test_a_hook_on_an_embedding_table_is_called(table, hook):
    model, calls = ours(), []
    module = getattr(model.embeddings, table)
    getattr(module, f"register_{hook}_hook")(lambda module, *_: calls.append(module))
    model(**batch(padding("holes")))[0].sum().backward()
    assert len(calls) == 1


def noisy(scale):
    return lambda module, args, output: output + scale


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings", "token_type_embeddings"])
def test_what_a_hook_on_an_embedding_table_returns_counts(table):
    mine, theirs = twins()
    shift = torch.linspace(-1, 1, H)
    for model in (mine, theirs):
        getattr(model.embeddings, table).register_forward_hook(noisy(shift))
    assert torch.allclose(mine(**batch())[0], theirs(**batch())[0], rtol=0, atol=1e-5)


class ScaledEmbedding(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 3


CHANGED_TABLES = {
    "subclass": lambda e, t: setattr(e, t, scaled(getattr(e, t))),
    "padding_idx": lambda e, t: setattr(getattr(e, t), "padding_idx", 1),
    "max_norm": lambda e, t: setattr(getattr(e, t), "max_norm", 0.5),
    "scale_grad_by_freq": lambda e, t: setattr(getattr(e, t), "scale_grad_by_freq", True),
    "sparse": lambda e, t: setattr(getattr(e, t), "sparse", True),
}


def scaled(table):
    new = ScaledEmbedding(*table.weight.shape)
    new.load_state_dict(table.state_dict())
    return new


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings", "token_type_embeddings"])
@pytest.mark.parametrize("change", CHANGED_TABLES)
def test_a_changed_embedding_table_does_what_it_does_in_transformers(change, table):
    mine, theirs = twins()
    arguments = {**batch(), "position_ids": torch.arange(S).repeat(B, 1)}
    for model in (mine, theirs):
        CHANGED_TABLES[change](model.embeddings, table)
        (model(**arguments)[0] * torch.linspace(-1, 1, H)).sum().backward()
    weights = [getattr(m.embeddings, table).weight for m in (mine, theirs)]
    assert weights[0].grad.is_sparse == weights[1].grad.is_sparse == (change == "sparse")
    got, want = (w.grad.to_dense() for w in weights)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4)
    assert torch.allclose(*weights, rtol=0, atol=1e-6)


# Dropout


def dropout_model(name="BertModel", **changes):
    return randomize(getattr(bert_fast, name)(config(**changes)))


DROPOUTS = [n for n, m in dropout_model("BertForSequenceClassification").named_modules() if isinstance(m, nn.Dropout)]


def test_dropout_of_probability_0_and_eval_are_exact():
    with_dropout = dropout_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).eval()
    without = dropout_model()
    arguments = batch(padding("holes"))
    expected = without.eval()(**arguments)[0]
    assert torch.equal(with_dropout(**arguments)[0], expected)
    assert torch.equal(without.train()(**arguments)[0], expected)


@pytest.mark.parametrize("where", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("attentions", [False, True], ids=["attention", "with_probabilities"])
def test_dropout_same_seed_same_result_and_another_seed_another(where, attentions):
    model = dropout_model(**{where: 0.5}).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(model(**batch(padding("holes")), output_attentions=attentions)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-2)


@pytest.mark.parametrize("where", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_backward_regenerates_the_same_mask(where):
    """The gradient is that of the very function whose value came out: finite differences agree, seed by seed."""
    model = dropout_model(**{where: 0.4}).double().train()
    mask = padding("holes")
    x = torch.randn(B, S, H, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    weights = torch.randn(B, S, H, dtype=torch.float64)

    def value(at):
        torch.manual_seed(7)
        return (model(inputs_embeds=at, attention_mask=mask)[0] * weights).sum()

    (gradient,) = torch.autograd.grad(value(x), x)
    with torch.no_grad():
        difference = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    assert torch.allclose((gradient * direction).sum(), difference, rtol=1e-5)


def test_dropout_keeps_the_mean():
    """Kept values are scaled by 1 / (1 - p): averaged over masks, the embeddings' output is that of eval."""
    model = dropout_model(hidden_dropout_prob=0.3, num_hidden_layers=0)
    ids = torch.arange(20).repeat(200, 1)
    expected = model.eval()(ids[:1])[0][0]
    mean = model.train()(ids)[0].mean(0)
    assert (mean - expected).abs().mean() < 0.1
    assert ((model(ids)[0] == 0).float().mean() - 0.3).abs() < 0.01


def test_monte_carlo_dropout_by_training_the_dropouts_alone():
    """Users put only the dropouts of an eval model into training mode, to sample its predictions."""
    model = dropout_model(hidden_dropout_prob=0.3).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    for module in (model.embeddings, model.encoder.layer[0].output):
        module.dropout.eval()
    with torch.no_grad():
        first, second = (model(**batch(padding("holes")))[0] for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("site", DROPOUTS)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_every_dropout_drops_by_itself(grad, site):
    model = dropout_model("BertForSequenceClassification", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    arguments = batch(padding("holes"))
    expected = model.eval()(**arguments)[0]
    module = model.get_submodule(site)
    (model.get_submodule(site.rpartition(".")[0]) if site.endswith("self.dropout") else module).train()
    with torch.set_grad_enabled(grad):
        assert not torch.allclose(model(**arguments)[0], expected, atol=1e-3)
    module.p = 0.0
    assert torch.allclose(model(**arguments)[0], expected, rtol=0, atol=1e-5)


def test_every_dropout_draws_its_own_mask(monkeypatch):
    """Kernels draw from one seed and the place: two places that shared a number would drop the same elements."""
    from bert_fast import ops

    sites = []

    def spy(op, *args, **options):
        sites.append(options["site"])
        return op(*args, **options)

    for name in ("attention", "dropout_add_layer_norm"):
        monkeypatch.setattr(ops, name, functools.partial(spy, getattr(ops, name)))
    ours(num_hidden_layers=3).train()(**batch(padding("holes")))
    assert len(sites) == 9
    assert len(set(sites)) == 9


def test_a_swapped_dropout_is_what_runs():
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    mine, theirs = twins()
    for model in (mine, theirs):
        for module in model.modules():
            if isinstance(getattr(module, "LayerNorm", None), nn.LayerNorm):
                module.dropout = Half()
    assert torch.allclose(mine(**batch())[0], theirs(**batch())[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_classifier_dropout_of_the_config(name):
    assert ours(name, classifier_dropout=0.25).dropout.p == 0.25
    assert ours(name, hidden_dropout_prob=0.125).dropout.p == 0.125
    assert ours(name, hidden_dropout_prob=0.125, classifier_dropout=0.0).dropout.p == 0


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="hidden_act must be one of .* not 'swoosh'"):
        ours(hidden_act="swoosh")


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"])
def test_activations_are_those_of_transformers(name):
    from transformers.activations import ACT2FN

    from bert_fast.layers.activations import activation_function

    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    assert torch.allclose(activation_function(name)(x), ACT2FN[name](x), rtol=0, atol=1e-7)


def test_the_formula_of_googles_code_is_tanh_and_the_config_decides():
    """Google's gelu: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    from bert_fast.layers.activations import activation_function

    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    google = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    exact = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    assert torch.allclose(activation_function("gelu_new")(x), google, rtol=0, atol=1e-12)
    assert torch.allclose(activation_function("gelu")(x), exact, rtol=0, atol=1e-12)
    assert (google - exact).abs().max() > 1e-4


# Quantised layers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamically_quantised_layers_run():
    quantize_dynamic = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    for name in HEADS:
        if name == "BertForMultipleChoice":
            continue
        model = ours(name)
        with torch.no_grad():
            expected = model(**batch(padding("right")))[0]
            quantised = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
            output = quantised(**batch(padding("right")))[0]
        visible = output[padding("right").bool()] if output.shape[:2] == (B, S) else output
        wanted = expected[padding("right").bool()] if output.shape[:2] == (B, S) else expected
        assert 0 < (visible - wanted).abs().max() < 1.5, name


def test_a_transformers_config_dictionary_makes_the_same_model():
    theirs = transformers.BertConfig(**TINY)
    mine = bert_fast.BertModel(bert_fast.BertConfig(**theirs.to_dict()))
    mine.load_state_dict(transformers.BertModel(theirs).state_dict())
