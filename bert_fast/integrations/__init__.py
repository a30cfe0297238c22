"""Live models of other libraries on this package's encoder and kernels, in place."""

from bert_fast.integrations.attention_interface import register_attention
from bert_fast.integrations.explanation import explain
from bert_fast.integrations.switch import accelerate, lives, restore
from bert_fast.integrations.verification import verify

__all__ = ["accelerate", "explain", "lives", "register_attention", "restore", "verify"]
