"""Reads `pytorch_model.bin`, of which only tensors are accepted: a pickle can carry code, and none of it is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from bert_fast.checkpoints.source import CheckpointError, TensorInfo, TensorSource


class PickleFile(TensorSource):
    """An open `.bin`, `.pt` or `.pth` file that holds a dictionary of tensors.

    Files in today's zip format are memory-mapped; those of before torch 1.6 have to be read whole.

    Raises:
        CheckpointError: the file is damaged, holds anything but tensors, or its tensors reach outside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = _load(self.path)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{self.path} holds a {type(content).__name__}, not a dictionary of tensors")
        self._content: dict[str, torch.Tensor] = {}
        for name, value in content.items():
            _check(self.path, name, value)
            self._content[name] = value.detach()
        self.tensors = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in self._content.items()}

    def load(self, name: str) -> torch.Tensor:
        """One tensor; a view of the mapped file, maybe shared with another name."""
        return self._content[name]

    def close(self) -> None:
        """Let go of the tensors; the file is unmapped when the last of them is gone."""
        self._content = {}


def _load(path: Path) -> object:
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _refuse_compression(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = re.search(r"Unsupported [^\n]{0,200}", str(error))
        if reason is None:
            raise CheckpointError(f"{path} is broken: {str(error)[:200]}") from None
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors ({reason[0]}), and such a pickle can run any code. "
            "If you trust it, load it elsewhere with torch.load(..., weights_only=False) and save its tensors with "
            "safetensors.torch.save_file"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise CheckpointError(f"{path} is broken or not a PyTorch file: {type(error).__name__}: {error}") from None


def _refuse_compression(path: Path) -> None:
    """torch writes archives without compression; one that is compressed could unfold into any size."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is refused: it is compressed ({member.filename}), as torch never does")


def _check(path: Path, name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"{path} must hold tensors by name; {name!r} is a {type(value).__name__}. If the model's state "
            "is nested in there, as in a training checkpoint, save that part alone"
        )
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(f"{path}: {name} is not a plain dense tensor")
    if value.nbytes > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} has {value.nbytes} bytes by its shape and fewer in the file")
