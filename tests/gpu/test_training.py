"""Training on a GPU inside PyTorch's machinery: inductor, FSDP2, fused AdamW, determinism."""

import copy

import pytest
import torch
from on_gpu import DEVICE, LENGTHS, make_model, packed, padded

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(model, out):
    """Of a loss that a LayerNorm at the end does not hold constant."""
    model.zero_grad()
    generator = torch.Generator(DEVICE).manual_seed(4)
    losses = [x.float() * torch.randn(x.shape, generator=generator, device=DEVICE) for x in (out[0], out[1])]
    sum(loss.sum() for loss in losses).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, expected):
    """Within what another order of the sums can do to 16 bits."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        if name.endswith("key.bias"):
            continue  # 0 in exact arithmetic, so nothing but rounding errors
        distance = (found[name].float() - want.float()).norm() / want.float().norm().clamp(min=1e-12)
        assert distance < 0.05, f"{name} is {distance:.3f} of its own length away"


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_inductor_compiles_the_whole_model_forward_and_backward(kind):
    model = make_model().train()
    compiled = torch.compile(model, fullgraph=True)
    for lengths in (LENGTHS, (50, 90, 7, 33, 128)):
        arguments = {"input_ids": packed(lengths)} if kind == "packed" else padded(lengths)
        got, want = compiled(**arguments), model(**arguments)
        assert torch.allclose(got[0], want[0], rtol=0, atol=0.05 * want[0].abs().max().item())
        assert_alike(gradients(model, got), gradients(model, want))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_compiled_models_run_on_the_kernels(train):
    """Not on what inductor would make of PyTorch's ops: the profiler must see ours."""
    model = make_model(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train(train)
    compiled, batch = torch.compile(model, fullgraph=True), packed()

    def run():
        with torch.set_grad_enabled(train):
            out = compiled(batch)
            if train:
                out[0].float().square().mean().backward()

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    names = {event.name for event in profiler.events()}
    assert any("forward_tile" in name or "forward_loop" in name for name in names), sorted(names)
    if train:
        assert any("backward_tile" in name or "backward_queries" in name for name in names), sorted(names)


def test_fused_adamw_after_a_cached_forward():
    """Its kernel moves no version counter: what the model derived from its weights must not be used any more."""
    model, batch = make_model(), packed()
    with torch.no_grad():
        before = model(batch).last_hidden_state
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    gradients(model, model(batch))
    optimizer.step()
    model.eval()
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        found, expected = (m(batch).last_hidden_state for m in (model, fresh))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, before, atol=0.1)


def test_fused_adamw_between_forwards_in_eval_mode():
    """As above, by a user who never calls train(): the forward that makes gradients must drop what was derived."""
    model, batch = make_model(), packed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        with torch.no_grad():
            model(batch)
        gradients(model, model(batch))
        optimizer.step()
        with torch.no_grad():
            found = model(batch).last_hidden_state
            assert torch.equal(found, copy.deepcopy(model)(batch).last_hidden_state)


def test_results_and_gradients_are_the_same_on_every_run():
    model, batch = make_model(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train(), packed()
    rows = []
    for _ in range(3):
        torch.manual_seed(3)
        out = model(batch)
        # The embedding tables' gradients are PyTorch's, which adds rows in any order unless told otherwise.
        found = {k: v for k, v in gradients(model, out).items() if "embeddings.weight" not in k}
        rows.append({"out": out[0].detach(), **found})
    for row in rows[1:]:
        for name, want in rows[0].items():
            assert torch.equal(row[name], want), name


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    if not torch.distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    store = tmp_path_factory.mktemp("nccl") / "store"
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "mixed precision"])
def test_fsdp2_of_one_process(process_group, mixed):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    alone = make_model(dtype=torch.float32 if mixed else torch.bfloat16).train()
    model, batch = copy.deepcopy(alone), packed()
    mesh = init_device_mesh("cuda", (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if mixed else MixedPrecisionPolicy()
    for layer in model.encoder.layer:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    out, expected = model(batch), alone(batch)
    scale = expected[0].abs().max().item()
    assert torch.allclose(out[0].float(), expected[0].float(), rtol=0, atol=0.05 * scale)
    found = {name: grad.full_tensor() for name, grad in gradients(model, out).items()}
    assert_alike(found, gradients(alone, expected))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(model.eval()(batch)[0]).all()


def test_nn_module_to_moves_a_model_that_has_derived_weights():
    model, batch = make_model(), packed()
    with torch.no_grad():
        expected = model(batch).last_hidden_state
        model.cpu().to(DEVICE)
        assert torch.equal(model(batch).last_hidden_state, expected)
