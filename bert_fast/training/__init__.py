"""What training needs beside the models: its data, optimizers, the groups of their parameters, and schedules."""

from bert_fast.training.groups import parameter_groups
from bert_fast.training.optimizers import AdamW, Lamb
from bert_fast.training.schedules import linear_schedule, polynomial_schedule

__all__ = ["AdamW", "Lamb", "linear_schedule", "parameter_groups", "polynomial_schedule"]
