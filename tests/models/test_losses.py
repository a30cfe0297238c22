"""Labels of every kind: which loss they mean, which of them count, and that reading one never changes its number."""

import math

import pytest
import torch
import torch.nn.functional as F
from twins import CHOICES, HEADS, LENGTHS, B, S, batch, labels_of, ours, padding, shaped, twins

from bert_fast import PackedBatch


def losses(name, labels, mask=None, **changes):
    """Ours and transformers'; the gradients are compared on the way."""
    options = {k: changes.pop(k) for k in ("hidden_positions",) if k in changes}
    results = []
    mine, theirs = twins(name, train=True, **changes)
    for model, extra in ((mine, options), (theirs, {})):
        output = model(**shaped(name, {**batch(mask), **labels}), **extra)
        output.loss.backward()
        results.append(output.loss.item())
    for (key, got), want in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None), key
        assert got.grad is None or torch.allclose(got.grad, want.grad, rtol=1e-3, atol=1e-5), key
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    return results[0]


FLOATS = torch.linspace(-1, 2, B)
INTEGERS = torch.tensor([0, 2, 1, 2, 0, 1])
SEVERAL = torch.arange(B * 3).view(B, 3) % 2
CLASSIFICATION = {
    "one_label_is_regression": ({"num_labels": 1}, FLOATS),
    "one_label_is_regression_with_labels_in_a_column": ({"num_labels": 1}, FLOATS[:, None]),
    "integers_are_a_single_label": ({"num_labels": 3}, INTEGERS),
    "floats_are_several_labels": ({"num_labels": 3}, SEVERAL.float()),
    "problem_type_regression_wins_over_integers": (
        {"num_labels": 3, "problem_type": "regression"},
        torch.randn(B, 3, generator=torch.Generator().manual_seed(0)),
    ),
    "problem_type_single_label_wins": ({"num_labels": 3, "problem_type": "single_label_classification"}, INTEGERS),
    "problem_type_multi_label_wins_over_one_label": (
        {"num_labels": 1, "problem_type": "multi_label_classification"},
        (FLOATS > 0).float()[:, None],
    ),
    "some_labels_ignored": ({"num_labels": 3}, INTEGERS.masked_fill(INTEGERS == 1, -100)),
}


@pytest.mark.parametrize("padded", ["right", "left"])
@pytest.mark.parametrize("case", CLASSIFICATION)
def test_sequence_classification(case, padded):
    changes, labels = CLASSIFICATION[case]
    # transformers writes what it guessed into the config; the template of the twins must not keep it.
    assert losses("BertForSequenceClassification", {"labels": labels}, padding(padded), **changes) > 0


def test_multi_label_is_binary_cross_entropy():
    model = ours("BertForSequenceClassification", num_labels=3)
    output = model(**batch(), labels=SEVERAL.float())
    expected = F.binary_cross_entropy_with_logits(output.logits, SEVERAL.float())
    assert torch.allclose(output.loss, expected)


