"""The model as a folder on disk, for peers that only load from one."""

from __future__ import annotations

from pathlib import Path

import torch

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def saved(model: torch.nn.Module, scratch: Path) -> Path:
    """Config, weights in float32 and a vocabulary of the right size; written once."""
    import transformers

    folder = scratch / "model"
    if (folder / "vocab.txt").exists():
        return folder
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.position_embedding_type = "absolute"  # which converters look for; BERT has no other
    copied = transformers.BertModel(config)
    copied.load_state_dict({name: value.float() for name, value in model.state_dict().items()}, strict=False)
    copied.save_pretrained(folder)
    words = [*_SPECIAL, *(f"w{i}" for i in range(config.vocab_size - len(_SPECIAL)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
