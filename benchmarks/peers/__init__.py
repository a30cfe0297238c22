"""Whole encoders beside ours, one file each, all over the same weights and the same batches.

A peer is a module with

- ``NAME``: as tables show it;
- ``version()``: of the library;
- ``missing(setup)``: why it cannot be measured so, or None;
- ``prepare(model, setup)``: from transformers' ``BertModel`` in ``setup.dtype`` (float32 for int8), a call that takes
  a :class:`Batch` and returns the last hidden states, ``[B, S, H]`` or packed ``[T, H]``, as a tensor or an array.

What a peer returns is held against float64 before it is timed, see :mod:`benchmarks.sections.encoders`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads import Batch

Encode = Callable[[Batch], Any]
# In the order of the tables; ours first, the one it is compared with second.
NAMES = (
    "ours",
    "ours_packed",
    "hugging_face",
    "hugging_face_flash",
    "hugging_face_compiled",
    "sentence_transformers_",
    "torch_int8",
    "onnx_runtime",
    "openvino_",
    "ctranslate2_",
)


@dataclass(frozen=True)
class Setup:
    """What a peer is prepared for: threads are the CPU's, ``scratch`` a folder for files it needs.

    ``dtype`` is what products are computed in; torch.int8 with scales that each library finds by itself.
    """

    dtype: torch.dtype
    threads: int
    device: torch.device
    scratch: Path


def peer(name: str) -> Any:
    """The module of a peer.

    Raises:
        ValueError: no such peer.
    """
    if name not in NAMES:
        raise ValueError(f"a peer must be one of {', '.join(NAMES)}, not {name!r}")
    return importlib.import_module(f"benchmarks.peers.{name}")


def absent(*packages: str) -> str | None:
    """Which of the packages is not installed, as a reason."""
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(lacking)} not installed" if lacking else None


def only_on(setup: Setup, device: str, *dtypes: torch.dtype) -> str | None:
    """Why a peer that runs on this device type and in these dtypes cannot serve the setup."""
    if setup.device.type != device:
        return f"measured on {device} only"
    if setup.dtype not in dtypes:
        return f"does not compute in {str(setup.dtype).removeprefix('torch.')} here"
    return None


def no_int8(setup: Setup) -> str | None:
    """Why a peer cannot serve the setup: its int8 is that of another peer, or not measured."""
    return "not measured in int8" if setup.dtype == torch.int8 else None


def version_of(package: str) -> str:
    """The installed version."""
    return importlib.metadata.version(package)
