"""Live models of other libraries on this package's encoder and kernels, in place."""

from bert_fast.integrations.switch import accelerate, restore

__all__ = ["accelerate", "restore"]
