"""Rows of data from files of many formats and from Python objects, one at a time."""

from bert_fast.rows.errors import InputError
from bert_fast.rows.reading import FORMATS, Rows, read_rows

__all__ = ["FORMATS", "InputError", "Rows", "read_rows"]
