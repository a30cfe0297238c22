"""The model on a GPU: the numeric contract in 16 bits, which backends ran, waits of the host, bad ids, streams."""

import warnings

import pytest
import torch
from on_gpu import (
    DEVICE,
    HALVES,
    LENGTHS,
    SETTINGS,
    assert_contract,
    in_double,
    make_model,
    packed,
    padded,
    with_gradients,
)

import bert_fast
from bert_fast import backend

pytestmark = pytest.mark.gpu


def outputs(batch):
    def call(model):
        out = model(batch) if isinstance(batch, bert_fast.PackedBatch) else model(**batch)
        return out.last_hidden_state, out.pooler_output

    return call


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("dtype", HALVES)
def test_outputs_and_every_gradient_hold_the_contract(dtype, kind):
    model = make_model(dtype=dtype).train()
    call = outputs(packed() if kind == "packed" else padded())
    with torch.no_grad():
        shapes = [out.shape for out in call(model)]
    upstream = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    if kind == "padded":
        upstream[0] *= padded()["attention_mask"][..., None]  # parity is claimed on visible places
    with bert_fast.use_backend("reference"):
        truth = with_gradients(in_double(model), call, upstream)
        eager = with_gradients(model, call, upstream)
    found = with_gradients(model, call, upstream)
    assert_contract(found, eager, truth, dtype, terms=1)


def test_every_op_runs_on_its_kernel():
    from bert_fast.ops import scaled_masked_softmax

    model = make_model("BertForMaskedLM")
    with torch.no_grad():
        model(packed())
        scaled_masked_softmax(torch.randn(1, 2, 4, 4, device=DEVICE))
    chosen = {op: name for op, (name, _) in backend.decisions().items()}
    for op in ("attention", "dropout_add_layer_norm", "bias_gelu", "gelu_layer_norm", "scaled_masked_softmax"):
        assert chosen[op] == "triton", (op, backend.decisions()[op])


def test_the_embedding_and_the_mask_run_on_the_extension_where_it_has_cuda():
    reasons = backend.cuda_reasons(torch.device(DEVICE, 0))
    if reasons:
        pytest.skip("; ".join(reasons))
    with torch.no_grad():
        make_model()(**padded())
    assert backend.decisions()["embedding_layer_norm"][0] == "cuda"
    assert backend.decisions()["unpad"][0] == "cuda"


