"""BertConfig: a model's hyperparameters, read from and written to a Hugging Face ``config.json``."""

import json
from pathlib import Path
from typing import Any

from bert_fast.io import atomic_write

MODEL_TYPES = ("bert",)
HIDDEN_POSITIONS = ("zero", "exact")
QUANTIZATIONS = ("int8",)

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def check_quantization(quantization: str | None, batch_invariant: bool = False) -> None:
    """Make sure that there is such a quantization, and that it can be had.

    Raises:
        ValueError: no such quantization, or one together with ``batch_invariant``.
    """
    if quantization not in (None, *QUANTIZATIONS):
        raise ValueError(f"quantization must be None or one of {QUANTIZATIONS}, not {quantization!r}")
    if quantization is not None and batch_invariant:
        raise ValueError("batch_invariant=True cannot be had together with quantization")


class BertConfig:
    """The hyperparameters of BERT, with the names, defaults and JSON of Hugging Face's ``BertConfig``.

    Keys that are not BERT's own are kept as attributes and written back, so that a checkpoint loses nothing on its way
    through. ``hidden_act``: "gelu" is exact (erf), "gelu_new" and "gelu_pytorch_tanh" are the tanh formula.
    ``hidden_positions`` is bert_fast's own: what a model returns where the mask hides a token, "zero" (not computed) or
    "exact" (as Hugging Face computes it); None leaves it to the model class. So is ``batch_invariant``: a sequence's
    bits are the same in any batch, or there is an error; and ``quantization``: None or "int8", in which the encoder's
    products run where they can (see :class:`bert_fast.BertModel` for both).

    Raises:
        ValueError: a size that is not a positive integer, a hidden size that the heads do not divide, a probability
            outside [0, 1], or a ``model_type`` other than "bert"; the message names the argument.
    """

    model_type = "bert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        classifier_dropout: float | None = None,
        problem_type: str | None = None,
        tie_word_embeddings: bool = True,
        is_decoder: bool = False,
        add_cross_attention: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        hidden_positions: str | None = None,
        batch_invariant: bool = False,
        quantization: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        self.classifier_dropout = classifier_dropout
        self.problem_type = problem_type
        self.tie_word_embeddings = tie_word_embeddings
        self.is_decoder = is_decoder
        self.add_cross_attention = add_cross_attention
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        self.hidden_positions = hidden_positions
        self.batch_invariant = batch_invariant
        self.quantization = quantization
        self._set_labels(kwargs.pop("num_labels", None), kwargs.pop("id2label", None), kwargs.pop("label2id", None))
        # transformers renamed torch_dtype to dtype in version 5; both are found in checkpoints.
        self.dtype: str | None = _dtype_name(kwargs.pop("dtype", kwargs.pop("torch_dtype", None)))
        kwargs.pop("torch_dtype", None)
        if kwargs.pop("model_type", self.model_type) not in MODEL_TYPES:
            raise ValueError(f"model_type of the config must be one of {MODEL_TYPES}")
        for name, value in kwargs.items():
            setattr(self, name, value)
        self._validate()

    def _set_labels(self, num_labels: int | None, id2label: dict | None, label2id: dict | None) -> None:
        if id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        else:
            self.id2label = {int(index): label for index, label in id2label.items()}
            if num_labels is not None and num_labels != len(self.id2label):
                raise ValueError(f"num_labels is {num_labels} but id2label names {len(self.id2label)} labels")
            self.label2id = {label: index for index, label in self.id2label.items()}
        if label2id is not None:
            self.label2id = dict(label2id)

    @property
    def num_labels(self) -> int:
        """How many labels a classifier tells apart; setting it renames them LABEL_0, LABEL_1, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"num_labels must be a positive integer, not {count!r}")
        self.id2label = {index: f"LABEL_{index}" for index in range(count)}
        self.label2id = {label: index for index, label in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        """Another name of ``return_dict``, which older code asks for."""
        return self.return_dict

    def _validate(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if not isinstance(self.num_hidden_layers, int) or self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be an integer of at least 0, not {self.num_hidden_layers!r}")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads ({heads})")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value!r}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id must lie in [0, vocab_size = {self.vocab_size}), not {self.pad_token_id!r}")
        if self.hidden_positions not in (None, *HIDDEN_POSITIONS):
            given = self.hidden_positions
            raise ValueError(f"hidden_positions must be None or one of {HIDDEN_POSITIONS}, not {given!r}")
        if not isinstance(self.batch_invariant, bool):
            raise ValueError(f"batch_invariant must be True or False, not {self.batch_invariant!r}")
        check_quantization(self.quantization, self.batch_invariant)
        positions = getattr(self, "position_embedding_type", "absolute")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type must be 'absolute', not {positions!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "BertConfig":
        """A config from the content of a ``config.json`` (or Google's ``bert_config.json``), with keys replaced."""
        model_type = values.get("model_type", cls.model_type)
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
        merged = {**values, **overrides}
        if "num_labels" in overrides and "id2label" not in overrides:
            merged.pop("id2label", None)
            merged.pop("label2id", None)
        return cls(**merged)

    @classmethod
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> "BertConfig":
        """A config from a directory that holds ``config.json`` or ``bert_config.json``, or from such a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a JSON object, or its values are not allowed.
        """
        file = Path(path)
        if file.is_dir():
            names = ("config.json", "bert_config.json")
            file = next((file / name for name in names if (file / name).is_file()), file / names[0])
        if not file.is_file():
            raise FileNotFoundError(f"no config.json or bert_config.json at {path}")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file} must hold a JSON object, not {type(values).__name__}")
        return cls.from_dict(values, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The config as a dictionary that JSON can hold and ``from_dict`` reads back."""
        values = dict(vars(self))
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        return {**values, "model_type": self.model_type}

    def to_json_string(self) -> str:
        """What ``save_pretrained`` writes: keys sorted, and label names only where they were given."""
        values = self.to_dict()
        default = BertConfig()
        if (self.id2label, self.label2id) == (default.id2label, default.label2id):
            del values["id2label"], values["label2id"]
        for name in _RUN_DEFAULTS:
            if values[name] == _RUN_DEFAULTS[name]:
                del values[name]
        written = {name: value for name, value in values.items() if value is not None or name in _NULLABLE}
        return json.dumps(written, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``config.json`` into the directory ``path``, whole or not at all."""
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / "config.json", self.to_json_string().encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BertConfig) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"BertConfig {self.to_json_string()}"


_RUN_DEFAULTS = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "batch_invariant": False,
    "quantization": None,
}
_NULLABLE = ("classifier_dropout", "pad_token_id")


def _dtype_name(dtype: Any) -> str | None:
    """The JSON name of a dtype: "float32" for torch.float32 and for itself."""
    return None if dtype is None else str(dtype).removeprefix("torch.")
