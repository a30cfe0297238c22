"""From rows to batches: readers, examples, plans of batches, collators, loaders."""

from bert_fast.rows import InputError, Rows, read_rows
from bert_fast.training.data.collate import PackedCollator
from bert_fast.training.data.corpus import Corpus
from bert_fast.training.data.example import Batch, Example
from bert_fast.training.data.loader import PackedLoader
from bert_fast.training.data.plan import BatchPlan
from bert_fast.training.data.pretraining import MaskingCollator, PretrainingData

__all__ = [
    "Batch",
    "BatchPlan",
    "Corpus",
    "Example",
    "InputError",
    "MaskingCollator",
    "PackedCollator",
    "PackedLoader",
    "PretrainingData",
    "Rows",
    "read_rows",
]
