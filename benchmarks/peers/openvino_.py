"""OpenVINO on CPU: one stream of all threads, precision as the dtype says.

In int8: NNCF's quantisation of transformers after training, calibrated with random ids, as the weights are.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from benchmarks.peers import Batch, Encode, Setup, absent, only_on, version_of
from benchmarks.peers.onnx_model import arrays, exported
from benchmarks.workloads import collate, random_ids

NAME = "OpenVINO"
_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "f32"}
_CALIBRATION = 64  # batches of four


def version() -> str:
    return version_of("openvino")


def missing(setup: Setup) -> str | None:
    needed = ("openvino", "onnx", *(("nncf",) if setup.dtype == torch.int8 else ()))
    reason = only_on(setup, "cpu", *_PRECISION) or absent(*needed)
    if reason or setup.dtype != torch.bfloat16:
        return reason
    import openvino

    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in can else "OpenVINO computes in no bfloat16 on this processor"


def prepare(model: torch.nn.Module, setup: Setup) -> Encode:
    import openvino

    core = openvino.Core()
    precision = _PRECISION[setup.dtype]
    if setup.dtype == torch.int8 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        precision = "bf16"  # of what is not in int8: its own choice here, and no less right
    options = {
        "INFERENCE_NUM_THREADS": setup.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    graph = core.read_model(str(exported(model, setup.scratch)))
    if setup.dtype == torch.int8:
        graph = _in_int8(graph, model.config)
    compiled = core.compile_model(graph, "CPU", options)
    request = compiled.create_infer_request()

    def encode(batch: Batch) -> Any:
        return request.infer(arrays(batch), share_inputs=True, share_outputs=True)[0]

    return encode


def _in_int8(graph: Any, config: Any) -> Any:
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    longest = min(128, config.max_position_embeddings)
    lengths = [longest // 4, longest // 2, longest, 9]
    texts = (random_ids(lengths, config.vocab_size, seed=i) for i in range(_CALIBRATION))
    given = nncf.Dataset([arrays(collate(ids)) for ids in texts])
    return nncf.quantize(graph, given, model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION)
