"""OpenVINO on CPU: one stream of all threads, precision as the dtype says."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers import Batch, Encode, Setup, absent, only_on, version_of
from benchmarks.peers.onnx_model import arrays, exported

NAME = "OpenVINO"
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def version() -> str:
    return version_of("openvino")


def missing(setup: Setup) -> str | None:
    reason = only_on(setup, "cpu", *_PRECISION) or absent("openvino", "onnx")
    if reason or setup.dtype == torch.float32:
        return reason
    import openvino

    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in can else "OpenVINO computes in no bfloat16 on this processor"


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": setup.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _PRECISION[setup.dtype],
    }
    compiled = core.compile_model(core.read_model(str(exported(model, setup.scratch))), "CPU", options)
    request = compiled.create_infer_request()

    def encode(batch: Batch) -> Any:
        return request.infer(arrays(batch), share_inputs=True, share_outputs=True)[0]

    return encode
