"""Writes any checkpoint that can be read as a Hugging Face directory: weights, config, tokenizer; all or nothing."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bert_fast import io
from bert_fast.checkpoints import names
from bert_fast.checkpoints.files import COMPANIONS, config_file, read_config
from bert_fast.checkpoints.huggingface import open_checkpoint
from bert_fast.checkpoints.options import as_dtype
from bert_fast.checkpoints.resolve import resolve
from bert_fast.checkpoints.save import MAX_SHARD_SIZE, save_weights, writable
from bert_fast.checkpoints.source import CheckpointError
from bert_fast.checkpoints.translate import Translated
from bert_fast.config import BertConfig
from bert_fast.tokenizer import Tokenizer, TokenizerError


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        target: the directory written.
        architecture: the class that the weights are of; also in its `config.json`.
        written: names of the tensors in it.
        dropped: names in the source that have no place there: optimizer state, other heads, unknown tensors.
        tokenizer: None, or why there are no tokenizer files beside the vocabulary.
    """

    target: Path
    architecture: str
    written: tuple[str, ...]
    dropped: tuple[str, ...]
    tokenizer: str | None

    def __str__(self) -> str:
        text = f"{self.target}: {self.architecture}, {len(self.written)} tensors"
        text += f", {len(self.dropped)} left out" if self.dropped else ""
        return text + (f"; no tokenizer: {self.tokenizer}" if self.tokenizer else "")


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model_class: str | type | None = None,
    dtype: str | torch.dtype | None = None,
    do_lower_case: bool | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    force: bool = False,
) -> Conversion:
    """Convert a checkpoint (Google's TensorFlow-1, or `pytorch_model.bin`) to a Hugging Face directory of safetensors.

    Args:
        source: what `from_pretrained` takes: a directory, a file, a TensorFlow prefix, or a name on the hub.
        target: a directory that does not exist or is empty. It appears when everything in it is on disk.
        model_class: the architecture to write ("BertModel", or the class); by default the one that the config names or
            that the heads in the checkpoint tell.
        dtype: of floating point weights; as they are by default.
        do_lower_case: of the tokenizer; by default from `tokenizer_config.json`, else cased where words of the
            vocabulary have capital letters.
        max_shard_size: of a file of weights.
        force: replace a target that is not empty.

    Raises:
        CheckpointError: the source cannot be read, lacks tensors that its config asks for, or is not a BERT.
        FileExistsError: the target is a file, or not empty.
        ValueError: an argument not allowed.
    """
    wanted = None if dtype is None else as_dtype(dtype, "dtype")
    architecture = model_class.__name__ if isinstance(model_class, type) else model_class
    if architecture is not None and architecture not in names.HEADS:
        raise ValueError(f"model_class must be one of {', '.join(names.HEADS)}, not {architecture!r}")
    path = resolve(source)
    with io.atomic_directory(target, force=force) as directory, Translated(open_checkpoint(path)) as checkpoint:
        config = _config(path, checkpoint, architecture, wanted)
        chosen = _choose(checkpoint, config, explicit=architecture is not None)
        tensors = {name: checkpoint.load(there) for name, there in chosen.items()}
        if wanted is not None:
            tensors = {name: t.to(wanted) if t.is_floating_point() else t for name, t in tensors.items()}
        tensors = writable(tensors, names.TIED if config.tie_word_embeddings else {})
        save_weights(tensors, directory, max_shard_size)
        problem = _tokenizer_files(path if path.is_dir() else path.parent, directory, do_lower_case)
        config.save_pretrained(directory)
    kept = {checkpoint.original[there] for there in chosen.values()}
    dropped = tuple(name for name in (*checkpoint.original.values(), *checkpoint.skipped) if name not in kept)
    return Conversion(Path(target), config.architectures[0], tuple(tensors), dropped, problem)


def _config(path: Path, checkpoint: Translated, architecture: str | None, dtype: torch.dtype | None) -> Any:
    file = config_file(path)
    values = read_config(file)
    classifier = checkpoint.tensors.get("classifier.weight")
    if classifier is not None and classifier.shape and not {"num_labels", "id2label"} & values.keys():
        values["num_labels"] = classifier.shape[0]
    try:
        config: Any = BertConfig.from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    named = values.get("architectures") or [names.guess_architecture(checkpoint.tensors)]
    config.architectures = [architecture] if architecture else named
    floats = (info.dtype for info in checkpoint.tensors.values() if info.dtype and info.dtype.is_floating_point)
    config.dtype = str(dtype or next(floats, torch.float32)).removeprefix("torch.")
    return config


def _choose(checkpoint: Translated, config: Any, explicit: bool) -> dict[str, str]:
    """The names to write, as the architecture has them, and the checkpoint's for each. All that it needs is there."""
    architecture = config.architectures[0]
    if architecture not in names.HEADS:
        return {name: name for name in checkpoint.tensors}  # somebody's own class: its names are its own
    strict = explicit or checkpoint.foreign
    needed = set(names.expected(architecture, config.num_hidden_layers))
    found = {names.fit_prefix(name, needed): name for name in checkpoint.tensors}
    missing = sorted(name for name in needed if name not in found and names.TIED.get(name) not in found)
    missing = [name for name in missing if not re.search(r"\bpooler\b", name)]  # some encoders were saved without
    if missing and strict:
        some = ", ".join(missing[:5])
        raise CheckpointError(f"{checkpoint.path} is no {architecture}: it lacks {some} ({len(missing)} in all)")
    return {name: there for name, there in found.items() if name in needed or not strict}


def _tokenizer_files(source: Path, directory: Path, do_lower_case: bool | None) -> str | None:
    """Copy the tokenizer and its like, or make them from the vocabulary; None, or why there is no tokenizer."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    for module in _sentence_modules(source):
        shutil.copytree(source / module, directory / module)
    if (directory / "tokenizer.json").exists() and do_lower_case is None:
        return None
    try:
        Tokenizer.from_pretrained(source, do_lower_case=do_lower_case).save_pretrained(directory)
    except TokenizerError as error:
        return str(error)
    if (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", directory / "vocab.txt")  # to the byte
    return None


def _sentence_modules(source: Path) -> list[str]:
    """The folders of sentence-transformers that say how token vectors become one: `1_Pooling` and the like."""
    if not (source / "modules.json").is_file():
        return []
    return sorted(
        folder.name for folder in source.iterdir() if folder.name[:1].isdigit() and (folder / "config.json").is_file()
    )
