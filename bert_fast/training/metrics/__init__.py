"""What fine-tuned models are judged by: every score takes one row at a time, ``add(predicted, actual)``."""

from bert_fast.training.metrics.entities import Entity, EntityScores, are_entity_tags, entities
from bert_fast.training.metrics.labels import Accuracy, LabelScores, MultiLabelScores, NumberScores
from bert_fast.training.metrics.squad import SquadScores, exact_match, normalize_answer, token_f1

__all__ = [
    "Accuracy",
    "Entity",
    "EntityScores",
    "LabelScores",
    "MultiLabelScores",
    "NumberScores",
    "SquadScores",
    "are_entity_tags",
    "entities",
    "exact_match",
    "normalize_answer",
    "token_f1",
]
