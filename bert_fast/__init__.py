"""bert_fast: the fastest way to run and train the BERTs people already have."""

import importlib
from typing import TYPE_CHECKING, Any

from bert_fast import extension

if TYPE_CHECKING:
    from bert_fast.backend import BackendError, use_backend
    from bert_fast.config import BertConfig
    from bert_fast.encode import Encoder
    from bert_fast.extension import build_info
    from bert_fast.integrations import accelerate, explain, restore, verify
    from bert_fast.models import (
        BertForMaskedLM,
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertModel,
    )
    from bert_fast.ops.linear import set_cpu_linear
    from bert_fast.packing import PackedBatch
    from bert_fast.tokenizer import Tokenizer
    from bert_fast.warming import warmup

_HOMES = {
    "bert_fast.backend": ("BackendError", "use_backend"),
    "bert_fast.config": ("BertConfig",),
    "bert_fast.encode": ("Encoder",),
    "bert_fast.extension": ("build_info",),
    "bert_fast.integrations": ("accelerate", "explain", "restore", "verify"),
    "bert_fast.models": (
        "BertForMaskedLM",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "BertForPreTraining",
        "BertForQuestionAnswering",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertModel",
    ),
    "bert_fast.ops.linear": ("set_cpu_linear",),
    "bert_fast.packing": ("PackedBatch",),
    "bert_fast.tokenizer": ("Tokenizer",),
    "bert_fast.warming": ("warmup",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackendError",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "Encoder",
    "PackedBatch",
    "Tokenizer",
    "accelerate",
    "build_info",
    "explain",
    "restore",
    "set_cpu_linear",
    "use_backend",
    "verify",
    "warmup",
]

extension.require_installed()


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that `bert-fast --help` need not wait for PyTorch.
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'bert_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
