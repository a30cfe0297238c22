"""GTE and NomicBERT: BERT's layers with rotary positions and a gated feed-forward block."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Call, Parts, Unsupported, own
from bert_fast.integrations.bert import BertAdapter
from bert_fast.layers.gated import GatedIntermediate
from bert_fast.packing import Layout


class RotaryAdapter(BertAdapter):
    """Post-norm layers whose queries and keys are turned by their positions (Su et al., 2021)."""

    encoders = ("gte.modeling_gte.GteModel", "nomic_bert.modeling_nomic_bert.NomicBertModel")
    output_class = "BaseModelOutputWithPooling"

    def build(self, module: Any) -> Parts:
        embeddings, theirs = own(module, module.embeddings), module.layers[: module.config.num_hidden_layers]
        words, types = embeddings.word_embeddings, embeddings.token_type_embeddings
        ours = shells.embeddings(words, None, types, embeddings.LayerNorm, embeddings.dropout)
        made, twins = shells.stack(
            module,
            list(theirs),
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention.self, layer.self_attn),
        )
        return Parts(ours, made, [*twins, (ours, embeddings)])

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        core, mlp = own(module, layer.self_attn), own(module, layer.mlp)
        heads = module.config.num_attention_heads
        dropout, hidden_act = nn.Dropout(core.attention_dropout), shells.hidden_act(mlp.act_fn)
        ours = shells.layer(
            index,
            shells.Attention(core.q_proj, core.k_proj, core.v_proj, dropout, heads, core.head_dim),
            shells.Closing(core.o_proj, layer.post_attention_layernorm, layer.post_attention_dropout),
            mlp.gate_proj,
            hidden_act,
            shells.Closing(mlp.down_proj, layer.post_mlp_layernorm, layer.post_mlp_dropout),
        )
        gated = GatedIntermediate((mlp.gate_proj, mlp.up_proj), hidden_act, getattr(mlp, "dropout", nn.Identity()))
        ours.intermediate = gated
        return ours

    def layout(self, parts: Parts, call: Call, layout: Layout) -> Layout:
        return replace(layout, rotary=turns(call))


def turns(call: Call, *which: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T, D / 2]``, float32, of a call's rows, as ``module.rotary_emb`` makes them.

    Args:
        which: the kind of layer, where there are several.
    """
    positions = call.positions()
    # It reads the dtype of what it is given, and no more: in 16 bits angles would lose most of their digits.
    like = torch.empty(0, dtype=torch.float32, device=call.device)
    tables = call.module.rotary_emb(like, positions if positions.dim() == 2 else positions[None], *which)
    cos, sin = (call.packed("position_ids", table[..., : table.shape[-1] // 2]) for table in tables)
    if cos is None or sin is None:
        raise Unsupported("its rotary positions are missing")
    return cos, sin
