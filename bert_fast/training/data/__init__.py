"""From rows to batches: readers, examples, plans of batches, collators, loaders."""

from bert_fast.rows import InputError, Rows, read_rows
from bert_fast.training.data.collate import PackedCollator
from bert_fast.training.data.corpus import Corpus
from bert_fast.training.data.example import Batch, Example
from bert_fast.training.data.loader import PackedLoader
from bert_fast.training.data.masked import MaskingCollator
from bert_fast.training.data.plan import BatchPlan
from bert_fast.training.data.pretraining import PretrainingData
from bert_fast.training.data.stored import StoredExamples

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
    "StoredExamples",
    "read_rows",
]
