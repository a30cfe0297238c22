"""BERT and those built like it."""

from typing import Any, ClassVar

from torch import Tensor

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Adapter, Call, Parts, Unsupported, own


class BertAdapter(Adapter):
    """Post-norm layers with absolute positions, named as BERT names them (Devlin et al., 2019)."""

    encoders: ClassVar[tuple[str, ...]] = ("bert.modeling_bert.BertModel",)
    has_pooler = True
    output_class = "BaseModelOutputWithPoolingAndCrossAttentions"

    def build(self, module: Any) -> Parts:
        embeddings, encoder = own(module, module.embeddings), own(module, module.encoder)
        ours = shells.embeddings(
            embeddings.word_embeddings,
            embeddings.position_embeddings,
            embeddings.token_type_embeddings,
            embeddings.LayerNorm,
            embeddings.dropout,
        )
        made, twins = shells.stack(
            encoder,
            list(encoder.layer),
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention.self, layer.attention.self),
        )
        return Parts(ours, made, [*twins, (ours, embeddings)])

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        """Our layer around theirs."""
        if getattr(layer, "chunk_size_feed_forward", 0):
            raise Unsupported("chunk_size_feed_forward is set")
        attention, intermediate = own(module, layer.attention), own(module, layer.intermediate)
        core, attended, output = own(module, attention.self), own(module, attention.output), own(module, layer.output)
        if getattr(core, "position_embedding_type", "absolute") != "absolute":
            raise Unsupported(f"position_embedding_type is {core.position_embedding_type!r}, not 'absolute'")
        return shells.layer(
            index,
            shells.Attention(
                core.query, core.key, core.value, core.dropout, core.num_attention_heads, core.attention_head_size
            ),
            shells.Closing(attended.dense, attended.LayerNorm, attended.dropout),
            intermediate.dense,
            shells.hidden_act(intermediate.intermediate_act_fn),
            shells.Closing(output.dense, output.LayerNorm, output.dropout),
        )

    def embed(self, parts: Parts, call: Call, seed: Tensor | None) -> Tensor:
        return parts.embeddings(
            call.packed("input_ids", call.get("input_ids")),
            call.packed("token_type_ids", call.get("token_type_ids")),
            call.packed("position_ids", self.positions(call)),
            call.packed("inputs_embeds", call.get("inputs_embeds")),
            seed,
        )

    def positions(self, call: Call) -> Tensor:
        """``[B, S]``, ``[1, S]`` or ``[S]``: as given, or as the architecture counts."""
        return call.positions()

    def output(self, last_hidden_state: Tensor, pooled: Tensor | None, hidden_states: Any) -> Any:
        return output_class(self.output_class)(
            last_hidden_state=last_hidden_state, pooler_output=pooled, hidden_states=hidden_states
        )


def output_class(name: str) -> Any:
    """The class of ``transformers.modeling_outputs`` of that name."""
    from transformers import modeling_outputs

    return getattr(modeling_outputs, name)
