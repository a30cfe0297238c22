"""ModernBERT: pre-norm layers with rotary positions and gated feed-forward blocks, most of them local."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bert_fast.integrations import shells
from bert_fast.integrations.adapter import Call, Parts, Unsupported, own
from bert_fast.integrations.bert import BertAdapter, output_class
from bert_fast.integrations.gte import turns
from bert_fast.layers.attention import JoinedSelfAttention
from bert_fast.layers.gated import GatedIntermediate
from bert_fast.layers.prenorm import BranchOutput, PreNormLayer, normalised
from bert_fast.packing import Layout

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


class ModernBertAdapter(BertAdapter):
    """Warner et al. (2024), as transformers 5 has it: version 4 unpads by itself, and runs its own code."""

    encoders = ("modernbert.modeling_modernbert.ModernBertModel",)
    has_pooler = False
    tensors = frozenset(("input_ids", "attention_mask", "position_ids", "inputs_embeds"))

    def build(self, module: Any) -> Parts:
        if not hasattr(module, "rotary_emb") or not hasattr(module.config, "layer_types"):
            raise Unsupported("its layers hold their rotary positions: transformers 5 is needed")
        embeddings = own(module, module.embeddings)
        ours = shells.embeddings(embeddings.tok_embeddings, None, None, embeddings.norm, embeddings.drop)
        made, twins = shells.stack(
            module,
            list(module.layers),
            lambda layer, index: self.layer(module, own(module, layer), index),
            lambda mine, layer: (mine.attention, layer.attn),
        )
        return Parts(ours, made, [*twins, (ours, embeddings)])

    def layer(self, module: Any, layer: Any, index: int) -> Any:
        core, mlp = own(module, layer.attn), own(module, layer.mlp)
        if layer.attention_type not in (_LOCAL, _GLOBAL):
            raise Unsupported(f"attention_type is {layer.attention_type!r}, not {_LOCAL!r} or {_GLOBAL!r}")
        attention = shells.shell(
            JoinedSelfAttention,
            dropout_site=3 * index,
            num_attention_heads=module.config.num_attention_heads,
            attention_head_size=core.head_dim,
            qkv=core.Wqkv,
            dropout=nn.Dropout(core.attention_dropout),
        )
        return PreNormLayer(
            layer.attn_norm,
            attention,
            BranchOutput(core.Wo, core.out_drop),
            layer.mlp_norm,
            GatedIntermediate((mlp.Wi,), shells.hidden_act(mlp.act), mlp.drop),
            BranchOutput(mlp.Wo, nn.Identity()),
            local=layer.attention_type == _LOCAL,
        )

    def against_mask(self, module: Any, mask: Tensor | None, shape: tuple[int, ...]) -> str | None:
        if mask is not None and mask.dim() == 4:
            return f"the attention_mask is {list(mask.shape)}, in place of the local layers' windows"
        # A query whose window is all hidden gets 0 of ours and of sdpa, and of eager a mean over every key.
        if mask is not None and getattr(module.config, "_attn_implementation", None) == "eager":
            return "eager attention has numbers of its own where a window is all hidden"
        return super().against_mask(module, mask, shape)

    def layout(self, parts: Parts, call: Call, layout: Layout) -> Layout:
        kinds = {layer.local for layer in parts.encoder.layer}
        local = None
        if True in kinds:
            local = replace(layout.with_window(call.module.config.sliding_window), rotary=turns(call, _LOCAL))
        rotary = turns(call, _GLOBAL) if False in kinds else None
        return replace(layout, rotary=rotary, local=local)

    def finish(self, parts: Parts, call: Call, rows: Tensor) -> Tensor:
        return normalised(call.module.final_norm, rows)

    def output(self, last_hidden_state: Tensor, pooled: Tensor | None, hidden_states: Any) -> Any:
        return output_class("BaseModelOutput")(last_hidden_state=last_hidden_state, hidden_states=hidden_states)
