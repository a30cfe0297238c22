"""What training needs beside the models: its data, optimizers, the groups of their parameters, and schedules."""

from bert_fast.training.groups import parameter_groups
from bert_fast.training.masking import TokenMasking
from bert_fast.training.optimizers import AdamW, Lamb
from bert_fast.training.pairing import Documents, SentencePairing
from bert_fast.training.schedules import linear_schedule, polynomial_schedule
from bert_fast.training.windows import pack_windows

__all__ = [
    "AdamW",
    "Documents",
    "Lamb",
    "SentencePairing",
    "TokenMasking",
    "linear_schedule",
    "pack_windows",
    "parameter_groups",
    "polynomial_schedule",
]
