"""Warnings point at the line of whoever called this package, through the libraries that call it for them."""

import inspect
import threading
import warnings

import pytest
import torch
from twins import batch, ours

import bert_fast
from bert_fast import notices
from bert_fast.layers import quantized


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(quantized, "_told", set())


def here(caught, function):
    """The only warning points into ``function``, at the line that says so."""
    (warning,) = caught
    assert warning.filename == __file__
    lines, start = inspect.getsourcelines(function)
    assert "# this line" in lines[warning.lineno - start]


def of_transformers(name, **settings):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return getattr(transformers, name)(transformers.BertConfig(vocab_size=101, **sizes, **settings)).eval()


def test_a_call_that_runs_its_own_code():
    net = bert_fast.accelerate(of_transformers("BertForSequenceClassification", attn_implementation="eager"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net(**batch(), output_attentions=True)  # this line
    here(caught, test_a_call_that_runs_its_own_code)


def test_an_encoder_that_cannot_be_accelerated():
    net = of_transformers("BertModel", is_decoder=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bert_fast.accelerate(net)  # this line
    here(caught, test_an_encoder_that_cannot_be_accelerated)


def test_int8_that_is_left_aside():
    net = ours("BertForSequenceClassification", quantization="int8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.enable_grad()(net.forward)(**batch())  # this line
    here(caught, test_int8_that_is_left_aside)


def test_int8_that_is_for_some_of_the_layers(monkeypatch):
    monkeypatch.setattr(quantized, "quantization_reasons", lambda device: [])
    net = ours("BertForSequenceClassification", quantization="int8", hidden_act="relu")
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        net(**batch())  # this line
    here(caught, test_int8_that_is_for_some_of_the_layers)


def test_where_nobody_else_is_on_the_stack(monkeypatch):
    names = frozenset((__name__.partition(".")[0], "threading"))
    monkeypatch.setattr(notices, "_BETWEEN", notices._BETWEEN | names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=lambda: notices.warn("alone", UserWarning))
        thread.start()
        thread.join()
    (warning,) = caught
    assert (warning.filename, warning.category) == (__file__, UserWarning)
