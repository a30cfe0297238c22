"""Texts to embeddings: `Encoder` in memory, `encode_file` (and `bert-fast encode`) for files of any size."""

from bert_fast.encode.encoder import Encoder
from bert_fast.encode.inputs import InputError
from bert_fast.encode.job import encode_file
from bert_fast.encode.partial import ResumeError
from bert_fast.encode.recipe import Recipe, RecipeError, read_recipe

__all__ = ["Encoder", "InputError", "Recipe", "RecipeError", "ResumeError", "encode_file", "read_recipe"]
