"""CUDA graphs: capture without a wait, replays that equal the call, and memory that outlives what the model forgets."""

import pytest
import torch
from on_gpu import DEVICE, SETTINGS, make_model, packed

pytestmark = pytest.mark.gpu


def captured(call):
    """``(graph, result)``: warmed up on a side stream and captured with every wait of the host an error."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return graph, result


@torch.no_grad()
def test_a_replay_gives_what_the_call_gives_for_other_tokens():
    model, batch, other = make_model(), packed(), packed((40, 40, 120, 8))
    assert len(other.input_ids) == len(batch.input_ids)
    graph, out = captured(lambda: model(batch).last_hidden_state)
    for given in (other, packed()):
        for name in ("input_ids", "cu_seqlens", "position_ids"):
            getattr(batch, name).copy_(getattr(given, name))
        graph.replay()
        expected = model(batch).last_hidden_state
        assert torch.allclose(out, expected, rtol=0, atol=0.05 * expected.abs().max().item())
        rms = (out - expected).float().square().mean().sqrt() / expected.float().square().mean().sqrt()
        assert rms < 2.0**-6, "only the order of a fused product's sums may differ"


@torch.no_grad()
def test_a_graph_outlives_weights_that_the_model_forgets():
    """A replay reads the addresses it was captured with: none may belong to a derived weight that can be dropped."""
    model, batch = make_model(), packed()
    model(batch)
    graph, out = captured(lambda: model(batch).last_hidden_state)
    graph.replay()
    expected = out.clone()
    model.refresh()
    torch.cuda.empty_cache()
    junk = [torch.full((2**22,), float("nan"), device=DEVICE) for _ in range(64)]
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
    del junk


@torch.no_grad()
def test_nothing_made_during_a_capture_is_used_outside_of_it():
    model, batch = make_model(), packed()
    expected = model(batch).last_hidden_state

    def forward():
        model.refresh()
        return model(batch).last_hidden_state

    captured(forward)  # never replayed: what it would compute is not there
    found = model(batch).last_hidden_state
    assert torch.allclose(found, expected, rtol=0, atol=0.02 * expected.abs().max().item())


def test_a_training_step_can_be_captured_and_every_replay_draws_a_new_mask():
    model = make_model(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    batch = packed()

    def step():
        model.zero_grad(set_to_none=True)
        out = model(batch).last_hidden_state
        out.float().square().mean().backward()
        return out

    graph, out = captured(step)
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(out.detach().clone())
    assert not torch.equal(*seen), "dropout drew the same mask twice"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_dropout_is_the_same_in_a_call_a_checkpoint_and_a_graph():
    dropped = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model, batch = make_model(**dropped).train(), packed()
    parameters = list(model.parameters())
    upstream = torch.randn(len(batch.input_ids), SETTINGS["hidden_size"], device=DEVICE, dtype=torch.bfloat16)

    def step():
        out = model(batch).last_hidden_state
        return out, torch.autograd.grad(out, parameters, upstream, allow_unused=True)

    def both(seed):
        torch.manual_seed(seed)
        out, gradients = step()
        return [out.detach(), *(g for g in gradients if g is not None)]

    expected = both(5)
    for left, right in zip(both(5), expected, strict=True):
        assert torch.equal(left, right), "the same seed gave another mask"
    assert not torch.equal(both(6)[0], expected[0])
    model.gradient_checkpointing_enable()
    for left, right in zip(both(5), expected, strict=True):
        assert torch.equal(left, right), "recomputing a layer drew another mask"
    model.gradient_checkpointing_disable()

    graph, (out, gradients) = captured(step)
    torch.manual_seed(5)
    graph.replay()
    for left, right in zip([out, *(g for g in gradients if g is not None)], expected, strict=True):
        assert torch.equal(left, right), "the graph drew another mask"
