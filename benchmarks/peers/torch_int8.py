"""transformers with PyTorch's own dynamic int8: every Linear quantised eagerly, a scale for each output of a weight.

Activations get one scale a tensor as they come, in 7 bits on x86, where fbgemm's sums would overflow with 8.
"""

from __future__ import annotations

import copy
import warnings

import torch

from benchmarks.peers import Encode, Setup, only_on, version_of
from benchmarks.peers.hugging_face import encoder

NAME = "PyTorch, quantize_dynamic"


def version() -> str:
    return version_of("torch")


def missing(setup: Setup) -> str | None:
    reason = only_on(setup, "cpu", torch.int8)
    if reason:
        return reason
    try:
        from torch.ao.quantization import quantize_dynamic  # noqa: F401
    except ImportError:
        return f"PyTorch {torch.__version__} has no torch.ao.quantization.quantize_dynamic any more"
    engine = torch.backends.quantized.engine
    return "PyTorch was built without an engine for int8" if engine in ("", "none") else None


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    scales = {torch.nn.Linear: per_channel_dynamic_qconfig}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is to go: until then it is what PyTorch comes with
        return encoder(quantize_dynamic(copy.deepcopy(model).eval(), scales, dtype=torch.qint8))
