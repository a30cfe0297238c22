"""What the models return: dictionaries with attributes and tuple indexing, with Hugging Face's field names."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(OrderedDict):
    """An output read as ``outputs.logits``, ``outputs["logits"]`` or, where None does not count, ``outputs[0]``.

    It is made from keywords, or, as code that rebuilds any mapping does (Accelerate, DataParallel's gather), from one
    dictionary or from pairs.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        first = fields(self)[0].name
        given = getattr(self, first)
        if isinstance(given, (Mapping, Iterator)):
            del self[first]
            for name, value in dict(given).items():
                setattr(self, name, value)

    def __init_subclass__(cls) -> None:
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output.keys())),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"bert_fast.{cls.__name__}",
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return OrderedDict.__getitem__(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        OrderedDict.__setitem__(self, key, value)
        object.__setattr__(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None and name in self.__dataclass_fields__:
            OrderedDict.__setitem__(self, name, value)
        elif name in self.keys():
            OrderedDict.__delitem__(self, name)
        object.__setattr__(self, name, value)

    def __delitem__(self, key: str) -> None:
        OrderedDict.__delitem__(self, key)
        object.__setattr__(self, key, None)

    def pop(self, key: str, *default: Any) -> Any:
        """As a dictionary's; the field becomes None."""
        value = OrderedDict.pop(self, key, *default)
        if key in self.__dataclass_fields__:
            object.__setattr__(self, key, None)
        return value

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), dict(self))

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order."""
        return tuple(self.values())


def _rebuild(cls: type, values: dict) -> ModelOutput:
    return cls(**values)


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """``last_hidden_state [B, S, H]``, ``pooler_output [B, H]``; hidden states and attentions where asked for."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BertForPreTrainingOutput(ModelOutput):
    """``loss``, ``prediction_logits [B, S, V]``, ``seq_relationship_logits [B, 2]``."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LogitsOutput(ModelOutput):
    """``loss`` and ``logits``: the fields of every classifier's output."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MaskedLMOutput(LogitsOutput):
    """``logits [B, S, V]``."""


class NextSentencePredictorOutput(LogitsOutput):
    """``logits [B, 2]``."""


class SequenceClassifierOutput(LogitsOutput):
    """``logits [B, num_labels]``."""


class TokenClassifierOutput(LogitsOutput):
    """``logits [B, S, num_labels]``."""


class MultipleChoiceModelOutput(LogitsOutput):
    """``logits [B, choices]``."""


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """``loss``, ``start_logits [B, S]``, ``end_logits [B, S]``."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
