"""Models whose tensors have shapes but no values, on the meta device or fake: what comes out, and the gradients."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from twins import CLASSES, B, S, batch, config, labels_of, ours, padding, shaped

import bert_fast
from bert_fast import PackedBatch


@contextlib.contextmanager
def without_values(kind):
    with contextlib.ExitStack() as stack:
        if kind == "fake":
            stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.device("meta" if kind == "meta" else "cpu"))
        yield


def empty_like(arguments):
    return {key: torch.empty(value.shape, dtype=value.dtype) for key, value in arguments.items()}


def facts(output):
    return {key: (tuple(x.shape), x.dtype) for key, x in output.items() if isinstance(x, torch.Tensor)}


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("mask", ["no_mask", "right"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_model_gives_the_shapes_of_a_real_batch(name, mask, kind):
    arguments = shaped(name, {**batch(padding(mask)), **labels_of(name)})
    want = ours(name)
    real = want(**arguments)
    if "loss" in real:
        real.loss.backward()
    with without_values(kind):
        model = getattr(bert_fast, name)(config()).train()
        output = model(**empty_like(arguments))
        assert facts(output) == facts(real)
        if "loss" in real:
            output.loss.backward()
            grads = [None if p.grad is None else p.grad.shape for p in model.parameters()]
            assert grads == [None if p.grad is None else p.grad.shape for p in want.parameters()]


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_other_ways_in_and_out(kind):
    arguments = {**batch(padding("right")), **labels_of("BertForMaskedLM")}
    with without_values(kind):
        given = empty_like(arguments)
        model = bert_fast.BertForMaskedLM(config())
        loss = model(**given, return_logits=False).loss
        loss.backward()
        assert loss.shape == () and model.cls.predictions.bias.grad.shape == (101,)
        del given["labels"]
        output = model.bert(**given, output_attentions=True, output_hidden_states=True)
        assert output.attentions[1].shape == (B, 4, S, S) and len(output.hidden_states) == 3
        additive = torch.empty(B, 1, S, S)
        assert model.bert(given["input_ids"], attention_mask=additive).last_hidden_state.shape == (B, S, 48)
        ids, bounds = torch.empty(9, dtype=torch.int64), torch.empty(4, dtype=torch.int32)
        assert model.bert(PackedBatch(ids, bounds, 5, ids)).last_hidden_state.shape == (9, 48)
        if kind == "meta":  # PyTorch swaps no parameters that are fake
            assert model.half()(given["input_ids"]).logits.dtype == torch.float16
