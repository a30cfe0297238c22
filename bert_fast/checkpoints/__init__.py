"""Reading and writing checkpoints: Hugging Face's, and Google's TensorFlow-1 releases without TensorFlow."""

from bert_fast.checkpoints.huggingface import open_checkpoint
from bert_fast.checkpoints.plan import LoadReport
from bert_fast.checkpoints.resolve import resolve
from bert_fast.checkpoints.source import CheckpointError, CheckpointNotFoundError, TensorInfo, TensorSource
from bert_fast.checkpoints.translate import Translated

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "LoadReport",
    "TensorInfo",
    "TensorSource",
    "Translated",
    "open_checkpoint",
    "resolve",
]
