"""batch_invariant: the same bits for a sequence alone, in any batch and at any place in it; else an error."""

import pytest
import torch
from twins import randomize

import bert_fast
from bert_fast.config import BertConfig
from bert_fast.ops.attention_host import host_attention_reason
from bert_fast.ops.linear import onednn_runs, pinned_cpu_linear

SIZES = {
    "minilm": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 2},
    "odd": {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2},
}
LENGTHS = [512, 1, 2, 3, 7, 8, 31, 64, 65, 100, 129, 200, 5]
needs_parts = pytest.mark.skipif(
    host_attention_reason() is not None or not onednn_runs(torch.float32),
    reason="this machine has no oneDNN or not the extension's attention",
)
# What is computed in, of a model of which dtype; bfloat16 in itself only where oneDNN has it.
KINDS = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


@pytest.fixture(params=KINDS, ids=["float32", "bfloat16_in_float32", "bfloat16"])
def dtype(request):
    model, computed = request.param
    if not onednn_runs(computed):
        pytest.skip(f"oneDNN has no {computed} here")
    with pinned_cpu_linear(model, (True, computed)):
        yield model


def made(kind, size, dtype=torch.float32, **changes):
    settings = {**SIZES[size], "vocab_size": 90, "batch_invariant": True, **changes}
    return randomize(kind(BertConfig(**settings))).to(dtype).eval()


def texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 90, (length,), generator=generator) for length in lengths]


def padded(rows, width, side="right"):
    """Arguments with every row in ``width`` places, and where each begins."""
    ids, mask, places = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    starts = [0 if side == "right" else width - len(row) for row in rows]
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        here = slice(start, start + len(row))
        ids[b, here], mask[b, here], places[b, here] = row, 1, torch.arange(len(row))
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places}, starts


def alone(model, row):
    output = model(input_ids=row[None])
    return output.last_hidden_state[0], output.pooler_output


@needs_parts
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_sequence_has_the_bits_that_it_has_alone(size, dtype):
    model, rows = made(bert_fast.BertModel, size, dtype), texts()
    single = [alone(model, row) for row in rows]
    order = torch.Generator().manual_seed(4)
    batches = [torch.randperm(len(rows), generator=order).tolist() for _ in range(2)]
    batches += [[1], [1, 0], [4, 1, 4], [2, 9, 5, 1, 12], [0, 6] * 4, [1, 2] * 40]
    for number, batch in enumerate(batches):
        chosen = [rows[i] for i in batch]
        width = max(map(len, chosen))
        arguments, _ = padded(chosen, min(width + number * 7, 512))
        output = model(**arguments)
        for b, i in enumerate(batch):
            assert torch.equal(output.last_hidden_state[b, : len(rows[i])], single[i][0]), (batch, b, len(rows[i]))
            assert torch.equal(output.pooler_output[b], single[i][1][0]), (batch, b, len(rows[i]))


@needs_parts
@pytest.mark.parametrize("length", [1, 7, 33])
@torch.no_grad()
def test_a_sequence_at_each_place_of_a_batch(length, dtype):
    model, (row, *others) = made(bert_fast.BertModel, "odd", dtype), texts([length, *range(1, 23)])
    last, pooled = alone(model, row)
    for place in range(len(others) + 1):
        batch = bert_fast.PackedBatch.from_sequences([x.tolist() for x in (*others[:place], row, *others[place:])])
        output = model(batch)
        start = int(batch.cu_seqlens[place])
        assert torch.equal(output.last_hidden_state[start : start + length], last), place
        assert torch.equal(output.pooler_output[place], pooled[0]), place


@needs_parts
@torch.no_grad()
def test_left_padding_and_hidden_states(dtype):
    model, rows = made(bert_fast.BertModel, "odd", dtype), texts()
    model.pooler = None
    arguments, starts = padded(rows, 512, "left")
    states = model(**arguments, output_hidden_states=True).hidden_states
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        for state, single in zip(states, model(row[None], output_hidden_states=True).hidden_states, strict=True):
            assert torch.equal(state[b, start:], single[0])


@needs_parts
@pytest.mark.parametrize(
    "kind",
    [
        bert_fast.BertForPreTraining,
        bert_fast.BertForMaskedLM,
        bert_fast.BertForNextSentencePrediction,
        bert_fast.BertForSequenceClassification,
        bert_fast.BertForTokenClassification,
        bert_fast.BertForQuestionAnswering,
    ],
)
@torch.no_grad()
def test_the_outputs_of_a_head(kind):
    model, rows = made(kind, "odd"), texts([1, 2, 3, 7, 30])
    settings = {"hidden_positions": "zero"}
    outputs = model(**padded(rows, 30)[0], **settings)
    for b, row in enumerate(rows):
        for name, single in model(row[None], **settings).items():
            seen = outputs[name][b]
            seen = seen[: len(row)] if name in ("start_logits", "end_logits") or seen.dim() > 1 else seen
            assert torch.equal(seen, single[0]), (name, len(row))


@needs_parts
@torch.no_grad()
def test_the_numbers_are_those_without_it():
    model = made(bert_fast.BertModel, "minilm")
    arguments, _ = padded(texts([5, 64, 100]), 100)
    held = model(**arguments)
    model.config.batch_invariant = False
    for ours, plain in zip(held.to_tuple(), model(**arguments).to_tuple(), strict=True):
        assert torch.allclose(ours, plain, rtol=0, atol=1e-4 * plain.abs().max().item())


@needs_parts
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.train(), "training mode"),
        (lambda model: model.to("meta"), "on meta"),
        (lambda model: model.double(), "float64"),
        (lambda model: model.encoder.layer[1].output.dense.register_forward_hook(lambda *_: None), "layer 1"),
    ],
    ids=["training", "meta", "float64", "hook"],
)
@torch.no_grad()
def test_what_cannot_hold_is_an_error_that_names_it(change, said):
    model = made(bert_fast.BertModel, "odd")
    change(model)
    with pytest.raises(RuntimeError, match=f"batch_invariant.*{said}"):
        model(torch.ones(2, 5, dtype=torch.int64, device=model.device))


@needs_parts
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attention_mask": torch.ones(2, 5, 5, dtype=torch.bool)}, "3 or 4 dimensions"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])}, "pad on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 0]] * 2).repeat(1, 2)[:, :5], "hidden_positions": "exact"}, "exact"),
        ({"output_attentions": True}, "output_attentions"),
    ],
    ids=["mask", "hidden_first_place", "exact", "attentions"],
)
@torch.no_grad()
def test_arguments_under_which_it_cannot_hold(arguments, said):
    with pytest.raises(RuntimeError, match=f"batch_invariant.*{said}"):
        made(bert_fast.BertModel, "odd")(torch.ones(2, 5, dtype=torch.int64), **arguments)


@needs_parts
def test_gradients_autocast_and_other_backends_are_errors():
    model, ids = made(bert_fast.BertModel, "odd"), torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"batch_invariant.*no_grad"):
        model(ids)
    with torch.no_grad(), torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"batch_invariant.*autocast"):
        model(ids)
    with torch.no_grad(), bert_fast.use_backend("reference"), pytest.raises(RuntimeError, match="another backend"):
        model(ids)


def test_the_config_holds_it_and_writes_it_only_where_it_is_set(tmp_path):
    assert "batch_invariant" not in BertConfig().to_json_string()
    BertConfig(batch_invariant=True).save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).batch_invariant is True
    with pytest.raises(ValueError, match="batch_invariant must be True or False"):
        BertConfig(batch_invariant="yes")
