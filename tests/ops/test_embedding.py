"""embedding_layer_norm: ids outside their tables, dtypes, gradients, dropout; the extension's kernels on a GPU, and
emulated on the host."""

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import backend, ops, reference, use_backend
from bert_fast.ops import embedding, id_checks

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


# The extension's kernels


DROPOUT = {"p": 0.3, "site": -1}


@pytest.fixture(params=["added", "sorted"])
def way(request):
    """The two ways to sum the gradients of table rows."""
    torch.use_deterministic_algorithms(request.param == "sorted")
    yield request.param
    torch.use_deterministic_algorithms(False)


def sized(tokens, hidden, rows, dtype, device, frequent=0.5):
    """Ids of which one has a share of the tokens, so that it crosses the borders of every tile it could."""
    generator = torch.Generator().manual_seed(tokens + hidden)
    ids = {name: torch.randint(0, n, (tokens,), generator=generator) for name, n in rows.items()}
    ids["input_ids"][torch.rand(tokens, generator=generator) < frequent] = min(5, rows["input_ids"] - 1)
    word, kind, position = (torch.randn(n, hidden, generator=generator) for n in rows.values())
    weight, bias = torch.randn(2, hidden, generator=generator).unbind(0)
    ids = {name: x.to(device) for name, x in ids.items()}
    return ids, [t.to(device, dtype) for t in (word, position, kind, weight, bias)]


def check_kernels(ids, tables, dtype, device, **options):
    seed = {"seed": torch.tensor([0x0123_4567_89AB_CDEF], device=device)} if options.get("p") else {}
    got = run(ops.embedding_layer_norm, ids, tables, **options, **seed)
    assert backend.decisions()["embedding_layer_norm"] == ("cuda", {})
    host, seed = {k: None if v is None else v.cpu() for k, v in ids.items()}, {k: v.cpu() for k, v in seed.items()}
    eager, truth = (
        run(reference.embedding_layer_norm, host, [t.cpu() for t in tables], kind, **options, **seed)
        for kind in (None, torch.float64)
    )
    for name, *values in zip(("out", "word", "position", "type", "weight", "bias"), got, eager, truth, strict=True):
        assert_close_to_truth(*values, dtype, len(ids["input_ids"]), name)
    return got


SIZES = {  # tokens, hidden, rows of the three tables
    "a_warp_per_row": (300, 64, (97, 2, 512)),
    "odd_width": (150, 31, (97, 2, 12)),
    "one_token": (1, 8, (1, 1, 1)),
    "a_tile": (64, 8, (3, 2, 3)),
    "a_tile_and_one": (65, 8, (3, 2, 3)),
    "many_tiles": (1500, 12, (40000, 2, 512)),
    "wide": (7, 2056, (5, 2, 4)),
    "wide_and_odd": (7, 2051, (5, 2, 4)),
    "wider_than_registers": (5, 4101, (5, 2, 4)),
    "streamed": (3, 8200, (5, 2, 4)),
    "one_type": (90, 16, (30, 1, 12)),
    "five_types": (90, 16, (30, 5, 12)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_hold_the_contract_with_dropout_and_gradients(size, dtype, way, cuda_device):
    tokens, hidden, rows = SIZES[size]
    ids, tables = sized(tokens, hidden, dict(zip(ROWS, rows, strict=True)), dtype, cuda_device)
    got = check_kernels(ids, tables, dtype, cuda_device, padding_idx=0, **DROPOUT)
    assert (got[1][0] == 0).all(), "the padding row has a gradient"


@pytest.mark.parametrize("p", [0.0, 0.9, 1.0])
def test_the_kernels_with_no_types_and_other_probabilities(p, way, cuda_device):
    ids, tables = sized(100, 24, ROWS, torch.float32, cuda_device)
    check_kernels({**ids, "token_type_ids": None}, tables, torch.float32, cuda_device, p=p)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["no_id_is_frequent", "all_tokens_share_one"])
def test_the_kernels_sum_any_number_of_rows_of_one_id(share, way, cuda_device):
    ids, tables = sized(900, 8, {**ROWS, "input_ids": 1000}, torch.float32, cuda_device, share)
    check_kernels(ids, tables, torch.float32, cuda_device)
    check_kernels({**ids, "token_type_ids": None}, tables, torch.float32, cuda_device, padding_idx=5)


def test_the_kernels_take_tables_that_are_not_aligned(cuda_device):
    ids, tables = sized(70, 32, ROWS, torch.bfloat16, cuda_device)
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tables]
    assert all(t.data_ptr() % 16 for t in shifted)
    with torch.no_grad():
        got = ops.embedding_layer_norm(*ids_of(ids), *shifted, 1e-12)
        want = ops.embedding_layer_norm(*ids_of(ids), *tables, 1e-12)
    assert torch.equal(got, want)


def ids_of(ids):
    return ids["input_ids"], ids["token_type_ids"], ids["position_ids"]


