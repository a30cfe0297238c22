"""WordPiece tokenization through `tokenizers`, without `transformers`, to the same ids."""

from bert_fast.tokenizer.encoding import BatchEncoding, Encoded
from bert_fast.tokenizer.errors import TokenizerError
from bert_fast.tokenizer.tokenizer import UNLIMITED, Tokenizer

__all__ = ["UNLIMITED", "BatchEncoding", "Encoded", "Tokenizer", "TokenizerError"]
