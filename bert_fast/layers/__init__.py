"""The modules of BERT, named as Hugging Face names them and written on ops, over packed rows ``[T, H]``."""

from bert_fast.layers.embeddings import BertEmbeddings
from bert_fast.layers.encoder import BertEncoder, BertLayer
from bert_fast.layers.heads import (
    BertLMPredictionHead,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainingHeads,
)

__all__ = [
    "BertEmbeddings",
    "BertEncoder",
    "BertLMPredictionHead",
    "BertLayer",
    "BertOnlyMLMHead",
    "BertOnlyNSPHead",
    "BertPooler",
    "BertPreTrainingHeads",
]
