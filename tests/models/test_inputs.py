"""What a model is fed: ids, embeddings, positions, types, packed batches; and what it refuses."""

import pytest
import torch
from numerics import assert_close_to_truth
from twins import HEADS, LENGTHS, TINY, B, S, batch, double, labels_of, ours, padding, shaped, twins

import bert_fast
from bert_fast import PackedBatch

H, P, V = TINY["hidden_size"], TINY["max_position_embeddings"], TINY["vocab_size"]


def embeddings():
    return torch.randn(B, S, H, generator=torch.Generator().manual_seed(4))


def positions():
    return torch.randint(0, P, (B, S), generator=torch.Generator().manual_seed(4))


def check(mask, mine_arguments, theirs_arguments=None, visible=None):
    mine, theirs = twins()
    theirs_arguments = mine_arguments if theirs_arguments is None else theirs_arguments
    exact = {k: v.double() if v.is_floating_point() else v for k, v in theirs_arguments.items()}
    visible = torch.ones(B, S, dtype=torch.bool) if mask is None else mask.bool()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = mine(**mine_arguments, attention_mask=mask)
            eager = theirs(**theirs_arguments, attention_mask=mask)
            truth = double(theirs)(**exact, attention_mask=mask)
        assert_close_to_truth(output[0][visible], eager[0][visible], truth[0][visible], torch.float32, S)
        assert_close_to_truth(output[1], eager[1], truth[1], torch.float32, S)


@pytest.mark.parametrize("padded", ["no_mask", "right", "left", "holes"])
def test_inputs_embeds(padded):
    check(padding(padded), {"inputs_embeds": embeddings(), "token_type_ids": batch()["token_type_ids"]})


@pytest.mark.parametrize("padded", ["no_mask", "right", "left", "holes"])
def test_position_ids(padded):
    check(padding(padded), {**batch(), "position_ids": positions()})


@pytest.mark.parametrize("padded", ["no_mask", "holes"])
@pytest.mark.parametrize("shape", ["one_row", "one_dimension"])
def test_position_ids_shared_by_the_batch(shape, padded):
    row = positions()[:1]
    given = row if shape == "one_row" else row[0]
    check(padding(padded), {**batch(), "position_ids": given}, {**batch(), "position_ids": row})


@pytest.mark.parametrize("padded", ["no_mask", "holes"])
def test_token_type_ids_default_to_row_0_which_still_adds(padded):
    ids = {"input_ids": batch()["input_ids"]}
    check(padding(padded), ids)
    model = ours()
    before = model(**ids)[0]
    assert torch.equal(before, model(**ids, token_type_ids=torch.zeros(B, S, dtype=torch.long))[0])
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight[0] += torch.randn(H)
    assert (model(**ids)[0] - before).abs().max() > 0.1


def test_inputs_embeds_get_their_gradient():
    mine, theirs = twins()
    grads = []
    for model, dtype in ((mine, torch.float32), (theirs, torch.float32), (double(theirs), torch.float64)):
        given = embeddings().to(dtype).requires_grad_()
        output = model(inputs_embeds=given, attention_mask=padding("holes"))
        (output[0] * torch.linspace(-1, 1, H, dtype=dtype))[padding("holes").bool()].sum().backward()
        grads.append(given.grad)
    assert (grads[0][~padding("holes").bool()] == 0).all()
    assert_close_to_truth(*grads, torch.float32, S)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_integer_ids_of_either_width(dtype):
    arguments = batch(padding("right"))
    expected = ours()(**arguments)
    output = ours()(**{k: v.to(dtype) for k, v in arguments.items()})
    assert torch.equal(output[0], expected[0])


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "offset"])
def test_non_contiguous_inputs(layout):
    given, mask = batch(), padding("holes")
    expected = ours()(**given, attention_mask=mask)
    views = {
        "transposed": lambda x: x.t().contiguous().t(),
        "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
        "expanded": lambda x: x.unsqueeze(0).expand(2, B, S)[1],
        "offset": lambda x: torch.cat([x.new_zeros(1, S), x])[1:],
    }
    output = ours()(**{k: views[layout](v) for k, v in {**given, "attention_mask": mask}.items()})
    assert torch.equal(output[0], expected[0])
    assert torch.equal(output[1], expected[1])


# Packed batches


