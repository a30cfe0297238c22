"""ALBERT: layers that share their weights, behind embeddings of a width of their own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Call, Parts, Unsupported, own
from bert_fast.integrations.bert import BertAdapter
from bert_fast.layers.invariance import by_rows
from bert_fast.layers.projection import call as call_linear


class AlbertAdapter(BertAdapter):
    """Post-norm layers in groups, each group's weights used again and again (Lan et al., 2020)."""

    encoders = ("albert.modeling_albert.AlbertModel",)
    called = ("pooler", "pooler_activation")
    output_class = "BaseModelOutputWithPooling"

    def build(self, module: Any) -> Parts:
        embeddings, encoder, config = own(module, module.embeddings), own(module, module.encoder), module.config
        if config.inner_group_num > 1 and "hidden_states" not in (getattr(module, "_can_record_outputs", None) or {}):
            raise Unsupported("inner_group_num is above 1, and this transformers counts its hidden states by groups")
        theirs = []
        for index in range(config.num_hidden_layers):
            group = encoder.albert_layer_groups[int(index / (config.num_hidden_layers / config.num_hidden_groups))]
            theirs += own(module, group).albert_layers
        words, positions = embeddings.word_embeddings, embeddings.position_embeddings
        types, norm, dropout = embeddings.token_type_embeddings, embeddings.LayerNorm, embeddings.dropout
        ours = shells.embeddings(words, positions, types, norm, dropout)
        # A shell for each depth, though the leaves are shared: its number tells its dropout from the others'.
        made, twins = shells.stack(
            encoder,
            theirs,
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention.self, layer.attention),
        )
        return Parts(ours, made, [*twins, (ours, embeddings)])

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        if layer.chunk_size_feed_forward:
            raise Unsupported("chunk_size_feed_forward is set")
        attention = own(module, layer.attention)
        if getattr(attention, "position_embedding_type", "absolute") != "absolute":
            raise Unsupported(f"position_embedding_type is {attention.position_embedding_type!r}, not 'absolute'")
        return shells.layer(
            index,
            shells.Attention(
                attention.query,
                attention.key,
                attention.value,
                attention.attention_dropout,
                attention.num_attention_heads,
                attention.attention_head_size,
            ),
            shells.Closing(attention.dense, attention.LayerNorm, attention.output_dropout),
            layer.ffn,
            shells.hidden_act(layer.activation),
            shells.Closing(layer.ffn_output, layer.full_layer_layer_norm, nn.Dropout(0.0)),
        )

    def embed(self, parts: Parts, call: Call, seed: Tensor | None) -> Tensor:
        mapping = call.module.encoder.embedding_hidden_mapping_in
        x = super().embed(parts, call, seed)
        return by_rows(call.batch_invariant, lambda rows: call_linear(mapping, rows), x)

    def pooler(self, module: Any) -> Callable[[Tensor], Tensor] | None:
        if module.pooler is None:
            return None
        return lambda last: module.pooler_activation(module.pooler(last[:, 0]))
