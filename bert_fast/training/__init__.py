"""What training needs beside the models: its data, optimizers, the groups of their parameters, and schedules."""

from typing import TYPE_CHECKING, Any

from bert_fast.training.groups import parameter_groups
from bert_fast.training.masking import TokenMasking
from bert_fast.training.optimizers import AdamW, Lamb
from bert_fast.training.pairing import Documents, SentencePairing
from bert_fast.training.schedules import linear_schedule, polynomial_schedule
from bert_fast.training.windows import pack_windows

if TYPE_CHECKING:
    from bert_fast.training.checkpointing import SaveError
    from bert_fast.training.finetuning import FineTuned
    from bert_fast.training.finetuning.run import finetune
    from bert_fast.training.loop import FitResult, fit
    from bert_fast.training.losses import Loss, ModelLoss
    from bert_fast.training.plot import plot
    from bert_fast.training.pretraining.run import pretrain
    from bert_fast.training.pretraining.settings import PretrainSettings
    from bert_fast.training.steps import NonFinite

# They need Accelerate (but for FineTuned), which what stands above does without.
_ON_USE = {
    "FineTuned": "finetuning",
    "FitResult": "loop",
    "Loss": "losses",
    "ModelLoss": "losses",
    "NonFinite": "steps",
    "PretrainSettings": "pretraining.settings",
    "SaveError": "checkpointing",
    "finetune": "finetuning.run",
    "fit": "loop",
    "plot": "plot",
    "pretrain": "pretraining.run",
}

__all__ = [
    "AdamW",
    "Documents",
    "FineTuned",
    "FitResult",
    "Lamb",
    "Loss",
    "ModelLoss",
    "NonFinite",
    "PretrainSettings",
    "SaveError",
    "SentencePairing",
    "TokenMasking",
    "finetune",
    "fit",
    "linear_schedule",
    "pack_windows",
    "parameter_groups",
    "plot",
    "polynomial_schedule",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ON_USE[name]}"), name)
