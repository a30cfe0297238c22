"""Whole models on the extension's CUDA kernels, emulated on the host, with Triton's interpreted beside them."""

import pytest
import torch
from kernel_oracle import seed_tensor
from twins import batch, ours, padding

pytest.importorskip("triton", reason="a seed is drawn where Triton kernels run, and Triton is not installed")
from bert_fast import backend, ops, reference, use_backend  # noqa: E402
from bert_fast.layers import BertEmbeddings  # noqa: E402

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1, "hidden_size": 32, "num_hidden_layers": 1}


def step(model, arguments, function=None):
    torch.manual_seed(3)
    model.zero_grad()
    out = (model if function is None else function)(**arguments)[0]
    out.square().sum().backward()
    return {"out": out.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton kernels run on CPU tensors only in its interpreter, used without a GPU"
)
@pytest.mark.parametrize("mask", ["holes", "left"])
def test_a_model_drops_the_same_elements_on_the_kernels_and_on_pytorchs_ops(mask, request):
    model = ours(**DROPOUT).train()
    arguments = {k: v[:3] for k, v in batch(padding(mask)).items()}
    with use_backend("triton"):
        want = step(model, arguments)
        assert backend.decisions()["embedding_layer_norm"][0] == "reference"
        request.getfixturevalue("emulated")
        got = step(model, arguments)
    assert {backend.decisions()[op][0] for op in ("embedding_layer_norm", "pad_rows")} == {"cuda"}
    assert want.keys() == got.keys()
    for name in want:
        scale = want[name].abs().max().clamp(min=1)
        assert (got[name] - want[name]).abs().max() <= 2e-5 * scale, name


@pytest.mark.usefixtures("emulated")
def test_a_compiled_model_uses_the_kernels():
    torch._dynamo.reset()
    model = ours(**DROPOUT).eval()
    arguments = {k: v[:3] for k, v in batch(padding("holes")).items()}
    want = step(model, arguments)
    backend._decisions.clear()
    got = step(model, arguments, torch.compile(model, backend="aot_eager", fullgraph=True))
    assert {backend.decisions()[op][0] for op in ("embedding_layer_norm", "pad_rows")} == {"cuda"}
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4)


def embeddings():
    layer = BertEmbeddings(ours(hidden_dropout_prob=0.4).config).train()
    ids = torch.randint(1, 20, (30,)), None, torch.arange(30) % 7
    return layer, ids


def tables(layer):
    parts = (layer.word_embeddings, layer.position_embeddings, layer.token_type_embeddings)
    return [*(part.weight for part in parts), layer.LayerNorm.weight, layer.LayerNorm.bias, layer.LayerNorm.eps]


def test_embeddings_drop_by_the_seed_and_by_a_site_that_no_layer_has(cuda_device):
    layer, ids = embeddings()
    layer, ids = layer.to(cuda_device), [None if x is None else x.to(cuda_device) for x in ids]
    got = layer(*ids, seed=seed_tensor().to(cuda_device))
    want = reference.embedding_layer_norm(*ids, *tables(layer), p=0.4, seed=seed_tensor().to(cuda_device), site=-1)
    torch.testing.assert_close(got, want)
    assert 0.2 < (got == 0).float().mean() < 0.6
    layer.eval()
    undropped = ops.embedding_layer_norm(*ids, *tables(layer))
    torch.testing.assert_close(layer(*ids, seed=seed_tensor().to(cuda_device)), undropped)


def test_embeddings_call_a_dropout_that_is_hooked_and_draw_without_a_seed(cuda_device):
    layer, ids = embeddings()
    layer, ids = layer.to(cuda_device), [None if x is None else x.to(cuda_device) for x in ids]
    seen = []
    layer.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert layer(*ids, seed=seed_tensor().to(cuda_device)) is seen[0]
    layer.dropout._forward_hooks.clear()
    first, second = layer(*ids), layer(*ids)
    assert not torch.equal(first, second), "PyTorch's generator draws another mask each time"
    assert 0.2 < (first == 0).float().mean() < 0.6
