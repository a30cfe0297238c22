"""What a layer keeps for its backward pass, in bytes over the hidden size, for each visible token."""

import pytest
import torch

import bert_fast
from benchmarks.training_memory import SIZES, per_token_and_layer, saved_bytes

transformers = pytest.importorskip("transformers")
# float32, feed-forward of 4 hidden sizes: its input and both sides of GELU (1 + 4 + 4), q, k, v and attention's result
# (4), the two inputs of LayerNorm (2), and attention's input (1): 16 of 4 bytes; and a few numbers for each row.
KERNELS = 64 + 1


def test_a_layer_on_the_kernels_keeps_sixteen_rows_whatever_dropout_and_padding():
    """Dropout masks are drawn again, not kept; attention keeps no probabilities; padding keeps nothing."""
    half_padding = per_token_and_layer(bert_fast, 0.1, 0.5, backend="triton")
    assert 60 < half_padding <= KERNELS
    assert half_padding == per_token_and_layer(bert_fast, 0.0, 1.0, backend="triton")
    assert per_token_and_layer(transformers, 0.1) > 1.5 * half_padding
    assert per_token_and_layer(transformers, 0.1, 0.5) > 3 * half_padding


def test_in_bfloat16_a_row_has_two_bytes():
    """Under autocast LayerNorm gives float32, as PyTorch's does."""
    assert per_token_and_layer(bert_fast, 0.1, 0.5, backend="triton", precision="bfloat16") <= KERNELS / 2
    autocast = per_token_and_layer(bert_fast, 0.1, backend="triton", precision="autocast")
    assert autocast <= 61 < per_token_and_layer(transformers, 0.1, precision="autocast") / 1.9


def test_a_layer_in_pytorchs_ops_keeps_what_transformers_does_but_for_padding():
    """In the CPU's training."""
    ours, theirs = (per_token_and_layer(library, 0.1) for library in (bert_fast, transformers))
    assert ours <= 1.01 * theirs
    ours, theirs = (per_token_and_layer(library, 0.1, 0.5) for library in (bert_fast, transformers))
    assert ours <= 0.51 * theirs


def test_checkpointing_keeps_a_layers_input_alone():
    """A row of 4 bytes."""
    assert per_token_and_layer(bert_fast, 0.1, 0.5, checkpointing=True) <= 4 + 0.5


def test_without_logits_none_are_kept():
    """``return_logits=False``: a token more keeps hidden sizes, not the vocabulary."""
    vocabulary = 5000
    model = bert_fast.BertForMaskedLM(bert_fast.BertConfig(**{**SIZES, "vocab_size": vocabulary}, num_hidden_layers=1))

    def kept(tokens, return_logits):
        ids = torch.randint(1, 100, (tokens // 32, 32))
        return saved_bytes(model, lambda: model(ids, labels=ids, return_logits=return_logits))

    more = {wanted: (kept(256, wanted) - kept(64, wanted)) / 192 for wanted in (True, False)}
    assert more[True] >= 4 * vocabulary
    assert more[False] <= 2 * KERNELS * SIZES["hidden_size"]