def test_integers_serve_as_multi_labels_when_problem_type_says_so():
    model = ours("BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    output = model(**batch(), labels=SEVERAL)
    assert torch.allclose(output.loss, F.binary_cross_entropy_with_logits(output.logits, SEVERAL.float()))


def test_int32_labels_are_a_single_label():
    model = ours("BertForSequenceClassification", num_labels=3)
    assert torch.equal(model(**batch(), labels=INTEGERS.int()).loss, model(**batch(), labels=INTEGERS).loss)


def test_an_unknown_problem_type_is_named():
    model = ours("BertForSequenceClassification", problem_type="ranking")
    with pytest.raises(ValueError, match="problem_type must be .* not 'ranking'"):
        model(**batch(), labels=torch.zeros(B, dtype=torch.long))


def test_regression_on_a_single_row():
    changes = {"num_labels": 1}
    mine, theirs = twins("BertForSequenceClassification", **changes)
    arguments = {k: v[:1] for k, v in batch().items()}
    label = torch.tensor([0.3])
    assert torch.allclose(mine(**arguments, labels=label).loss, theirs(**arguments, labels=label).loss)


def test_next_sentence_label_0_is_next():
    model = ours("BertForNextSentencePrediction")
    output = model(**batch(), labels=torch.zeros(B, dtype=torch.long))
    assert torch.allclose(output.loss, -output.logits.log_softmax(-1)[:, 0].mean())


@pytest.mark.parametrize("given", ["labels", "next_sentence_label"])
def test_pretraining_has_a_loss_only_with_both_labels(given):
    labels = labels_of("BertForPreTraining")
    model = ours("BertForPreTraining")
    assert model(**batch(), **{given: labels[given]}).loss is None
    assert model(**batch(), **labels).loss is not None


ALL_IGNORED = {
    "BertForMaskedLM": {"labels": torch.full((B, S), -100)},
    "BertForTokenClassification": {"labels": torch.full((B, S), -100)},
    "BertForSequenceClassification": {"labels": torch.full((B,), -100)},
    "BertForNextSentencePrediction": {"labels": torch.full((B,), -100)},
    "BertForMultipleChoice": {"labels": torch.full((B // CHOICES,), -100)},
    "BertForPreTraining": {"labels": torch.full((B, S), -100), "next_sentence_label": torch.full((B,), -100)},
    "BertForQuestionAnswering": {"start_positions": torch.full((B,), S), "end_positions": torch.full((B,), S + 5)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ALL_IGNORED)
def test_all_ignored_labels_give_a_finite_loss_and_zero_gradients(name, dtype):
    model = ours(name).to(dtype).train()
    loss = model(**shaped(name, {**batch(padding("right")), **ALL_IGNORED[name]})).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_loss_over_many_rows_does_not_overflow_in_16_bits(dtype):
    """The sum of 7,000 rows' losses is beyond float16; the mean is not."""
    model = ours("BertForTokenClassification", num_labels=3).to(dtype)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([20.0, 0, 0]))
    ids = torch.randint(0, 101, (200, 35))
    loss = model(ids, labels=torch.ones_like(ids)).loss
    assert 15 < loss < 25


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification", "BertForPreTraining"])
@pytest.mark.parametrize("padded", ["right", "left", "holes", "one_row_all_masked"])
def test_a_label_on_a_hidden_position_is_computed_exactly(name, padded):
    """The default must never change a number that a user reads: labels of hidden places count as they always did."""
    mask = padding(padded)
    labels = labels_of(name)
    assert ((labels["labels"] != -100) & (mask == 0)).any()
    if padded != "one_row_all_masked":
        losses(name, labels, mask)
    zero, exact = (ours(name)(**batch(mask), **labels, hidden_positions=h).loss for h in ("zero", "exact"))
    assert torch.allclose(zero, exact, rtol=1e-6)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification"])
def test_logits_of_hidden_positions_are_zero_even_where_a_label_was_read(name):
    mask = padding("holes")
    output = ours(name)(**batch(mask), **labels_of(name))
    assert (output.logits[mask == 0] == 0).all()
    assert (output.logits[mask == 1] != 0).any(-1).all()


def test_labels_of_hidden_positions_do_not_change_other_positions():
    model, mask = ours("BertForTokenClassification"), padding("holes")
    with_labels = model(**batch(mask), **labels_of("BertForTokenClassification")).logits
    without = model(**batch(mask)).logits
    assert torch.allclose(with_labels, without, rtol=0, atol=2e-5)


# Losses without logits


@pytest.mark.parametrize("padded", ["no_mask", "right", "holes"])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_the_loss_without_logits_is_the_loss_with_them(name, padded):
    arguments = {**batch(padding(padded)), **labels_of(name)}
    results = []
    for options in ({}, {"return_logits": False}):
        model = ours(name).train()
        output = model(**arguments, **options)
        output.loss.backward()
        results.append((output, dict(model.named_parameters())))
    (want, expected), (got, found) = results
    vocabulary = "logits" if name == "BertForMaskedLM" else "prediction_logits"
    assert set(want) - set(got) == {vocabulary}
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=1e-6)
    for key, parameter in found.items():
        assert torch.allclose(parameter.grad, expected[key].grad, rtol=1e-4, atol=1e-6), key


def test_without_logits_a_replaced_decoder_is_called_and_not_read():
    model = ours("BertForMaskedLM")
    plain = model(**batch(), **labels_of("BertForMaskedLM"), return_logits=False).loss
    model.cls.predictions.decoder.register_forward_hook(lambda module, args, out: out * 0)
    changed = model(**batch(), **labels_of("BertForMaskedLM"), return_logits=False).loss
    assert changed.item() == pytest.approx(math.log(101), rel=1e-6) and plain != changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_logits_nothing_but_ignored_labels_gives_0_and_zero_gradients(dtype):
    model = ours("BertForMaskedLM").to(dtype).train()
    loss = model(**batch(), **ALL_IGNORED["BertForMaskedLM"], return_logits=False).loss
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_logits_inference_gives_the_loss_too(dtype):
    model = ours("BertForMaskedLM").to(dtype)
    with torch.no_grad():
        arguments = {**batch(padding("right")), **labels_of("BertForMaskedLM")}
        want, got = (model(**arguments, return_logits=logits).loss for logits in (True, False))
    assert got.item() == pytest.approx(want.item(), rel=1e-6 if dtype == torch.float32 else 1e-2)


def test_without_logits_it_compiles_fullgraph():
    torch._dynamo.reset()
    model = ours("BertForMaskedLM", num_hidden_layers=1).train()
    arguments = {**batch(padding("holes")), **labels_of("BertForMaskedLM"), "return_logits": False}
    losses, gradients = [], []
    for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        losses.append(function(**arguments).loss)
        losses[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(*losses, rtol=1e-5)
    for got, want in zip(*gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-5)


def test_without_logits_and_without_labels_nothing_is_left():
    with pytest.raises(ValueError, match="return_logits=False leaves nothing to return without labels"):
        ours("BertForMaskedLM")(**batch(), return_logits=False)
    with pytest.raises(ValueError, match="without next_sentence_label"):
        labels = labels_of("BertForMaskedLM")
        ours("BertForPreTraining")(**batch(), **labels, return_logits=False)


# Question answering

START, END = torch.tensor([0, 3, 2, 0, 15, 1]), torch.tensor([1, 4, 8, 0, 15, 7])


@pytest.mark.parametrize("padded", ["right", "left", "holes"])
@pytest.mark.parametrize(
    "positions",
    [(START, END), (START + 20, END), (START - 3, END), (START[:, None], END[:, None]), (START, torch.full((B,), S))],
    ids=["inside", "start_outside", "start_negative", "in_a_column", "end_just_outside"],
)
def test_question_answering_covers_padding_as_transformers_does(positions, padded):
    start, end = positions
    if (start >= S).all() or (end >= S).all():
        # transformers' mean over no rows is NaN: one row is brought inside.
        start, end = start.clone(), end.clone()
        start[0], end[0] = 1, 2
    losses("BertForQuestionAnswering", {"start_positions": start, "end_positions": end}, padding(padded))


def test_question_answering_zero_excludes_hidden_positions_from_the_softmax():
    model, mask = ours("BertForQuestionAnswering"), padding("right")
    output = model(**batch(mask), start_positions=START, end_positions=END, hidden_positions="zero")
    lowest = torch.finfo(torch.float32).min
    assert (output.start_logits[mask == 0] == lowest).all()
    assert (output.end_logits[mask == 0] == lowest).all()
    expected = []
    for logits, positions in ((output.start_logits, START), (output.end_logits, END)):
        rows = [logits[b, :length].log_softmax(0)[positions[b]] for b, length in enumerate(LENGTHS)]
        expected.append(-torch.stack(rows).mean())
    assert torch.allclose(output.loss, sum(expected) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_question_answering_zero_shows_the_lowest_number_of_the_dtype_where_hidden(grad, dtype):
    model, mask = ours("BertForQuestionAnswering").to(dtype), padding("right")
    with torch.set_grad_enabled(grad):
        output = model(**batch(mask), hidden_positions="zero")
    for logits in (output.start_logits, output.end_logits):
        assert logits.dtype == dtype
        assert (logits[mask == 0] == torch.finfo(dtype).min).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_question_answering_zero_ignores_an_answer_on_a_hidden_position(dtype):
    """It cannot be chosen: its logit is the dtype's minimum, and its loss would be a number without meaning."""
    model, mask = ours("BertForQuestionAnswering").to(dtype), padding("right")
    outside = START.clone()
    outside[1] = LENGTHS[1]  # the first hidden place
    ignored = START.clone()
    ignored[1] = S
    hidden, reference = (
        model(**batch(mask), start_positions=p, end_positions=END, hidden_positions="zero").loss
        for p in (outside, ignored)
    )
    assert torch.equal(hidden, reference)
    assert 0 < hidden < 100


def test_question_answering_of_a_packed_batch_ignores_an_answer_beyond_its_own_sequence():
    model = ours("BertForQuestionAnswering")
    packed = PackedBatch.from_sequences([[1, 2, 3, 4], [5, 6]])
    beyond, ignored = (
        model(packed, start_positions=torch.tensor([1, p]), end_positions=torch.tensor([1, 1])).loss for p in (2, 99)
    )
    assert torch.equal(beyond, ignored)
    assert 0 < beyond < 100


def test_question_answering_without_both_positions_has_no_loss():
    model = ours("BertForQuestionAnswering")
    assert model(**batch(), start_positions=START).loss is None
    assert model(**batch(), end_positions=END).loss is None


def test_question_answering_config_decides_and_the_call_wins():
    mask = padding("right")
    zero = ours("BertForQuestionAnswering", hidden_positions="zero")
    exact = ours("BertForQuestionAnswering")
    assert torch.equal(zero(**batch(mask)).start_logits, exact(**batch(mask), hidden_positions="zero").start_logits)
    assert torch.equal(zero(**batch(mask), hidden_positions="exact").start_logits, exact(**batch(mask)).start_logits)
    assert not torch.equal(zero(**batch(mask)).start_logits, exact(**batch(mask)).start_logits)


@pytest.mark.parametrize("num_choices", [None, 0, 4], ids=str)
def test_multiple_choice_of_a_packed_batch_needs_its_number_of_choices(num_choices):
    packed = PackedBatch.from_sequences([[1, 2]] * 6)
    with pytest.raises(ValueError, match="num_choices must divide the 6 sequences"):
        ours("BertForMultipleChoice")(packed, num_choices=num_choices)


def test_multiple_choice_refuses_two_dimensions():
    with pytest.raises(ValueError, match=r"input_ids must be \[B, choices, S\]"):
        ours("BertForMultipleChoice")(torch.zeros(2, 3, dtype=torch.long))


def test_multiple_choice_from_embeddings_positions_and_a_mask():
    mine, theirs = twins("BertForMultipleChoice")
    shape = (B // CHOICES, CHOICES, S)
    arguments = {
        "inputs_embeds": torch.randn(*shape, 48),
        "position_ids": torch.randint(0, 40, shape),
        "token_type_ids": torch.randint(0, 2, shape),
        "attention_mask": padding("right").view(shape),
        "labels": torch.tensor([2, 0]),
    }
    got, want = mine(**arguments), theirs(**arguments)
    assert torch.allclose(got.logits, want.logits, rtol=0, atol=1e-5)
    assert torch.allclose(got.loss, want.loss)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "BertForSequenceClassification"])
def test_labels_that_are_no_integers_are_refused_as_transformers_refuses_them(name):
    """Cut to integers they would train on other classes than were given."""
    labels = {key: value.float() for key, value in labels_of(name).items()}
    mine, theirs = twins(name)
    with pytest.raises(TypeError, match="must be integers, .*not torch.float32"):
        mine(**shaped(name, {**batch(), **labels}))
    with pytest.raises(RuntimeError, match="Long"):
        theirs(**shaped(name, {**batch(), **labels}))
