"""DistilBERT: BERT without token types and pooler, its modules under names of their own."""

from typing import Any

from torch import Tensor, nn

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Adapter, Call, Parts, Unsupported, own
from bert_fast.integrations.bert import output_class


class DistilBertAdapter(Adapter):
    """Post-norm layers whose attention drops nothing behind its projection (Sanh et al., 2019)."""

    encoders = ("distilbert.modeling_distilbert.DistilBertModel",)
    called = ()
    tensors = frozenset(("input_ids", "attention_mask", "position_ids", "inputs_embeds"))

    def build(self, module: Any) -> Parts:
        transformer = own(module, module.transformer)
        made, twins = shells.stack(
            transformer,
            list(transformer.layer),
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention.self, layer.attention),
        )
        return Parts(own(module, module.embeddings), made, twins)

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        """Our layer around theirs."""
        attention, ffn = own(module, layer.attention), own(module, layer.ffn)
        if ffn.chunk_size_feed_forward:
            raise Unsupported("chunk_size_feed_forward is set")
        size = attention.dim // attention.n_heads
        return shells.layer(
            index,
            shells.Attention(
                attention.q_lin, attention.k_lin, attention.v_lin, attention.dropout, attention.n_heads, size
            ),
            shells.Closing(attention.out_lin, layer.sa_layer_norm, nn.Dropout(0.0)),
            ffn.lin1,
            shells.hidden_act(ffn.activation),
            shells.Closing(ffn.lin2, layer.output_layer_norm, ffn.dropout),
        )

    def heads(self, module: Any) -> int:
        return module.config.n_heads

    def embed(self, parts: Parts, call: Call, seed: Tensor | None) -> Tensor:
        embeddings = parts.embeddings
        ids = call.packed("input_ids", call.get("input_ids"))
        embeds = call.packed("inputs_embeds", call.get("inputs_embeds"))
        words = embeds if ids is None else embeddings.word_embeddings(ids)
        x = words + embeddings.position_embeddings(call.packed("position_ids", call.positions()))
        return embeddings.dropout(embeddings.LayerNorm(x))

    def output(self, last_hidden_state: Tensor, pooled: Tensor | None, hidden_states: Any) -> Any:
        return output_class("BaseModelOutput")(last_hidden_state=last_hidden_state, hidden_states=hidden_states)
