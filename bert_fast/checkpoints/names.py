"""The one table of tensor names: how other writers' names become Hugging Face's, and which of them are one.

A name of today's Hugging Face checkpoints maps to itself. Everything else that is accepted stands here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

PREFIX = "bert."
"""What the encoder's names begin with inside a model with a head. A bare encoder has the same names without it."""

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Where `tie_word_embeddings` is on, the left is the right: one tensor, often only once in the file."""

HEADS = {
    "BertForPreTraining": ("cls.predictions.", "cls.seq_relationship."),
    "BertForMaskedLM": ("cls.predictions.",),
    "BertForNextSentencePrediction": ("cls.seq_relationship.",),
    "BertForQuestionAnswering": ("qa_outputs.",),
    "BertForSequenceClassification": ("classifier.",),
    "BertForTokenClassification": ("classifier.",),
    "BertForMultipleChoice": ("classifier.",),
    "BertModel": (),
}
"""Which tensors, beside the encoder's, each architecture has. The first that matches names an unnamed checkpoint."""

WITHOUT_POOLER = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")


class Rule(NamedTuple):
    """A TensorFlow-1 name (a regular expression of all of it), its Hugging Face name, and whether it is transposed."""

    pattern: str
    name: str
    transposed: bool = False


_LAYER = r"bert/encoder/layer_(?P<layer>\d{1,5})"
_DENSE = r"(?P<dense>attention/self/(?:query|key|value)|attention/output/dense|intermediate/dense|output/dense)"
_BLOCK = r"(?P<block>attention/output|output)"

TENSORFLOW = (
    Rule(r"bert/embeddings/(?P<table>\w+)_embeddings", "bert.embeddings.{table}_embeddings.weight"),
    Rule("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight"),
    Rule("bert/embeddings/LayerNorm/beta", "bert.embeddings.LayerNorm.bias"),
    Rule(f"{_LAYER}/{_DENSE}/kernel", "bert.encoder.layer.{layer}.{dense}.weight", transposed=True),
    Rule(f"{_LAYER}/{_DENSE}/bias", "bert.encoder.layer.{layer}.{dense}.bias"),
    Rule(f"{_LAYER}/{_BLOCK}/LayerNorm/gamma", "bert.encoder.layer.{layer}.{block}.LayerNorm.weight"),
    Rule(f"{_LAYER}/{_BLOCK}/LayerNorm/beta", "bert.encoder.layer.{layer}.{block}.LayerNorm.bias"),
    Rule("bert/pooler/dense/kernel", "bert.pooler.dense.weight", transposed=True),
    Rule("bert/pooler/dense/bias", "bert.pooler.dense.bias"),
    Rule("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", transposed=True),
    Rule("cls/predictions/transform/dense/bias", "cls.predictions.transform.dense.bias"),
    Rule("cls/predictions/transform/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight"),
    Rule("cls/predictions/transform/LayerNorm/beta", "cls.predictions.transform.LayerNorm.bias"),
    Rule("cls/predictions/output_bias", "cls.predictions.bias"),
    Rule("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
    Rule("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
    Rule("cls/squad/output_weights", "qa_outputs.weight"),  # run_squad.py
    Rule("cls/squad/output_bias", "qa_outputs.bias"),
    Rule("output_weights", "classifier.weight"),  # run_classifier.py; stored as [labels, H], hence not transposed
    Rule("output_bias", "classifier.bias"),
)

# What training leaves beside the weights: slots of an optimizer, as the last part of a name, and lone counters.
_SLOT = re.compile(
    r".+/(?:adam_[mv]|lamb_[mv]|Adam(?:_1)?|AdamWeightDecayOptimizer(?:_1)?|Momentum|ExponentialMovingAverage)"
)
_COUNTER = re.compile(r"(?:.+/)?(?:global_step|beta[12]_power|good_steps|bad_steps|current_loss_scale|loss_scale)")

_LEGACY_LAYER_NORM = re.compile(r"(?P<module>(?:.+\.)?LayerNorm)\.(?P<kind>gamma|beta)")
_BUFFER = re.compile(r"(?:.+\.)?embeddings\.(?:position_ids|token_type_ids)")


def is_training_state(name: str) -> bool:
    """Whether a TensorFlow tensor belongs to the optimizer, not to the model."""
    return bool(_SLOT.fullmatch(name) or _COUNTER.fullmatch(name))


def is_buffer(name: str) -> bool:
    """Whether a tensor is a constant that older versions of `transformers` saved and nobody needs."""
    return bool(_BUFFER.fullmatch(name))


def from_tensorflow(name: str) -> tuple[str, bool] | None:
    """The Hugging Face name of a TensorFlow-1 tensor and whether it must be transposed; None if it has none."""
    for rule in TENSORFLOW:
        match = re.fullmatch(rule.pattern, name, re.ASCII)
        if match:
            parts = {key: value.replace("/", ".") for key, value in match.groupdict().items()}
            return rule.name.format(**parts), rule.transposed
    return None


def modern(name: str) -> str:
    """The name with the gamma and beta of early checkpoints replaced, which only a LayerNorm's end in."""
    match = _LEGACY_LAYER_NORM.fullmatch(name)
    return f"{match['module']}.{'weight' if match['kind'] == 'gamma' else 'bias'}" if match else name


def fit_prefix(name: str, expected: Collection[str], prefix: str = PREFIX) -> str:
    """The name as the model has it: unchanged, with the encoder's prefix, or without it; unchanged where none fits."""
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in expected:
            return candidate
    return name


def guess_architecture(names: Collection[str]) -> str:
    """The class whose heads a checkpoint has, by its Hugging Face names; "BertModel" where it has none."""
    for architecture, heads in HEADS.items():
        if all(any(name.startswith(head) for name in names) for head in heads):
            return architecture
    raise AssertionError("BertModel needs no head, so it always matches")


def expected(architecture: str, layers: int) -> list[str]:
    """Every name in the state of a model of this architecture (a key of HEADS), as Hugging Face orders them."""
    encoder = [f"embeddings.{table}_embeddings.weight" for table in ("word", "position", "token_type")]
    encoder += _both("embeddings.LayerNorm")
    for layer in range(layers):
        for module in _LAYER_MODULES:
            encoder += _both(f"encoder.layer.{layer}.{module}")
    if architecture not in WITHOUT_POOLER:
        encoder += _both("pooler.dense")
    if not HEADS[architecture]:
        return encoder
    heads = [name for head in HEADS[architecture] for name in _HEAD_TENSORS[head]]
    return [PREFIX + name for name in encoder] + heads


def _both(module: str) -> list[str]:
    return [f"{module}.weight", f"{module}.bias"]


_LAYER_MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_HEAD_TENSORS = {
    "cls.predictions.": [
        "cls.predictions.bias",
        *_both("cls.predictions.transform.dense"),
        *_both("cls.predictions.transform.LayerNorm"),
        *_both("cls.predictions.decoder"),
    ],
    "cls.seq_relationship.": _both("cls.seq_relationship"),
    "qa_outputs.": _both("qa_outputs"),
    "classifier.": _both("classifier"),
}
