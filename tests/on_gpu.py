"""Models and batches of the GPU tests: small enough to compile fast, with a head size that BERTs have."""

import copy

import pytest
import torch
from numerics import assert_close_to_truth

import bert_fast
from bert_fast import PackedBatch

DEVICE = "cuda"
HALVES = [torch.bfloat16, torch.float16]
SETTINGS = {
    "vocab_size": 997,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (60, 3, 128, 17)


def make_model(kind="BertModel", dtype=torch.bfloat16, device=DEVICE, **changes):
    """A model in eval mode whose weights all matter."""
    model = getattr(bert_fast, kind)(bert_fast.BertConfig(**{**SETTINGS, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise + 1 if name.endswith("LayerNorm.weight") else noise)
    return model.to(device, dtype).eval()


def token_ids(lengths=LENGTHS):
    """One list of ids per sequence."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, SETTINGS["vocab_size"], (n,), generator=generator).tolist() for n in lengths]


def packed(lengths=LENGTHS, device=DEVICE):
    return PackedBatch.from_sequences(token_ids(lengths)).to(device)


def padded(lengths=LENGTHS, device=DEVICE):
    """``input_ids`` and ``attention_mask``, padded on the right."""
    longest = max(lengths)
    rows = [ids + [0] * (longest - len(ids)) for ids in token_ids(lengths)]
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.tensor(rows).to(device), "attention_mask": mask.long().to(device)}


def in_double(model):
    return copy.deepcopy(model).double()


def with_gradients(model, call, upstream):
    """Outputs of ``call(model)`` and the gradients of all parameters, by name."""
    model.zero_grad()
    outputs = call(model)
    torch.autograd.backward(list(outputs), [g.to(out.dtype) for g, out in zip(upstream, outputs, strict=True)])
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return found | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_contract(found, eager, truth, dtype, terms):
    assert found.keys() == truth.keys()
    for name in found:
        assert_close_to_truth(found[name], eager[name], truth[name], dtype, k=terms, name=name)


def needs_memory(gib):
    """Skip the test unless the GPU has so much memory free."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free GPU memory; {free:.0f} are free")
