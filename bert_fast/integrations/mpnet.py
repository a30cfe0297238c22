"""MPNet: BERT with relative positions, one bias for all layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Call, Parts, own
from bert_fast.integrations.roberta import RobertaAdapter
from bert_fast.packing import Layout


class MPNetAdapter(RobertaAdapter):
    """Post-norm layers whose scores get a bias by the distance from query to key (Song et al., 2020)."""

    encoders = ("mpnet.modeling_mpnet.MPNetModel",)
    output_class = "BaseModelOutputWithPooling"
    tensors = frozenset(("input_ids", "attention_mask", "position_ids", "inputs_embeds"))

    def build(self, module: Any) -> Parts:
        embeddings, encoder = own(module, module.embeddings), own(module, module.encoder)
        words, positions = embeddings.word_embeddings, embeddings.position_embeddings
        ours = shells.embeddings(words, positions, None, embeddings.LayerNorm, embeddings.dropout)
        made, twins = shells.stack(
            encoder,
            list(encoder.layer),
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention.self, layer.attention.attn),
        )
        return Parts(ours, made, [*twins, (ours, embeddings)])

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        attention, intermediate = own(module, layer.attention), own(module, layer.intermediate)
        core, output = own(module, attention.attn), own(module, layer.output)
        return shells.layer(
            index,
            shells.Attention(core.q, core.k, core.v, core.dropout, core.num_attention_heads, core.attention_head_size),
            shells.Closing(core.o, attention.LayerNorm, attention.dropout),
            intermediate.dense,
            shells.hidden_act(intermediate.intermediate_act_fn),
            shells.Closing(output.dense, output.LayerNorm, output.dropout),
        )

    def layout(self, parts: Parts, call: Call, layout: Layout) -> Layout:
        encoder = call.module.encoder

        def scores(distance: Tensor) -> Tensor:
            return encoder.relative_attention_bias(encoder.relative_position_bucket(distance))

        if call.batch_invariant:  # the logarithm in it is taken of numbers that lie where they always do
            length = max(call.module.config.max_position_embeddings, call.shape[1])
            bias = layout.by_distance(_from_table(scores, length))
        else:
            bias = layout.by_distance(scores)
        return replace(layout, bias=bias if layout.bias is None else layout.bias + bias)


def _from_table(scores: Callable[[Tensor], Tensor], length: int) -> Callable[[Tensor], Tensor]:
    """``scores`` of distances below ``length``, computed once for all of them."""
    table = scores(torch.arange(1 - length, length))
    return lambda distance: table[distance + (length - 1)]
