"""ONNX Runtime on CPU, its transformer optimizer applied: attention, LayerNorm with residual and GELU fused.

In int8: its dynamic quantisation of the fused model, a scale for each output of a weight.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import Batch, Encode, Setup, absent, only_on, version_of
from benchmarks.peers.onnx_model import arrays, exported

NAME = "ONNX Runtime"


def version() -> str:
    return version_of("onnxruntime")


def missing(setup: Setup) -> str | None:
    return only_on(setup, "cpu", torch.float32, torch.int8) or absent("onnxruntime", "onnx")


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    """
    Raises:
        RuntimeError: the optimizer left a layer's attention unfused; that would be no fair measurement.
    """
    import onnxruntime
    from onnxruntime.transformers import optimizer

    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    config = model.config
    source = exported(model, setup.scratch)
    target = source.with_name("model.optimized.onnx")
    made = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size,
        opt_level=0,
    )  # fmt: skip
    fused = made.get_fused_operator_statistics()
    if fused.get("Attention") != config.num_hidden_layers:
        raise RuntimeError(f"ONNX Runtime's optimizer fused {fused}, not the attention of every layer")
    made.save_model_to_file(str(target))
    if setup.dtype == torch.int8:
        target = _in_int8(target)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])

    def encode(batch: Batch) -> Any:
        return session.run(None, arrays(batch))[0]

    return encode


def _in_int8(source: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = source.with_name("model.int8.onnx")
    plain = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what fused operators return
    everybody, before = logging.getLogger(), logging.getLogger().level
    everybody.setLevel(logging.ERROR)  # it warns of a step that the optimizer has done already
    try:
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=plain)
    finally:
        everybody.setLevel(before)
    return target