@pytest.mark.parametrize("dtype", HALVES)
def test_the_loss_without_logits_is_the_loss_with_them(dtype):
    model = make_model("BertForMaskedLM", dtype=dtype).train()
    batch = padded()
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape, device=DEVICE) < 0.8, -100)
    losses, gradients = [], []
    for options in ({}, {"return_logits": False}):
        model.zero_grad()
        losses.append(model(**batch, labels=labels, **options).loss)
        losses[-1].backward()
        gradients.append({name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, rtol=2e-2, atol=0)
    for name, want in gradients[0].items():
        if not name.endswith("key.bias"):  # 0 in exact arithmetic
            distance = (gradients[1][name] - want).norm() / want.norm().clamp(min=1e-12)
            assert distance < 0.05, f"{name} is {distance:.3f} of its own length away"


def test_padded_and_packed_agree_to_the_bit():
    model = make_model()
    with torch.no_grad():
        rows = model(packed()).last_hidden_state
        batch = padded()
        places = model(**batch).last_hidden_state
    assert torch.equal(places[batch["attention_mask"].bool()], rows)
    assert (places[~batch["attention_mask"].bool()] == 0).all()


def test_what_lies_in_hidden_places_does_not_matter():
    model, batch = make_model(), padded()
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        other = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
        assert torch.equal(model(other, batch["attention_mask"]).last_hidden_state, expected)


def syncs(call):
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_a_packed_forward_never_waits_and_a_padded_one_waits_once(train):
    model = make_model(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train(train)
    rows, places = packed(), padded()

    def run(batch):
        with torch.set_grad_enabled(train):
            out = outputs(batch)(model)
        if train:
            (out[0].float().square().mean() + out[1].float().square().mean()).backward()

    for batch in (rows, places):
        run(batch)  # compiles, and makes what is made once
    assert syncs(lambda: run(rows)) == 0
    assert syncs(lambda: run(places)) == 1


@pytest.mark.parametrize("table", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("value", [-1, 10**6, 2**40])
def test_a_bad_id_is_an_index_error_at_the_next_wait_and_the_process_lives(table, value):
    model, batch = make_model(), padded()
    arguments = {
        "input_ids": batch["input_ids"].clone(),
        "token_type_ids": torch.zeros_like(batch["input_ids"]),
        "position_ids": torch.arange(max(LENGTHS), device=DEVICE).expand_as(batch["input_ids"]).clone(),
    }
    arguments[table][0, 1] = value
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        model(**arguments, attention_mask=batch["attention_mask"])
        with pytest.raises(IndexError, match=table):
            model(**batch)
        assert torch.equal(model(**batch).last_hidden_state, expected)


def test_ids_of_32_bits_give_what_64_bits_give():
    model, batch = make_model(), padded()
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        given = model(batch["input_ids"].int(), batch["attention_mask"].int()).last_hidden_state
    assert torch.equal(given, expected)


@pytest.mark.parametrize("batch", [padded, packed])
def test_a_batch_left_on_the_cpu_is_an_error_and_the_process_lives(batch):
    model = make_model()
    with torch.no_grad():
        with pytest.raises((ValueError, RuntimeError), match="cpu"):
            outputs(batch(device="cpu"))(model)
        torch.cuda.synchronize()
        assert torch.isfinite(model(packed()).last_hidden_state).all()


def test_the_current_stream_is_the_one_that_works():
    """The work queues behind a sleep on a side stream: the default stream is not kept waiting, nor used."""
    model, batch = make_model(), packed()
    with torch.no_grad():
        expected = model(batch).last_hidden_state
        torch.cuda.synchronize()
        stream, done = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(500_000_000)  # about a quarter of a second
            found = model(batch).last_hidden_state
            done.record()
        default = torch.cuda.Event()
        default.record()
        default.synchronize()
        assert not done.query(), "the forward pass did not wait for the stream it was called on"
        stream.synchronize()
    assert torch.equal(found, expected)


def test_the_second_gpu_works_while_the_first_is_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    there = torch.device("cuda", 1)
    upstream = [torch.ones(sum(LENGTHS), SETTINGS["hidden_size"]), torch.ones(len(LENGTHS), SETTINGS["hidden_size"])]
    call, first = outputs(packed()), make_model().train()
    expected = with_gradients(first, call, [g.to(DEVICE) for g in upstream])
    second, call = make_model(device=there).train(), outputs(packed(device=there))
    with torch.cuda.device(0):
        found = with_gradients(second, call, [g.to(there) for g in upstream])
        assert torch.cuda.current_device() == 0
        with torch.no_grad():
            out = second.eval()(**padded(device=there)).last_hidden_state
        assert out.device == there
        assert torch.isfinite(out).all()
    for name in ("output 0", "output 1", "encoder.layer.0.attention.self.value.weight", "embeddings.LayerNorm.bias"):
        distance = (found[name].cpu() - expected[name].cpu()).float().norm() / expected[name].cpu().float().norm()
        assert distance < 0.02, name


@pytest.mark.parametrize("hidden_positions", ["zero", "exact"])
def test_attentions_come_out_and_agree_with_the_fused_path(hidden_positions):
    model, batch = make_model(dtype=torch.float32), padded()
    visible = batch["attention_mask"].bool()
    with torch.no_grad():
        fused = model(**batch, hidden_positions=hidden_positions).last_hidden_state
        shown = model(**batch, hidden_positions=hidden_positions, output_attentions=True)
    assert torch.allclose(shown.last_hidden_state[visible], fused[visible], atol=1e-4)
    sums = shown.attentions[0].sum(-1).transpose(1, 2)[visible]
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_forward_and_backward(dtype):
    model, batch = make_model(dtype=torch.float32).train(), packed()
    exact = model(batch).last_hidden_state.detach()
    with torch.autocast("cuda", dtype):
        out = model(batch).last_hidden_state
    assert out.dtype == torch.float32, "eager LayerNorm gives float32 under autocast"
    out.square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    scale = exact.abs().max()
    assert 0 < (out - exact).abs().max() / scale < 0.1, "no 16-bit product ran, or a wrong one"
