"""The only door to the kernels: one file per op, each with its schema, its fake, its gradient and its backends."""

from bert_fast.ops.attention import AttentionPlan, attention, attention_plan
from bert_fast.ops.attention_joined import attention_joined
from bert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from bert_fast.ops.embedding import embedding_layer_norm
from bert_fast.ops.gelu import bias_gelu, gelu_layer_norm
from bert_fast.ops.layer_norm import layer_norm
from bert_fast.ops.linear import linear
from bert_fast.ops.linear_cross_entropy import labelled_rows, linear_cross_entropy
from bert_fast.ops.loss import cross_entropy
from bert_fast.ops.pad import pad_rows, unpad_rows
from bert_fast.ops.rotary import rotary
from bert_fast.ops.softmax import scaled_masked_softmax
from bert_fast.ops.unpad import unpad

__all__ = [
    "AttentionPlan",
    "attention",
    "attention_joined",
    "attention_plan",
    "bias_gelu",
    "cross_entropy",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "gelu_layer_norm",
    "labelled_rows",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "pad_rows",
    "rotary",
    "scaled_masked_softmax",
    "unpad",
    "unpad_rows",
]
