"""Masks of 4 dimensions on accelerated models: who sees whom, as the untouched model reads them."""

import warnings

import pytest
import torch
import transformers
from integrations.families import FAMILIES, B, S, batch, encoder_of, model
from integrations.test_live_parity import backward, check, gradients

import bert_fast

OLD = transformers.__version__.startswith("4.")
pytestmark = pytest.mark.skipif(OLD, reason="transformers 4 takes no mask of 4 dimensions as it is")
HEADS = 4
NAMES = [family + "Model" for family in FAMILIES if family != "ModernBert"]
LOW = torch.finfo(torch.float32).min


def visible(*shape):
    """bool, a random half of each row, and its first key."""
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.5
    seen[..., 0] = True
    return seen


def added(seen, value):
    return torch.zeros(seen.shape).masked_fill(~seen, value)


def some_rows_hidden():
    seen = visible(B, 1, S, S)
    seen[1, :, 4] = seen[3] = False
    return seen


MASKS = {
    "block of sequences": lambda: torch.block_diag(torch.ones(9, 9), torch.ones(8, 8)).bool().expand(B, 1, S, S),
    "by head": lambda: visible(B, HEADS, S, S),
    "one for all": lambda: visible(1, 1, S, S),
    "keys alone": lambda: visible(B, 1, 1, S),
    "minimum": lambda: added(visible(B, 1, S, S), LOW),
    "infinite": lambda: added(visible(B, HEADS, S, S), -torch.inf),
    "scores": lambda: torch.randn(B, HEADS, S, S, generator=torch.Generator().manual_seed(5)),
    "zeros and ones": lambda: visible(B, 1, S, S).float(),
    "rows that see nothing": some_rows_hidden,
}


def run(net, name, mask, dtype=torch.float32):
    """Outputs and gradients in training, that of the mask among them where it is added."""
    mask = mask.clone().to(dtype).requires_grad_() if mask.is_floating_point() else mask
    output = net.train()(**batch(name), attention_mask=mask, output_hidden_states=True)
    backward(output)
    grads = gradients(net)
    if mask.grad is not None:
        grads["mask"] = mask.grad
    return {k: tuple(v) if isinstance(v, tuple) else v for k, v in output.items()}, grads


def compare(name, mask, dtype=torch.float32, **settings):
    eager, eager_grads = run(model(name, **settings).to(dtype), name, mask, dtype)
    truth, truth_grads = run(model(name, **settings).to(dtype).double(), name, mask, torch.float64)
    net = bert_fast.accelerate(model(name, **settings).to(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, grads = run(net, name, mask, dtype)
        check(got, eager, truth, dtype, name)
        check(grads, eager_grads, truth_grads, dtype, f"{name} gradient of")
        with torch.no_grad():
            given = mask.to(dtype) if mask.is_floating_point() else mask
            got = dict(net.eval()(**batch(name), attention_mask=given).items())
    check(got, *({key: x[key] for key in got} for x in (eager, truth)), dtype, name)
    assert encoder_of(net).accelerated == 2 and not encoder_of(net).reasons
    assert encoder_of(net).record.padding() is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MASKS)
def test_every_kind(kind, attention):
    mask = MASKS[kind]()
    if attention == "eager" and mask.dtype == torch.bool:
        if kind == "rows that see nothing":
            pytest.skip("eager attention adds, and takes the mean of keys that are all at the minimum: a case below")
        mask = added(mask, LOW)
    compare("BertModel", mask, attn_implementation=attention)


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_architecture(name):
    compare(name, MASKS["minimum"]())
    if name != "MPNetModel":
        compare(name, MASKS["by head"]())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["by head", "scores"])
def test_in_16_bits(kind, dtype):
    compare("BertModel", MASKS[kind](), dtype)


def test_compiled():
    net, twin = (model(num_hidden_layers=1) for _ in range(2))
    compiled = torch.compile(bert_fast.accelerate(net), fullgraph=True, backend="aot_eager")
    given = {**batch(), "attention_mask": MASKS["by head"]()}
    got, want = (each(**given).last_hidden_state for each in (compiled, twin))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


OTHERS = {
    "bool for eager": ("BertModel", {"attn_implementation": "eager"}, visible(B, 1, S, S), "adds masks to scores"),
    "bool for what is always eager": ("MPNetModel", {}, visible(B, 1, S, S), "adds masks to scores"),
    "another dtype": (
        "BertModel", {"attn_implementation": "eager"}, torch.zeros(B, 1, S, S).half(), "in torch.float16, for 'eager'"
    ),
    "rows at the minimum": ("BertModel", {}, added(some_rows_hidden(), LOW), "hides every key from a query"),
    "whole numbers": (
        "BertModel", {"attn_implementation": "eager"}, visible(B, 1, S, S).long(), "in torch.int64, for 'eager'"
    ),
    "local windows": ("ModernBertModel", {}, visible(B, 1, S, S), "in place of the local layers' windows"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_only_their_code_knows(case):
    name, settings, mask, reason = OTHERS[case]
    if name[:-5] not in FAMILIES:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    twin, net = model(name, **settings), bert_fast.accelerate(model(name, **settings))
    given = {**batch(name), "attention_mask": mask}
    with torch.no_grad(), pytest.warns(RuntimeWarning, match=reason):
        assert torch.equal(net(**given).last_hidden_state, twin(**given).last_hidden_state)
    assert encoder_of(net).accelerated == 0


def test_under_autocast():
    twin, net = (model(attn_implementation="eager") for _ in range(2))
    given = {**batch(), "attention_mask": MASKS["minimum"]()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.warns(RuntimeWarning, match="under autocast"):
        got, want = (each(**given).last_hidden_state for each in (bert_fast.accelerate(net), twin))
    assert torch.equal(got, want)


def test_a_shape_that_fits_no_batch_is_their_error():
    net = bert_fast.accelerate(model())
    given = {**batch(), "attention_mask": visible(B, HEADS + 1, S, S)}
    with pytest.raises(RuntimeError), pytest.warns(RuntimeWarning, match=r"not \[6, 4, 17, 17\] or 1"):
        net(**given)
