"""The Triton kernels: one file per op, plain launchers on plain tensors.

They are reached through ``bert_fast.ops``, which owns schemas, autograd and the choice of backend. Nothing here imports
``bert_fast``; importing this package imports neither torch nor Triton, importing any module in it imports both.
"""