def packed(types=True):
    given = batch()
    ids = [given["input_ids"][row, :length].tolist() for row, length in enumerate(LENGTHS)]
    kinds = [given["token_type_ids"][row, :length].tolist() for row, length in enumerate(LENGTHS)]
    return PackedBatch.from_sequences(ids, kinds if types else None)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("types", [True, False], ids=["types", "no_types"])
def test_packed_batch_in_packed_rows_out(types, grad):
    model, mask = ours(), padding("right")
    given = batch(mask)
    if not types:
        del given["token_type_ids"]
    with torch.set_grad_enabled(grad):
        padded, output = model(**given, output_hidden_states=True), model(packed(types), output_hidden_states=True)
    assert output.last_hidden_state.shape == (sum(LENGTHS), H)
    assert torch.equal(output.last_hidden_state, padded.last_hidden_state[mask.bool()])
    assert torch.equal(output.pooler_output, padded.pooler_output)
    for got, want in zip(output.hidden_states, padded.hidden_states, strict=True):
        assert torch.equal(got, want[mask.bool()])


@pytest.mark.parametrize("name", HEADS)
def test_packed_batch_through_every_head(name):
    """The same numbers, losses and gradients as the padded batch; token-level labels are packed as the ids are."""
    if name == "BertForMultipleChoice":
        options, labels = {"num_choices": 3}, labels_of(name)
    else:
        options, labels = {}, labels_of(name)
    mask = padding("right").bool()
    hidden_labels = {k: v.masked_fill(~mask, -100) if v.shape == (B, S) else v for k, v in labels.items()}
    padded_model, packed_model = twins(name)[0], twins(name)[0]
    if name == "BertForQuestionAnswering":
        options_padded = {"hidden_positions": "zero"}
        hidden_labels = {k: torch.tensor([0, 3, 99, 0, 15, 2]) for k in labels}
        labels = hidden_labels
    else:
        options_padded = {}
    padded = padded_model(**shaped(name, {**batch(mask.long()), **hidden_labels}), **options_padded)
    rows = {k: v[mask] if v.shape == (B, S) else v for k, v in hidden_labels.items()}
    output = packed_model(packed(), **rows, **options)
    assert torch.allclose(output.loss, padded.loss, rtol=1e-6, atol=0)
    for key in list(output.keys())[1:]:
        want = padded[key][mask] if padded[key].shape[:2] == (B, S) else padded[key]
        assert torch.equal(output[key], want), key
    output.loss.backward()
    padded.loss.backward()
    for (key, got), want in zip(packed_model.named_parameters(), padded_model.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key
        assert got.grad is None or torch.allclose(got.grad, want.grad, rtol=1e-4, atol=1e-6), key


def test_packed_batch_with_inputs_embeds():
    model, mask = ours(), padding("right").bool()
    base = packed()
    rows = PackedBatch(
        input_ids=None,
        cu_seqlens=base.cu_seqlens,
        max_seqlen=base.max_seqlen,
        position_ids=base.position_ids,
        token_type_ids=base.token_type_ids,
        inputs_embeds=embeddings()[mask],
    )
    padded = model(inputs_embeds=embeddings(), attention_mask=mask, token_type_ids=batch()["token_type_ids"])
    assert torch.equal(model(rows)[0], padded[0][mask])


@pytest.mark.parametrize("sequences", [[[5, 6], [], [7]], [[], [5, 6]], [[5], []]], ids=str)
def test_an_empty_sequence_in_a_packed_batch_changes_nothing(sequences):
    model = ours()
    output = model(PackedBatch.from_sequences(sequences))
    full = model(PackedBatch.from_sequences([s for s in sequences if s]))
    assert torch.equal(output[0], full[0])
    assert torch.allclose(output[1][[bool(s) for s in sequences]], full[1], rtol=0, atol=1e-6)
    assert output[1].isfinite().all()


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_packed_batch_without_tokens(sequences, grad):
    with torch.set_grad_enabled(grad):
        output = ours()(PackedBatch.from_sequences(sequences))
    assert output[0].shape == (0, H)
    assert output[1].shape == (len(sequences), H)
    assert output[1].isfinite().all()


@pytest.mark.parametrize("padded", ["no_mask", "right"])
@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_an_empty_batch(name, padded):
    arguments = {k: v[:0] for k, v in shaped(name, batch(padding(padded))).items()}
    output = twins(name)[0](**arguments)
    assert all(v.shape[0] == 0 for v in output.values())


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification", "BertForSequenceClassification"])
def test_a_batch_with_every_token_hidden_still_gives_every_parameter_a_gradient(name):
    """Else DistributedDataParallel waits forever for the parameters that one rank did not use."""
    used, empty = ours(name), ours(name)
    used(**batch(padding("right"))).logits.sum().backward()
    empty(**batch(padding("all_rows_masked"))).logits.sum().backward()
    for (key, want), got in zip(used.named_parameters(), empty.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key


# Refusals


@pytest.mark.parametrize("bad, shown", [(-1, -1), (V, V)], ids=["below", "above"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_ids_outside_their_table_are_named_with_the_tables_size(bad, shown, grad):
    tables = {"input_ids": V, "position_ids": P, "token_type_ids": 2}
    for name, rows in tables.items():
        arguments = {**batch(padding("holes")), "position_ids": positions()}
        arguments[name] = arguments[name].clone()
        arguments[name][0, 0] = bad
        with torch.set_grad_enabled(grad), pytest.raises(IndexError, match=f"{name} holds {shown}.*{rows} rows"):
            ours()(**arguments)


def test_a_bad_id_on_a_hidden_place_is_not_read():
    """Padding may be any number, -100 as well."""
    arguments, mask = batch(padding("right")), padding("right").bool()
    expected = ours()(**arguments)[0]
    arguments["input_ids"] = arguments["input_ids"].masked_fill(~mask, -100)
    assert torch.equal(ours()(**arguments)[0], expected)


@pytest.mark.parametrize("kind", ["input_ids", "inputs_embeds"])
def test_a_sequence_longer_than_the_positions_is_refused(kind):
    given = torch.zeros(1, P + 1, dtype=torch.long) if kind == "input_ids" else torch.zeros(1, P + 1, H)
    with pytest.raises(ValueError, match=f"{P + 1} tokens long.*{P}.*max_position_embeddings"):
        ours()(**{kind: given})


def test_a_sequence_of_exactly_the_positions_runs():
    given = torch.randint(0, V, (2, P))
    mine, theirs = twins()
    assert (mine(given)[0] - theirs(given)[0]).abs().max() < 1e-4


def test_a_packed_sequence_longer_than_the_positions_is_refused():
    with pytest.raises(IndexError, match="position_ids holds 40, .*40 rows"):
        ours()(PackedBatch.from_sequences([[1] * (P + 1)]))


@pytest.mark.parametrize("length", [0])
def test_a_batch_of_sequences_without_a_token(length):
    """transformers fails on it; here it gives an empty tensor, and zeros where the pooler has nothing to read."""
    output = ours()(torch.zeros(B, length, dtype=torch.long))
    assert output[0].shape == (B, 0, H)
    assert output[1].shape == (B, H)
    assert output[1].isfinite().all()


REFUSED = {
    "nothing": ({}, "exactly one of input_ids and inputs_embeds"),
    "both": ({"input_ids": torch.zeros(2, 3, dtype=torch.long), "inputs_embeds": torch.zeros(2, 3, H)}, "exactly one"),
    "ids_of_1_dimension": ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"input_ids must be \[B, S\], not \[3\]"),
    "embeds_of_2_dimensions": ({"inputs_embeds": torch.zeros(3, H)}, r"inputs_embeds must be \[B, S, H\], not \[3,"),
    "types_of_another_shape": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "token_type_ids": torch.zeros(2, 4, dtype=torch.long)},
        r"token_type_ids must be \[2, 3\].*not \[2, 4\]",
    ),
    "positions_of_another_shape": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "position_ids": torch.zeros(3, 3, dtype=torch.long)},
        r"position_ids must be \[2, 3\].*not \[3, 3\]",
    ),
    "float_ids": ({"input_ids": torch.zeros(2, 3)}, "input_ids must be int32 or int64, not torch.float32"),
    "bool_types": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "token_type_ids": torch.zeros(2, 3, dtype=torch.bool)},
        "token_type_ids must be int32 or int64, not torch.bool",
    ),
    "hidden_positions": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "hidden_positions": "one"},
        "hidden_positions must be one of .*'one'",
    ),
    "past_key_values": ({"input_ids": torch.zeros(2, 3, dtype=torch.long), "past_key_values": ()}, "past_key_values"),
    "head_mask": ({"input_ids": torch.zeros(2, 3, dtype=torch.long), "head_mask": torch.ones(2, 4)}, "head_mask"),
    "encoder_hidden_states": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "encoder_hidden_states": torch.ones(2, 3, H)},
        "encoder_hidden_states is not supported",
    ),
    "encoder_attention_mask": (
        {"input_ids": torch.zeros(2, 3, dtype=torch.long), "encoder_attention_mask": torch.ones(2, 3)},
        "encoder_attention_mask is not supported",
    ),
    "use_cache": ({"input_ids": torch.zeros(2, 3, dtype=torch.long), "use_cache": True}, "use_cache=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_cannot_be_honoured_are_named(case):
    arguments, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        ours()(**arguments)


@pytest.mark.parametrize("name", ["BertModel", *HEADS])
def test_unsupported_and_unknown_arguments_are_named_by_every_class(name):
    model, arguments = twins(name)[0], shaped(name, batch())
    with pytest.raises(ValueError, match="head_mask is not supported"):
        model(**arguments, head_mask=torch.ones(2, 4))
    with pytest.raises(TypeError, match="unexpected keyword argument 'frobnicate'"):
        model(**arguments, frobnicate=1)
    harmless = model(**arguments, head_mask=None, past_key_values=None, use_cache=False)
    assert torch.equal(harmless[0], model(**arguments)[0])


@pytest.mark.parametrize("setting", ["is_decoder", "add_cross_attention"])
def test_a_config_of_a_decoder_is_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=True is not supported"):
        bert_fast.BertModel(bert_fast.BertConfig(**{**TINY, setting: True}))


def test_a_config_of_another_class_is_refused():
    import transformers

    with pytest.raises(TypeError, match="config must be a bert_fast.BertConfig"):
        bert_fast.BertModel(transformers.BertConfig(**TINY))


@pytest.mark.parametrize("argument", ["attention_mask", "token_type_ids", "position_ids", "inputs_embeds"])
def test_a_packed_batch_takes_no_tensors_beside_it(argument):
    with pytest.raises(ValueError, match="PackedBatch takes no mask, ids or embeddings"):
        ours()(packed(), **{argument: torch.ones(B, S, dtype=torch.long)})


def test_a_packed_batch_gives_no_attentions():
    with pytest.raises(ValueError, match="no output_attentions"):
        ours()(packed(), output_attentions=True)


BROKEN = {
    "cu_seqlens_end_before_the_tokens": ({"cu_seqlens": [0, 4, 8]}, "cu_seqlens"),
    "cu_seqlens_end_beyond_the_tokens": ({"cu_seqlens": [0, 4, 12]}, "cu_seqlens"),
    "cu_seqlens_start_above_0": ({"cu_seqlens": [1, 4, 10]}, "cu_seqlens"),
    "cu_seqlens_fall": ({"cu_seqlens": [0, 7, 4, 10]}, "cu_seqlens"),
    "cu_seqlens_of_no_dimension": ({"cu_seqlens": 10}, "cu_seqlens"),
    "max_seqlen_too_small": ({"max_seqlen": 3}, "max_seqlen"),
    "ids_of_2_dimensions": ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "input_ids"),
    "position_ids_too_few": ({"position_ids": torch.arange(9)}, "position_ids"),
    "token_type_ids_too_many": ({"token_type_ids": torch.zeros(11, dtype=torch.long)}, "token_type_ids"),
    "no_ids_at_all": ({"input_ids": None}, "input_ids"),
    "ids_and_embeds": ({"inputs_embeds": torch.zeros(10, H)}, "input_ids"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_packed_batch_is_named(case):
    changes, message = BROKEN[case]
    good = {"input_ids": torch.arange(10), "cu_seqlens": [0, 4, 10], "max_seqlen": 6, "position_ids": torch.arange(10)}
    fields = {**good, **changes}
    fields["cu_seqlens"] = torch.tensor(fields["cu_seqlens"], dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        ours()(PackedBatch(**fields))


@pytest.mark.parametrize("shape", [(B, S - 1), (B * S,), (B,)], ids=str)
@pytest.mark.parametrize("padded", ["no_mask", "right"])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification"])
def test_token_labels_of_the_wrong_shape_are_named(name, padded, shape):
    labels = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels must .*\[6, 17\], not"):
        ours(name)(**batch(padding(padded)), labels=labels)
