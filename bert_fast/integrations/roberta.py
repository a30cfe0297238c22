"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT with positions that count from the padding id."""

from typing import ClassVar

import torch
from torch import Tensor

from bert_fast.integrations.adapter import Call
from bert_fast.integrations.bert import BertAdapter


class RobertaAdapter(BertAdapter):
    """Padding ids in ``input_ids`` stay at position ``padding_idx`` and are not counted (Liu et al., 2019)."""

    encoders: ClassVar[tuple[str, ...]] = (
        "roberta.modeling_roberta.RobertaModel",
        "xlm_roberta.modeling_xlm_roberta.XLMRobertaModel",
        "camembert.modeling_camembert.CamembertModel",
    )

    counts_tokens: ClassVar[bool] = True

    def positions(self, call: Call) -> Tensor:
        given, ids = call.get("position_ids"), call.get("input_ids")
        if given is not None:
            return given
        padding_idx = call.module.embeddings.padding_idx
        if ids is None:
            return torch.arange(call.shape[1], device=call.device) + padding_idx + 1
        counted = ids != padding_idx
        return counted.cumsum(1) * counted + padding_idx
