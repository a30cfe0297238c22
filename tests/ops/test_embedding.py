"""embedding_layer_norm: ids outside their tables, dtypes, gradients; on a GPU the extension's kernel."""

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import ops, reference, use_backend

ROWS = {"input_ids": 30, "token_type_ids": 2, "position_ids": 12}
H, T = 24, 40


def inputs(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    ids = {name: torch.randint(0, rows, (T,), generator=generator).to(device) for name, rows in ROWS.items()}
    word, kind, position = (torch.randn(rows, H, generator=generator) for rows in ROWS.values())
    weight, bias = torch.randn(2, H, generator=generator).unbind(0)
    return ids, [t.to(device, dtype) for t in (word, position, kind, weight, bias)]


def run(function, ids, tables, dtype=None, **options):
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tables]
    out = function(ids["input_ids"], ids["token_type_ids"], ids["position_ids"], *leaves, 1e-12, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("types", [True, False], ids=["types", "no_types"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_holds_the_contract_with_gradients(dtype, types, padding_idx, backend, device):
    ids, tables = inputs(dtype, device)
    if not types:
        ids["token_type_ids"] = None
    host = {k: None if v is None else v.cpu() for k, v in ids.items()}
    options = {"padding_idx": padding_idx}
    with use_backend(backend):
        got = run(ops.embedding_layer_norm, ids, tables, **options)
    eager = run(reference.embedding_layer_norm, host, [t.cpu() for t in tables], **options)
    truth = run(reference.embedding_layer_norm, host, [t.cpu() for t in tables], torch.float64, **options)
    for name, *values in zip(("out", "word", "position", "type", "weight", "bias"), got, eager, truth, strict=True):
        assert_close_to_truth(*values, dtype, T, name)
    if padding_idx is not None:
        assert (got[1][padding_idx] == 0).all()


@pytest.mark.parametrize("bad", ["below", "above"])
@pytest.mark.parametrize("name", ROWS)
def test_an_id_outside_its_table_is_named(name, bad):
    ids, tables = inputs()
    value = -1 if bad == "below" else ROWS[name]
    ids[name][7] = value
    message = f"{name} holds {value}, but its embedding table has {ROWS[name]} rows"
    with pytest.raises(IndexError, match=message):
        run(ops.embedding_layer_norm, ids, tables)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ROWS)
def test_an_id_outside_its_table_on_a_gpu_is_reported_where_the_host_waits_and_then_forgotten(name, backend):
    ids, tables = inputs(device="cuda")
    ids[name][7] = ROWS[name] + 5
    mask = torch.ones(2, 3, dtype=torch.bool, device="cuda")
    with use_backend(backend):
        run(ops.embedding_layer_norm, ids, tables)
        with pytest.raises(IndexError, match=name):
            ops.unpad(mask)
        ops.unpad(mask)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16, torch.uint8], ids=str)
def test_ids_of_a_wrong_dtype_are_named(dtype, name):
    ids, tables = inputs()
    ids[name] = ids[name].to(dtype)
    with pytest.raises(TypeError, match=f"{name} must be int32 or int64, not {dtype}"):
        run(ops.embedding_layer_norm, ids, tables)


def test_int32_ids_and_no_ids():
    ids, tables = inputs()
    want = run(ops.embedding_layer_norm, ids, tables)
    got = run(ops.embedding_layer_norm, {k: v.int() for k, v in ids.items()}, tables)
    for left, right in zip(got, want, strict=True):
        assert torch.equal(left, right)
    empty = run(ops.embedding_layer_norm, {k: v[:0] for k, v in ids.items()}, tables)
    assert empty[0].shape == (0, H)
    assert (empty[1] == 0).all()
