"""Without the extension, without Triton, without both: the model still runs on the GPU, and says why as it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

PROGRAM = """
import json, sys, warnings
if "triton" in sys.argv[1:]:
    sys.modules["triton"] = None
sys.path.insert(0, {tests!r})
import torch
import bert_fast
from bert_fast import backend
from on_gpu import make_model, packed, padded

found = {{}}
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    model = make_model().train()
    for name, batch in (("packed", {{"input_ids": packed()}}), ("padded", padded())):
        out = model(**batch)
        out.last_hidden_state.float().square().mean().backward()
        with bert_fast.use_backend("reference"):
            expected = model(**batch)
        scale = expected.last_hidden_state.abs().max()
        found[name] = ((out.last_hidden_state - expected.last_hidden_state).abs().max() / scale).item()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found["gradients are finite"] = all(torch.isfinite(gradient).all().item() for gradient in gradients)
    bad = padded()
    bad["input_ids"] = bad["input_ids"].clone()
    bad["input_ids"][0, 0] = 10**7
    model(**bad)
    try:
        model(**padded())
        found["bad id"] = "no error"
    except IndexError as error:
        found["bad id"] = str(error)
    found["finite afterwards"] = torch.isfinite(model(**padded()).last_hidden_state).all().item()
with bert_fast.use_backend("auto"), torch.no_grad():
    model(**padded())
found["decisions"] = {{op: [chosen, sum(why.values(), [])] for op, (chosen, why) in backend.decisions().items()}}
found["warnings"] = [str(w.message) for w in seen if "bert_fast" in str(w.message)]
print(json.dumps(found))
"""


def run(*without, extension=True):
    program = PROGRAM.format(tests=str(Path(__file__).resolve().parents[1]))
    environment = {**os.environ, "BERT_FAST_EXTENSION": "1" if extension else "0"}
    command = [sys.executable, "-c", program, *without]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("without", ["extension", "triton", "both", "neither"])
def test_the_model_runs_and_says_what_it_lacks(without):
    triton = () if without in ("extension", "neither") else ("triton",)
    found = run(*triton, extension=without not in ("extension", "both"))
    assert found["packed"] < 0.05
    assert found["padded"] < 0.05
    assert found["gradients are finite"]
    assert "input_ids" in found["bad id"]
    assert found["finite afterwards"]
    attention, reasons = found["decisions"]["attention"]
    if triton:
        assert attention == "reference"
        assert any("Triton is not installed" in reason for reason in reasons)
    else:
        assert attention == "triton", reasons
    embedding, reasons = found["decisions"]["embedding_layer_norm"]
    if without in ("extension", "both"):
        assert embedding == "reference"
        assert any("BERT_FAST_EXTENSION=0" in reason for reason in reasons)
    assert len(found["warnings"]) <= 1, "one warning, not one per call"
