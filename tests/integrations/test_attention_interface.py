"""attn_implementation="bert_fast": encoders of transformers on our attention op, beside their own "eager"."""

import copy

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import backend
from bert_fast.integrations import register_attention
from bert_fast.integrations.attention_interface import _keys_of, additive_mask, attend
from bert_fast.ops.attention_host import host_attention_reason

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "AttentionInterface"):
    pytest.skip("this transformers has no AttentionInterface", allow_module_level=True)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 1}
B, S = 3, 11


@pytest.fixture(autouse=True, scope="module")
def registered():
    register_attention()
    register_attention()


def text_model(kind):
    names = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}
    if not getattr(transformers, f"{names[kind]}PreTrainedModel")._supports_attention_backend:
        pytest.skip(f"{names[kind]} of this transformers computes attention by itself")
    extra = {"local_attention": 6, "num_hidden_layers": 3} if kind == "modernbert" else {}
    config = getattr(transformers, f"{names[kind]}Config")(**{**TEXT, **extra})
    return getattr(transformers, f"{names[kind]}Model")(config)


def twins(model):
    """The model on "eager", the same on "bert_fast", and a float64 one on "sdpa": some eager softmaxes are float32."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter[0].eq(1).all() else 0.0, std=0.2)
    ours, truth = copy.deepcopy(model), copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    ours.set_attn_implementation("bert_fast")
    return [m.eval() for m in (model, ours, truth)]


def padding(kind):
    mask = torch.ones(B, S, dtype=torch.int64)
    if kind == "right":
        mask[1, 6:] = 0
    elif kind == "left":
        mask[1, :5] = 0
    elif kind == "holes":
        mask[0, 3] = mask[2, 5:7] = 0
    return mask if kind in ("full", "right", "left", "holes") else None


@pytest.mark.parametrize("mask", ["none", "full", "right", "left", "holes", "square"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_text_encoders_agree_with_eager_and_so_do_their_gradients(kind, mask):
    torch.manual_seed(0)
    models = twins(text_model(kind))
    if mask == "square":
        seen = (torch.rand(B, 1, S, S) > 0.4) | torch.eye(S, dtype=torch.bool)
        masks = [torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)] * 2
        masks.append(torch.zeros(seen.shape).double().masked_fill(~seen, torch.finfo(torch.float64).min))
    else:
        masks = [padding(mask)] * 3
    ids, weight = torch.randint(2, 60, (B, S)), torch.randn(B, S, 32)
    # A hidden place that sees no key is 0 here and a mean of hidden keys there: nothing reads it.
    read = torch.ones(B, S).bool() if padding(mask) is None else padding(mask).bool()
    hidden, grads = [], []
    for model, given in zip(models, masks, strict=True):
        if (kind, mask) == ("modernbert", "square"):
            given = {"full_attention": given, "sliding_attention": given}
        x = model(input_ids=ids, attention_mask=given).last_hidden_state
        (x * weight)[read].sum().backward()
        hidden.append(x.detach()[read])
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert "transformers attention" in backend.decisions()
    assert backend.decisions()["transformers attention"][0] == "bert_fast"
    assert_close_to_truth(hidden[1], hidden[0], hidden[2], torch.float32, k=48)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[2].items():
        if not name.endswith("key.bias"):  # whose gradient is 0 but for rounding
            assert_close_to_truth(grads[1][name], grads[0][name], grad, torch.float32, k=48, name=name)


def test_inference_runs_on_the_host_kernel_and_agrees():
    torch.manual_seed(0)
    eager, ours, truth = twins(text_model("bert"))
    ids, mask = torch.randint(2, 60, (B, S)), padding("right")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            x, y, z = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (ours, eager, truth))
        assert_close_to_truth(x, y, z, torch.float32, k=48)
        if host_attention_reason() is None:
            assert backend.decisions()["attention"][0] == "extension"
    # What inference mode kept for batches of this size must not be in the way of gradients.
    ours(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()


def test_an_encoder_of_images():
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4)
    eager, ours, truth = twins(transformers.ViTModel(config))
    pixels = torch.randn(2, 3, 16, 16)
    x, y = (m(pixels).last_hidden_state for m in (ours, eager))
    assert_close_to_truth(x, y, truth(pixels.double()).last_hidden_state, torch.float32, k=48)
    assert backend.decisions()["transformers attention"][0] == "bert_fast"


def test_a_decoder_runs_as_sdpa_with_the_reason():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1)
    eager, ours, truth = twins(transformers.LlamaModel(config))
    ids, mask = torch.randint(2, 60, (B, S)), padding("left")
    with pytest.warns(RuntimeWarning, match="causal"):
        x = ours(input_ids=ids, attention_mask=mask).last_hidden_state
    y, z = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (eager, truth))
    real = mask.bool()
    assert_close_to_truth(x[real], y[real], z[real], torch.float32, k=48)
    assert backend.decisions()["transformers attention"] == ("sdpa", {"bert_fast": ["the attention is causal"]})


def test_a_model_with_attention_of_its_own_still_gets_a_mask_that_it_can_add():
    config = transformers.MPNetConfig(**TEXT)
    eager, ours, _ = twins(transformers.MPNetModel(config))
    ids, mask = torch.randint(2, 60, (B, S)), padding("right")
    with torch.no_grad():
        x, y = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (ours, eager))
    assert torch.equal(x, y)


def bidirectional():
    """What transformers tells a mask function of a batch of 2 by 5 where only padding is hidden."""
    masking_utils = pytest.importorskip("transformers.masking_utils")
    if not hasattr(masking_utils, "bidirectional_mask_function"):
        pytest.skip("encoders of this transformers make their masks themselves")
    return {
        "batch_size": 2,
        "q_length": 5,
        "kv_length": 5,
        "mask_function": masking_utils.bidirectional_mask_function,
    }


class Layer(torch.nn.Module):
    is_causal = False


def inputs(n=2, s=5, d=8, heads=None):
    return torch.randn(2, n, s, d), *(torch.randn(2, heads or n, s, d) for _ in range(2))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "head_mask"])
def test_what_changes_the_probabilities_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=name):
        attend(Layer(), *inputs(), None, **{name: torch.ones(2)})
    layer = Layer()
    layer.sinks = torch.zeros(2)
    with pytest.raises(ValueError, match="sinks"):
        attend(layer, *inputs(), None)


def test_other_keys_than_queries_run_as_sdpa_with_the_reason():
    layer, (q, k, v) = Layer(), inputs(n=4, heads=2)
    layer.num_key_value_groups = 2
    with pytest.warns(RuntimeWarning, match="2 key heads for 4 query heads"):
        out, _ = attend(layer, q, k, v, None)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, want)
    q, k, v = inputs()
    with pytest.warns(RuntimeWarning, match="5 keys for 2 queries"):
        assert attend(Layer(), q[:, :, :2], k, v, None)[0].shape == (2, 2, 2, 8)


def test_scaling_and_a_position_bias_with_its_gradient():
    q, k, v = inputs()
    bias = torch.randn(1, 2, 5, 5, requires_grad=True)
    mask = torch.zeros(2, 1, 1, 5)
    mask[0, ..., 3:] = torch.finfo(torch.float32).min
    out, _ = attend(Layer(), q, k, v, mask, scaling=0.7, position_bias=bias)
    probs = torch.softmax(q.double() @ k.double().mT * 0.7 + bias.double() + mask.double(), -1)
    want = (probs @ v.double()).transpose(1, 2)
    torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-5)
    got = torch.autograd.grad(out.square().sum(), bias)[0]
    torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), bias)[0], rtol=1e-4, atol=1e-5)


def test_dropout_drops_the_probabilities_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, _ = inputs(s=64)
    v = torch.ones_like(q)
    out, _ = attend(Layer(), q, k, v, None, dropout=0.5)
    assert 0.9 < out.mean() < 1.1 and out.std() > 0.05
    torch.testing.assert_close(attend(Layer(), q, k, v, None, dropout=0.0)[0], torch.ones_like(q.transpose(1, 2)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_mask_that_was_written_to_is_read_anew(device):
    """What a mask hides is remembered beside it, and must not outlive a change of it."""
    given = bidirectional()
    visible = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], device=device).bool()
    mask = additive_mask(**given, attention_mask=visible, allow_is_bidirectional_skip=True)
    q, k, v = (x.to(device) for x in inputs())
    before, _ = attend(Layer(), q, k, v, mask)
    mask.zero_()
    torch.testing.assert_close(attend(Layer(), q, k, v, mask)[0], attend(Layer(), q, k, v, None)[0])
    assert not torch.allclose(before[0], attend(Layer(), q, k, v, mask)[0][0])


def test_which_keys_a_mask_shows_is_remembered_until_it_is_written_to():
    """On a GPU nobody waits to read the mask; the meta device, too, has no values to read."""
    given = bidirectional()
    visible = torch.ones(2, 5, dtype=torch.bool, device="meta")
    mask = additive_mask(**given, attention_mask=visible, allow_is_bidirectional_skip=True)
    assert _keys_of(mask, 2, 5).shape == (10,)
    mask.zero_()
    assert _keys_of(mask, 2, 5) is None


def test_compiled_with_padding_and_gradients():
    torch.manual_seed(0)
    torch._dynamo.reset()
    eager, ours, truth = twins(text_model("bert"))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    ids, mask = torch.randint(2, 60, (B, S)), padding("right")
    x, y, z = (m(input_ids=ids, attention_mask=mask).last_hidden_state for m in (compiled, eager, truth))
    assert_close_to_truth(x.detach(), y.detach(), z.detach(), torch.float32, k=48)
    for out in (x, y, z):
        out.square().sum().backward()
    name = "encoder.layer.0.attention.self.query.weight"
    grads = [m.get_parameter(name).grad for m in (ours, eager, truth)]
    assert_close_to_truth(*grads, torch.float32, k=48)
