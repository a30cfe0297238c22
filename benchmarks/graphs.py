"""CUDA graphs: work launched once by Python, and then any number of times without it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def capture(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """``call`` as a CUDA graph: what replays it, and the tensor that it fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out
