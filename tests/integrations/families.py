"""The models of transformers that tests accelerate: tiny, awkward, with weights at which every part of them matters."""

import copy
import functools

import torch
import transformers
from twins import TINY, B, S

CHOICES, VOCAB = 3, TINY["vocab_size"]
_DISTIL = {
    "vocab_size": VOCAB,
    "dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 90,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "qa_dropout": 0.0,
}
FAMILIES = {
    "Bert": ("BertConfig", TINY),
    "Roberta": ("RobertaConfig", {**TINY, "pad_token_id": 1}),
    "XLMRoberta": ("XLMRobertaConfig", {**TINY, "pad_token_id": 1}),
    "Camembert": ("CamembertConfig", {**TINY, "pad_token_id": 1}),
    "Electra": ("ElectraConfig", {**TINY, "embedding_size": 28, "summary_last_dropout": 0.0}),
    "DistilBert": ("DistilBertConfig", _DISTIL),
    "MPNet": ("MPNetConfig", {**TINY, "pad_token_id": 1}),
    "Albert": ("AlbertConfig", {**TINY, "embedding_size": 28, "classifier_dropout_prob": 0.0}),
}
if int(transformers.__version__.split(".")[0]) >= 5:
    _MODERN = {"num_hidden_layers": 3, "local_attention": 6, "pad_token_id": 1, "cls_token_id": 2}
    FAMILIES |= {
        name: (f"{name}Config", {**TINY, **settings})
        for name, settings in (("Gte", {}), ("NomicBert", {}), ("ModernBert", _MODERN))
        if hasattr(transformers, f"{name}Model")
    }
WITHOUT_TYPES = ("DistilBert", "MPNet", "ModernBert")
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForPreTraining",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
CLASSES = [family + head for family in FAMILIES for head in HEADS if hasattr(transformers, family + head)]


def family_of(name):
    return next(f for f in sorted(FAMILIES, key=len, reverse=True) if name.startswith(f))


@functools.cache
def _template(name, changes):
    config_class, settings = FAMILIES[family_of(name)]
    config = getattr(transformers, config_class)(**{**settings, **dict(changes)})
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if "norm.weight" in parameter_name.lower() else noise)
    return model


def model(name="BertModel", **changes):
    """A model of transformers with random weights, in eval mode, new at every call."""
    return copy.deepcopy(_template(name, tuple(sorted(changes.items()))))


def every_kind_of_padding():
    """int64 ``[B, S]``: a row without padding, padding right, left, on both sides, holes, one token."""
    mask = torch.ones(B, S, dtype=torch.int64)
    mask[1, 5:] = 0
    mask[2, :8] = 0
    mask[3, :4] = mask[3, 12:] = 0
    mask[4, 3:6] = mask[4, 15] = 0
    mask[5, 1:] = 0
    return mask


def batch(name="BertModel", mask=None):
    """Keyword arguments of a forward pass; ids at hidden places are padding ids for those that count from them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (B, S), generator=generator)
    arguments = {"input_ids": ids}
    if family_of(name) not in WITHOUT_TYPES:
        arguments["token_type_ids"] = torch.randint(0, 2, (B, S), generator=generator)
    if mask is not None:
        arguments["attention_mask"] = mask
        arguments["input_ids"] = ids.masked_fill(mask == 0, 1)
    return shaped(name, arguments)


def labels(name, num_labels=2):
    """Labels that exercise the head's loss, some of them at hidden places."""
    generator = torch.Generator().manual_seed(2)

    def draw(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    some = draw(2, B, S) == 0
    if name == "ElectraForPreTraining":
        return {"labels": draw(2, B, S)}
    if name == "AlbertForPreTraining":
        return {"labels": draw(VOCAB, B, S).masked_fill(some, -100), "sentence_order_label": draw(2, B)}
    if name.endswith("ForPreTraining"):
        return {"labels": draw(VOCAB, B, S).masked_fill(some, -100), "next_sentence_label": draw(2, B)}
    if name.endswith("ForMaskedLM"):
        return {"labels": draw(VOCAB, B, S).masked_fill(some, -100)}
    if name.endswith("ForTokenClassification"):
        return {"labels": draw(num_labels, B, S).masked_fill(some, -100)}
    if name.endswith("ForQuestionAnswering"):
        return {"start_positions": draw(S, B), "end_positions": draw(S, B)}
    if name.endswith("ForMultipleChoice"):
        return {"labels": draw(CHOICES, B // CHOICES)}
    if name.endswith(("ForNextSentencePrediction", "ForSequenceClassification")):
        return {"labels": draw(num_labels, B)}
    return {}


def shaped(name, arguments):
    """``[B, S, ...]`` as ``[B / choices, choices, S, ...]`` for multiple choice, which alone wants them so."""
    if not name.endswith("ForMultipleChoice"):
        return arguments
    return {k: v.unflatten(0, (B // CHOICES, CHOICES)) if v.shape[:2] == (B, S) else v for k, v in arguments.items()}


def encoder_of(module):
    """The one accelerated encoder in ``module``, as what stands in for its forward."""
    from bert_fast.integrations.live import Live

    (live,) = (m.__dict__["forward"] for m in module.modules() if isinstance(m.__dict__.get("forward"), Live))
    return live
