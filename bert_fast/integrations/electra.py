"""ELECTRA: BERT with embeddings of another width and a projection behind them."""

from typing import Any

from torch import Tensor

from bert_fast.integrations.adapter import Call, Parts
from bert_fast.integrations.bert import BertAdapter, output_class
from bert_fast.layers.invariance import by_rows
from bert_fast.layers.projection import call as call_module


class ElectraAdapter(BertAdapter):
    """No pooler; ``embeddings_project`` where the embeddings are narrower than the layers (Clark et al., 2020)."""

    encoders = ("electra.modeling_electra.ElectraModel",)
    called = ()
    has_pooler = False

    def embed(self, parts: Parts, call: Call, seed: Tensor | None) -> Tensor:
        x = super().embed(parts, call, seed)
        projection = getattr(call.module, "embeddings_project", None)
        if projection is None:
            return x
        return by_rows(call.batch_invariant, lambda rows: call_module(projection, rows), x)

    def output(self, last_hidden_state: Tensor, pooled: Tensor | None, hidden_states: Any) -> Any:
        kind = output_class("BaseModelOutputWithPastAndCrossAttentions")
        return kind(last_hidden_state=last_hidden_state, hidden_states=hidden_states)
