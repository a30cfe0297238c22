"""The one kind of error of this package."""


class TokenizerError(ValueError):
    """Tokenizer files are missing or broken, or a text cannot be tokenized. The message says which and what to do."""
