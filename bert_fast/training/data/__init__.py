"""From rows to batches: readers, examples, plans of batches, collators, loaders."""

from bert_fast.rows import InputError, Rows, read_rows
from bert_fast.training.data.collate import PackedCollator
from bert_fast.training.data.example import Batch, Example
from bert_fast.training.data.loader import PackedLoader
from bert_fast.training.data.plan import BatchPlan

__all__ = ["Batch", "BatchPlan", "Example", "InputError", "PackedCollator", "PackedLoader", "Rows", "read_rows"]
