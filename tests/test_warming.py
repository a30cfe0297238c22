"""warmup: after it a model asks Triton for no kernel that is not there; on a CPU it says why it has nothing to do."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from twins import TINY, ours

import bert_fast

# Runs the model's launchers as on a GPU of compute capability 9.0 and notes every kernel they ask for; what is noted is
# not compiled, so outputs are never written. Triton tells a hook of every kernel it does not have.
ASKED = """
import collections, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
import bert_fast
from bert_fast import PackedBatch, backend

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_active_torch_device(self): return torch.device("cpu")

asked = set()
def hook(*, key, fn, **more):
    asked.add((fn.name, str(key)))
    return True

triton.runtime.driver.set_active(Driver())
triton.knobs.runtime.jit_cache_hook = hook
backend.triton_reasons = lambda device: ()
torch.manual_seed(0)
kind, dtype, training = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3] == "training"
config = bert_fast.BertConfig(
    vocab_size=99, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256
)
model = getattr(bert_fast, kind)(config).to(dtype).train(training)

def call(*given, **named):
    with torch.set_grad_enabled(training):
        output = model(*given, **named)
    if training:
        sum(x.float().sum() for x in output.values()).backward()

with bert_fast.use_backend("triton"):
    bert_fast.warmup(model, [(4, 130), 700])
    warmed = set(asked)
    for rows, longest in ((3, 130), (4, 64), (5, 17), (8, 100), (1, 128)):
        ids = torch.randint(0, 99, (rows, longest))
        if kind == "BertForMultipleChoice":
            ids = ids[:, None]
        lengths = torch.randint(1, longest + 1, ids.shape[:-1])
        mask = (torch.arange(longest) < lengths[..., None]).long()
        call(ids)
        call(ids, mask)
        call(ids, mask.flip(-1))
        packed = [list(range(n)) for n in lengths.flatten().clamp(max=99).tolist()]
        extra = {"num_choices": 1} if kind == "BertForMultipleChoice" else {}
        call(PackedBatch.from_sequences(packed), **extra)
missed = collections.Counter(name for name, _ in asked - warmed)
print(json.dumps({"warmed": collections.Counter(name for name, _ in warmed), "missed": missed}))
"""


def run(*arguments):
    # The suite's interpreter is inherited, and an interpreted kernel is never asked for.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", ASKED, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("training", ["inference", "training"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("BertModel", "bfloat16"), ("BertForMaskedLM", "float32"), ("BertForMultipleChoice", "float16")],
)
def test_after_a_warmup_no_batch_asks_for_another_kernel(kind, dtype, training):
    pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
    found = run(kind, dtype, training)
    assert found["warmed"]["forward_tile"] > 1
    assert ("backward_tile" in found["warmed"]) == (training == "training")
    assert not found["missed"], f"compiled only when batches came: {found['missed']}"


def test_on_a_cpu_it_returns_at_once_and_says_why():
    done = bert_fast.warmup(ours(), [(2, 8), 100])
    assert done.kernels == 0
    assert "CPU" in done.reason
    with bert_fast.use_backend("reference"):
        assert "reference" in bert_fast.warmup(ours(), [(2, 8)]).reason


@pytest.mark.parametrize("training", [False, True, None])
def test_the_model_is_left_as_it_was(training, monkeypatch):
    from bert_fast import backend, warming

    runs = []
    monkeypatch.setattr(backend, "has_kernels", lambda device: True)
    monkeypatch.setattr(warming, "_counted", lambda: contextlib.nullcontext([]))  # Triton has nothing to count here
    monkeypatch.setattr(backend, "runs", lambda *arguments: False)
    model = ours("BertForMaskedLM")
    model.bert.encoder.layer[0].train()
    model.register_forward_hook(lambda module, inputs, output: runs.append((module.training, torch.is_grad_enabled())))
    modes = [module.training for module in model.modules()]
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    bert_fast.warmup(model, [(2, 17), 30], training=training)
    assert torch.equal(torch.rand(3), expected), "random numbers moved"
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert set(runs) == {(bool(training), bool(training))}
    assert len(runs) == 1 + 2 * 2 + 2  # (2, 17): dense, two lengths padded on either side; 30 tokens: two lengths


@pytest.mark.parametrize(
    ("shapes", "error", "words"),
    [
        ([(0, 4)], ValueError, "at least 1"),
        ([(2, TINY["max_position_embeddings"] + 1)], ValueError, "max_position_embeddings"),
        ([-3], ValueError, "at least 1"),
        ([(1, 2, 3)], TypeError, "pairs"),
        ([("2", 4)], TypeError, "pairs"),
        ([True], TypeError, "pairs"),
        (["ab"], TypeError, "pairs"),
    ],
)
def test_shapes_that_make_no_sense_are_named(shapes, error, words):
    with pytest.raises(error, match=words):
        bert_fast.warmup(ours(), shapes)


def test_a_wrapped_model_is_refused_by_name():
    with pytest.raises(TypeError, match="Sequential"):
        bert_fast.warmup(torch.nn.Sequential(ours()), [4])


def test_a_model_runs_as_before_after_a_warmup_in_the_interpreter():
    program = (
        "import torch, bert_fast; from twins import ours, batch, padding\n"
        "model = ours(num_attention_heads=6)\n"
        "with bert_fast.use_backend('triton'), torch.no_grad():\n"
        "    before = model(**batch(padding('holes')))[0]\n"
        "    done = bert_fast.warmup(model, [(2, 9)])\n"
        "    assert torch.equal(model(**batch(padding('holes')))[0], before)\n"
        "assert done.reason is None and done.kernels == 0, done\n"
    )
    pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
