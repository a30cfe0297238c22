"""Pairs of models with the same weights, ours and transformers', and the batches that tests feed them.

Dimensions are tiny but awkward: a head size of 12, sizes that are no powers of two, and weights large enough that a
wrong mask, bias or row changes the output by far more than rounding does.
"""

import copy
import functools

import torch
import transformers

import bert_fast

TINY = {
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 90,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
)
HEADS = CLASSES[1:]
B, S, CHOICES = 6, 17, 3
LENGTHS = (17, 5, 9, 1, 16, 8)


def config(**changes):
    return bert_fast.BertConfig(**{**TINY, **changes})


@torch.no_grad()
def randomize(model, std=0.2, seed=0):
    """Weights of a scale at which every part of the model matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std
        parameter.copy_(noise + 1 if name.endswith("LayerNorm.weight") else noise)
    return model


def ours(name="BertModel", *, seed=0, **changes):
    """One of our models with random weights, in eval mode."""
    return randomize(getattr(bert_fast, name)(config(**changes)), seed=seed).eval()


@functools.cache
def _template(name, changes):
    mine = ours(name, **dict(changes))
    settings = {**TINY, **dict(changes)}
    settings.pop("hidden_positions", None)
    theirs = getattr(transformers, name)(transformers.BertConfig(**settings))
    report = theirs.load_state_dict(mine.state_dict(), strict=False)
    assert not report.missing_keys and not report.unexpected_keys, report
    theirs.tie_weights()
    return mine, theirs.eval()


def twins(name="BertModel", *, dtype=torch.float32, train=False, attention="sdpa", **changes):
    """``(ours, theirs)`` with equal weights; with ``train`` in training mode."""
    mine, theirs = (copy.deepcopy(m).to(dtype).train(train) for m in _template(name, tuple(sorted(changes.items()))))
    theirs.set_attn_implementation(attention)
    return mine, theirs


def double(model):
    """The model in float64, with the weights as its own dtype rounded them: the truth."""
    return copy.deepcopy(model).double()


def _lengths_to_mask(lengths=LENGTHS, seqlen=S):
    return torch.arange(seqlen)[None] < torch.tensor(lengths)[:, None]


def _holes():
    mask = _lengths_to_mask()
    mask[0, 3:6] = mask[2, 0] = mask[4, 15] = mask[5, ::2] = False
    return mask


def _both_sides():
    mask = torch.zeros(B, S, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        start = (S - length) // 2
        mask[row, start : start + length] = True
    return mask


def _masked_row():
    mask = _lengths_to_mask()
    mask[1] = False
    return mask


PADDINGS = {
    "no_mask": lambda: None,
    "no_padding": lambda: torch.ones(B, S, dtype=torch.bool),
    "right": _lengths_to_mask,
    "left": lambda: _lengths_to_mask().flip(1),
    "both_sides": _both_sides,
    "holes": _holes,
    "one_row_all_masked": _masked_row,
    "all_rows_masked": lambda: torch.zeros(B, S, dtype=torch.bool),
    "one_token_each": lambda: _lengths_to_mask([1] * B),
}


def padding(name):
    """int64 ``[B, S]``, or None for "no_mask"."""
    mask = PADDINGS[name]()
    return None if mask is None else mask.long()


def batch(mask=None, seed=1):
    """Keyword arguments of a forward pass: ids, types and the mask if there is one."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "input_ids": torch.randint(0, TINY["vocab_size"], (B, S), generator=generator),
        "token_type_ids": torch.randint(0, 2, (B, S), generator=generator),
    }
    return arguments if mask is None else {**arguments, "attention_mask": mask}


def labels_of(name, num_labels=2, seed=2):
    """Labels that exercise the head's loss, some of them on hidden places."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high, shape):
        return torch.randint(0, high, shape, generator=generator)

    def masked(high):
        return draw(high, (B, S)).masked_fill(torch.rand(B, S, generator=generator) < 0.6, -100)

    if name == "BertForPreTraining":
        return {"labels": masked(TINY["vocab_size"]), "next_sentence_label": draw(2, (B,))}
    if name == "BertForMaskedLM":
        return {"labels": masked(TINY["vocab_size"])}
    if name == "BertForTokenClassification":
        return {"labels": masked(num_labels)}
    if name == "BertForQuestionAnswering":
        start, end = [0, 3, 99, 1, 16, 2], [0, 4, 99, 16, 16, 2]
        return {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    if name == "BertForMultipleChoice":
        return {"labels": draw(CHOICES, (B // CHOICES,))}
    if name in ("BertForNextSentencePrediction", "BertForSequenceClassification"):
        return {"labels": draw(num_labels, (B,))}
    return {}


def shaped(name, arguments):
    """``[B, S]`` tensors as ``[B / choices, choices, S]`` for multiple choice, which alone wants them so."""
    if name != "BertForMultipleChoice":
        return arguments
    return {k: v.unflatten(0, (B // CHOICES, CHOICES)) if v.shape[:2] == (B, S) else v for k, v in arguments.items()}


def read_places(tensor, visible, everywhere=False):
    """The part of an output on which parity is claimed: all of it, or the visible places of ``[B, S, ...]``."""
    return tensor[visible] if not everywhere and tensor.shape[:2] == visible.shape else tensor
