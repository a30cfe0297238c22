"""The machine as it was found: GPU, driver, clocks, versions. Settings are read, never changed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.options import Options

_FIELDS = (
    "name", "driver_version", "pstate", "temperature.gpu", "power.draw", "power.limit", "clocks.sm", "clocks.mem",
    "clocks.max.sm", "clocks.max.mem", "memory.total", "memory.used", "utilization.gpu", "compute_mode",
    "mig.mode.current", "clocks_throttle_reasons.active", "ecc.mode.current",
)  # fmt: skip
_PEERS = ("transformers", "flash-attn", "flash-attn-3", "liger-kernel", "apex", "transformer-engine", "xformers")
_TOOLS = ("pytest", "pytest-xdist", "pytest-timeout", "numpy", "safetensors", "tokenizers", "setuptools", "pybind11")


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """Items "facts" (processor, versions), "gpu" (what nvidia-smi and PyTorch say) and "packages"."""
    if name == "facts":
        from benchmarks.environment import environment

        yield environment() | {"tools": {tool: _where(tool) for tool in _BINARIES}}
    elif name == "gpu":
        yield from _gpu(options)
    else:
        from benchmarks.environment import _version

        yield {package: _version(package) for package in ("torch", "triton", "bert-fast", *_PEERS, *_TOOLS)}


_BINARIES = ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu", "gcc", "g++")


def _where(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")


def _gpu(options: Options) -> Iterator[dict[str, Any]]:
    yield {"nvidia-smi": nvidia_smi()}
    import torch

    yield {"torch": torch.__version__, "cuda of torch": torch.version.cuda, "available": torch.cuda.is_available()}
    if not torch.cuda.is_available():
        if not options.rehearse:
            raise RuntimeError("torch.cuda.is_available() is False: nothing below can run on a GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    names = (
        "name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size", "clock_rate",
        "shared_memory_per_block_optin", "shared_memory_per_multiprocessor", "regs_per_multiprocessor",
    )  # fmt: skip
    free, total = torch.cuda.mem_get_info()
    yield {
        "devices": torch.cuda.device_count(),
        "properties": {key: getattr(properties, key, None) for key in names},
        "free_gib": round(free / 2**30, 1),
        "total_gib": round(total / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
        "arch_list": torch.cuda.get_arch_list(),
    }
    import triton

    target = triton.runtime.driver.active.get_current_target()
    yield {"triton": triton.__version__, "target": f"{target.backend}:{target.arch}", "clocks after": nvidia_smi()}


def nvidia_smi(fields: tuple[str, ...] = _FIELDS) -> dict[str, str] | str:
    """What nvidia-smi says of the first GPU; text where it cannot be asked.

    A field that this driver does not know makes it refuse the whole question, so it is then asked field by field.
    """
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not on PATH"
    answer = _ask(fields)
    if answer is None:
        answer = {field: (_ask((field,)) or {field: "not known to this driver"})[field] for field in fields}
    return answer


def _ask(fields: tuple[str, ...]) -> dict[str, str] | None:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if done.returncode == 0 and len(values) == len(fields) else None
