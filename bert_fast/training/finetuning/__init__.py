"""Fine-tuning a checkpoint to a task, and using what comes of it.

Training needs Accelerate, using does not: :func:`bert_fast.training.finetune` is imported on use.
"""

from bert_fast.training.finetuning.output import predict_file
from bert_fast.training.finetuning.saved import TASK_FILE, FineTuned
from bert_fast.training.finetuning.settings import FinetuneSettings

__all__ = ["TASK_FILE", "FineTuned", "FinetuneSettings", "predict_file"]