@pytest.mark.parametrize("way", ["sorted"], indirect=True)
def test_the_kernels_give_the_same_bits_on_every_run(way, cuda_device):
    ids, tables = sized(400, 64, ROWS, torch.float32, cuda_device)
    first, second = (run(ops.embedding_layer_norm, ids, tables) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("wanted", ["word", "position", "token_type", "weight"])
def test_the_kernels_give_only_the_gradients_that_are_wanted(wanted, way, cuda_device):
    ids, tables = sized(50, 16, {**ROWS, "token_type_ids": 4}, torch.float32, cuda_device)
    place = ("word", "position", "token_type", "weight", "bias").index(wanted)
    whole = run(ops.embedding_layer_norm, ids, tables)[1 + place]
    tables[place].requires_grad_()
    out = ops.embedding_layer_norm(*ids_of(ids), *tables, 1e-12)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    alone = torch.autograd.grad(out, tables[place], upstream)[0]
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
    assert way == "added" or torch.equal(alone, whole)


def test_how_rows_are_summed(cuda_device, monkeypatch):
    """By atomics in float32 and in small batches of 16 bits, sorted where PyTorch is to be deterministic."""
    sorted_for = []
    plain = embedding._sum_by_id
    monkeypatch.setattr(embedding, "_sum_by_id", lambda *given: sorted_for.append(given[2].shape) or plain(*given))

    def sorts(dtype, deterministic=False):
        sorted_for.clear()
        ids, tables = sized(50, 16, {**ROWS, "token_type_ids": 4}, dtype, cuda_device)
        torch.use_deterministic_algorithms(deterministic)
        try:
            run(ops.embedding_layer_norm, ids, tables)
        finally:
            torch.use_deterministic_algorithms(False)
        assert sorted_for in ([], [(30, 16), (12, 16), (4, 16)])
        return bool(sorted_for)

    assert not sorts(torch.float32) and not sorts(torch.bfloat16)
    assert sorts(torch.float32, deterministic=True) and sorts(torch.bfloat16, deterministic=True)
    monkeypatch.setattr(embedding, "_MOST_ADDED", (50 + 30 + 12 + 4) * 16 - 1)
    assert sorts(torch.bfloat16) and not sorts(torch.float32)
    monkeypatch.setattr(embedding, "_MOST_ADDED", (50 + 30 + 12 + 4) * 16)
    assert not sorts(torch.bfloat16)


@pytest.mark.parametrize("way", ["sorted"], indirect=True)
def test_opcheck_of_the_kernels(way, cuda_device):
    ids, tables = sized(50, 16, ROWS, torch.float32, cuda_device)
    seed = torch.tensor([9], device=cuda_device)
    leaves = [t.requires_grad_() for t in tables]
    forward = (*ids_of(ids), *leaves, seed, 1e-12, 0.5, 3, 1, True)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.bert_fast.embedding_layer_norm.default, forward, test_utils=utils)
    plain = [t.detach() for t in tables]
    _, mean, rstd = torch.ops.bert_fast.embedding_layer_norm(*ids_of(ids), *plain, seed, 1e-12, 0.5, 3, 1, True)
    dy = torch.randn(50, 16, device=cuda_device)
    backward = (dy, *ids_of(ids), *plain[:4], mean, rstd, seed, 0.5, 3, 1, [True, False, True])
    name = torch.ops.bert_fast.embedding_layer_norm_backward.default
    torch.library.opcheck(name, backward, test_utils=utils[:2])


@pytest.mark.parametrize("way", ["sorted"], indirect=True)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_compiled_fullgraph_the_kernels_give_the_same_numbers(p, way, cuda_device):
    torch._dynamo.reset()
    ids, tables = sized(50, 16, ROWS, torch.float32, cuda_device)
    options = {"p": p, "seed": torch.tensor([9], device=cuda_device)}
    want = run(ops.embedding_layer_norm, ids, tables, **options)
    got = run(torch.compile(ops.embedding_layer_norm, backend="aot_eager", fullgraph=True), ids, tables, **options)
    assert backend.decisions()["embedding_layer_norm"] == ("cuda", {})
    for left, right in zip(got, want, strict=True):
        assert torch.equal(left, right)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("way", ["sorted"], indirect=True)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ROWS)
def test_the_kernels_flag_an_id_outside_its_table_and_go_on(name, compiled, way):
    torch._dynamo.reset()
    ids, tables = sized(50, 16, ROWS, torch.float32, "cpu")
    ids[name][7], ids[name][9] = ROWS[name] + 5, -3
    function = ops.embedding_layer_norm
    function = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    flag = id_checks.bad_id_flag(torch.device("cpu"))
    got = run(function, ids, tables)
    with pytest.raises(IndexError, match=name):
        id_checks.raise_for_flag(int(flag), flag.device)
    assert flag.item() == 0
    ids[name].clamp_(0, ROWS[name] - 1)
    for left, right in zip(got, run(function, ids, tables), strict=True):
        assert torch.equal(left, right)


@pytest.mark.usefixtures("emulated")
def test_the_kernels_refuse_what_they_would_read_past_or_misread():
    ids, tables = sized(50, 16, ROWS, torch.float32, "cpu")
    op = torch.ops.bert_fast.embedding_layer_norm
    short = (ids["input_ids"], ids["token_type_ids"][:-1], ids["position_ids"])
    with pytest.raises(ValueError, match="token_type_ids must have the shape of input_ids"):
        op(*short, *tables, None, 1e-12, 0.0, 0, None, False)
    for seed in (None, torch.tensor([1], dtype=torch.int32), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="seed must be an int64 tensor of one element"):
            op(*ids_of(ids), *tables, seed, 1e-12, 0.1, 0, None, False)


def test_the_flag_of_a_first_call_in_inference_mode_can_be_cleared_outside_of_it(monkeypatch):
    monkeypatch.setattr(id_checks, "_flags", {})
    with torch.inference_mode():
        id_checks.clamp_ids(2, torch.tensor([9]), 3)
    with pytest.raises(IndexError, match="position_ids of an earlier batch"):
        id_checks.raise_for_flag(2, torch.device("cpu"))
    assert id_checks.bad_id_flag(torch.device("cpu")).item() == 0
