"""The model as an ONNX file, for the runtimes that read one."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.workloads import collate, random_ids

_INPUTS = ("input_ids", "attention_mask")


class _Hidden(torch.nn.Module):
    """A forward of plain tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def exported(model: torch.nn.Module, scratch: Path) -> Path:
    """The file, float32, batch and length free; written once.

    Attention is exported as products and a softmax: the pattern that ONNX Runtime's optimizer knows how to fuse, which
    it does not find in what the newer exporter makes of scaled dot-product attention.
    """
    path = scratch / "model.onnx"
    if path.exists():
        return path
    plain = copy.deepcopy(model).float().cpu().eval()
    plain.config._attn_implementation = "eager"
    example = collate(random_ids([7, 5], model.config.vocab_size))
    given = (example.input_ids, example.attention_mask)
    free = {name: {0: "batch", 1: "length"} for name in (*_INPUTS, "hidden")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is the older one, and that shapes are traced
        torch.onnx.export(
            _Hidden(plain), given, str(path), input_names=list(_INPUTS), output_names=["hidden"], dynamic_axes=free,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    return path


def arrays(batch: object) -> dict:
    """A batch as the file's inputs."""
    return {name: getattr(batch, name).numpy() for name in _INPUTS}
