"""This package's layers around the leaves of somebody else's modules: the same Parameters, nothing copied.

A shell is one of the layer classes, made without its constructor; the linear layers, norms and dropouts in it are the
very modules of the model that is accelerated. So LoRA's layers, hooks, new weights and moves are seen as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from bert_fast.integrations.adapter import Unsupported
from bert_fast.layers import BertEmbeddings, BertEncoder, BertLayer
from bert_fast.layers.activations import activation_function
from bert_fast.layers.attention import BertAttention, BertSelfAttention, BertSelfOutput
from bert_fast.layers.encoder import BertIntermediate, BertOutput


class Attention(NamedTuple):
    """The leaves of self-attention; ``dropout`` is that of the probabilities."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    dropout: nn.Module
    heads: int
    head_size: int


class Closing(NamedTuple):
    """The leaves that close half a layer: ``norm(residual + dropout(dense(x)))``."""

    dense: nn.Module
    norm: nn.Module
    dropout: nn.Module


def shell(kind: type[nn.Module], **members: Any) -> Any:
    """A ``kind`` with these members, made without its constructor."""
    module: Any = object.__new__(kind)
    nn.Module.__init__(module)
    for name, value in members.items():
        setattr(module, name, value)
    return module


def embeddings(words: nn.Module, positions: nn.Module, types: nn.Module, norm: nn.Module, dropout: nn.Module) -> Any:
    """A :class:`BertEmbeddings` of these leaves."""
    return shell(
        BertEmbeddings,
        word_embeddings=words,
        position_embeddings=positions,
        token_type_embeddings=types,
        LayerNorm=norm,
        dropout=dropout,
    )


def layer(
    index: int, attention: Attention, attended: Closing, dense: nn.Module, hidden_act: str, output: Closing
) -> BertLayer:
    """The ``index``-th :class:`BertLayer` of an encoder, of these leaves; ``dense`` is the feed-forward's first."""
    self_attention = shell(
        BertSelfAttention,
        dropout_site=3 * index,
        num_attention_heads=attention.heads,
        attention_head_size=attention.head_size,
        query=attention.query,
        key=attention.key,
        value=attention.value,
        dropout=attention.dropout,
    )
    halves = [
        shell(kind, dropout_site=3 * index + site, dense=leaves.dense, LayerNorm=leaves.norm, dropout=leaves.dropout)
        for kind, site, leaves in ((BertSelfOutput, 1, attended), (BertOutput, 2, output))
    ]
    return shell(
        BertLayer,
        attention=shell(BertAttention, self=self_attention, output=halves[0]),
        intermediate=shell(BertIntermediate, dense=dense, hidden_act=hidden_act),
        output=halves[1],
    )


def encoder(layers: list[Any]) -> BertEncoder:
    """A :class:`BertEncoder` of these layers; one layer may stand in it several times."""
    return shell(BertEncoder, layer=nn.ModuleList(layers), gradient_checkpointing=False)


def stack(
    holder: nn.Module,
    theirs: list[Any],
    make: Callable[[Any, int], Any],
    attentions: Callable[[Any, Any], tuple[nn.Module, nn.Module]],
) -> tuple[BertEncoder, list[tuple[nn.Module, nn.Module]]]:
    """An encoder of our layers around ``theirs``, and its twins (:class:`bert_fast.integrations.adapter.Parts`).

    Args:
        holder: the module whose ``training`` the encoder has.
        make: our layer around one of theirs, with its number.
        attentions: of a layer of ours and of theirs, the modules whose ``training`` tells of the attention's dropout.
    """
    made = encoder([make(layer, index) for index, layer in enumerate(theirs)])
    twins: list[tuple[nn.Module, nn.Module]] = [(made, holder)]
    for ours, layer in zip(made.layer, theirs, strict=True):
        twins += [(ours, layer), attentions(ours, layer)]
    return made, twins


def hidden_act(activation: Any) -> str:
    """The name under which this package's layers know a module (or function) of `transformers.activations`.

    Raises:
        Unsupported: they do not know it.
    """
    kinds = _ACTIVATIONS.get(type(activation).__name__)
    home = type(activation).__module__
    if kinds is None or not home.startswith(("transformers.", "torch.nn.")):
        raise Unsupported(f"the activation {getattr(activation, '__name__', type(activation).__name__)} is not known")
    activation_function(kinds)
    return kinds


# The classes behind ACT2FN's names: what runs counts, not what the config says by now.
_ACTIVATIONS = {
    "GELUActivation": "gelu",
    "GELU": "gelu",
    "NewGELUActivation": "gelu_new",
    "FastGELUActivation": "gelu_fast",
    "PytorchGELUTanh": "gelu_pytorch_tanh",
    "GELUTanh": "gelu_pytorch_tanh",
    "ReLU": "relu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "Tanh": "tanh",
}
