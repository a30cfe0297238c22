"""The one table of adapters."""

from typing import Any

from bert_fast.integrations.adapter import Adapter, encoder_class
from bert_fast.integrations.albert import AlbertAdapter
from bert_fast.integrations.bert import BertAdapter
from bert_fast.integrations.distilbert import DistilBertAdapter
from bert_fast.integrations.electra import ElectraAdapter
from bert_fast.integrations.gte import RotaryAdapter
from bert_fast.integrations.modernbert import ModernBertAdapter
from bert_fast.integrations.mpnet import MPNetAdapter
from bert_fast.integrations.roberta import RobertaAdapter

ADAPTERS: tuple[Adapter, ...] = (
    BertAdapter(),
    RobertaAdapter(),
    ElectraAdapter(),
    DistilBertAdapter(),
    MPNetAdapter(),
    AlbertAdapter(),
    RotaryAdapter(),
    ModernBertAdapter(),
)

_HOME = "transformers.models."
_BY_CLASS = {_HOME + name: adapter for adapter in ADAPTERS for name in adapter.encoders}


def adapter_of(kind: Any) -> Adapter | None:
    """The adapter that knows modules of this class as encoders; None for all others."""
    home = encoder_class(kind)
    return _BY_CLASS.get(f"{home.__module__}.{home.__qualname__}")


def known() -> list[str]:
    """The names of the classes that can be accelerated."""
    return sorted(name.rsplit(".", 1)[1] for name in _BY_CLASS)
