"""Warnings that point at the user's line, however many modules of this package and of others lie between."""

import sys
import warnings

# Libraries that call this package for the user, and their own hooks and wrappers on the way.
_BETWEEN = frozenset(("bert_fast", "torch", "transformers", "sentence_transformers", "peft", "accelerate"))


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn as of the nearest line on the stack that neither this package nor a library that calls it has."""
    level, frame = 2, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        if frame.f_back is None:
            level = 2  # nobody else is there: a thread of such a library
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
