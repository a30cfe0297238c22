"""Any configuration, batch and option, drawn by seed: outputs, losses and gradients against transformers."""

import random

import pytest
import torch
import transformers
from twins import randomize

import bert_fast

NAMES = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
POSITIONS = 40
PER_ROW = ("pooler_output", "seq_relationship_logits")


def draw_config(choose):
    heads = choose([1, 2, 3, 4])
    return {
        "vocab_size": choose([7, 50]),
        "hidden_size": heads * choose([1, 4, 8, 12, 20]),
        "num_attention_heads": heads,
        "num_hidden_layers": choose([1, 2, 3]),
        "intermediate_size": choose([1, 8, 33, 64]),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": choose([1, 2, 3]),
        "hidden_act": choose(["gelu", "gelu_new", "relu"]),
        "pad_token_id": choose([None, 0, 3]),
        "layer_norm_eps": choose([1e-12, 1e-5]),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def draw_batch(choose, settings, rows, length):
    """Arguments and which places are visible."""
    batch = {"input_ids": torch.randint(0, settings["vocab_size"], (rows, length))}
    if choose([True, False, False]):
        batch = {"inputs_embeds": torch.randn(rows, length, settings["hidden_size"])}
    if choose([True, False]):
        batch["token_type_ids"] = torch.randint(0, settings["type_vocab_size"], (rows, length))
    if choose([True, False, False]):
        batch["position_ids"] = torch.randint(0, POSITIONS, (choose([1, rows]), length))
    visible = torch.ones(rows, length, dtype=torch.bool)
    kind = choose(["none", "dense", "sparse", "4d", "broadcast"])
    if kind in ("dense", "sparse"):
        visible = torch.rand(rows, length) < {"dense": 0.8, "sparse": 0.2}[kind]
        visible[torch.arange(rows), torch.randint(0, length, (rows,))] = True
        batch["attention_mask"] = visible.long()
    elif kind == "4d":
        heads = choose([1, settings["num_attention_heads"]])
        batch["attention_mask"] = (torch.rand(rows, heads, length, length) < 0.6) | torch.eye(length, dtype=torch.bool)
    elif kind == "broadcast":
        batch["attention_mask"] = (torch.rand(rows, 1, 1, length) < 0.6) | (torch.arange(length) == 0)
    return batch, visible


def draw_labels(name, settings, rows, length):
    classes = 2 if name == "BertForTokenClassification" else settings["vocab_size"]
    labels = torch.randint(0, classes, (rows, length)).masked_fill(torch.rand(rows, length) < 0.5, -100)
    labels[0, 0] = 1
    if name == "BertForQuestionAnswering":
        return {f"{end}_positions": torch.randint(0, length, (rows,)) for end in ("start", "end")}
    if name == "BertForPreTraining":
        return {"labels": labels, "next_sentence_label": torch.randint(0, 2, (rows,))}
    return {} if name == "BertModel" else {"labels": labels}


@pytest.mark.parametrize("seed", range(40))
def test_any_model(seed):
    torch.manual_seed(seed)
    choose = random.Random(seed).choice
    name, settings = choose(NAMES), draw_config(choose)
    mine = randomize(getattr(bert_fast, name)(bert_fast.BertConfig(**settings)), std=0.3, seed=seed)
    theirs = getattr(transformers, name)(transformers.BertConfig(**settings))
    theirs.load_state_dict(mine.state_dict())
    theirs.tie_weights()
    rows, length = choose([1, 2, 5, 9]), choose([1, 2, 7, 19])
    batch, visible = draw_batch(choose, settings, rows, length)
    arguments = {**batch, **draw_labels(name, settings, rows, length), "output_hidden_states": choose([True, False])}
    hidden = choose(["zero", "exact"])
    if name == "BertForQuestionAnswering":
        hidden = "exact"  # whose loss covers padding
    if choose([True, False]):
        mine.eval()
        theirs.eval()
    want = theirs(**arguments)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            got = mine(**arguments, hidden_positions=hidden)
        assert list(got.keys()) == list(want.keys())
        for key in want:
            pairs = [(got[key], want[key])] if torch.is_tensor(got[key]) else zip(got[key], want[key], strict=True)
            for left, right in pairs:
                if hidden == "zero" and left.shape[:2] == visible.shape and key not in PER_ROW:
                    left, right = left[visible], right[visible]
                assert torch.allclose(left, right, rtol=2e-4, atol=2e-4), key
        if grad and "loss" in want:
            got.loss.backward()
            want.loss.backward()
            for (parameter, left), right in zip(mine.named_parameters(), theirs.parameters(), strict=True):
                assert (left.grad is None) == (right.grad is None), parameter
                if left.grad is not None:
                    scale = max(1, right.grad.abs().max().item())
                    assert (left.grad - right.grad).abs().max() <= 2e-3 * scale, parameter
