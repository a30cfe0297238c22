"""Live models of other libraries on this package's encoder and kernels, in place."""

from bert_fast.integrations.attention_interface import register_attention
from bert_fast.integrations.switch import accelerate, lives, restore
from bert_fast.integrations.verification import verify

__all__ = ["accelerate", "lives", "register_attention", "restore", "verify"]
