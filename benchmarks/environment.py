"""Where a measurement was taken: what a reader needs to judge it."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.options import ROOT

PACKAGES = (
    "torch", "triton", "transformers", "numpy", "bert-fast", "sentence-transformers", "onnx", "onnxruntime", "openvino",
    "nncf", "ctranslate2", "flash-attn", "liger-kernel", "apex", "transformer-engine", "xformers",
)  # fmt: skip
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# What changes a measurement when it is set.
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LD_PRELOAD", "ONEDNN_MAX_CPU_ISA",
    "BERT_FAST_CPU_LINEAR", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


def environment() -> dict:
    """Processor, threads, GPU and versions, as JSON holds them."""
    return {
        "processor": _processor(),
        "instructions": [name for name in _INSTRUCTIONS if name in _flags()],
        "cores": os.cpu_count(),
        "load": _load(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "torch_threads": torch.get_num_threads(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def revision() -> str | None:
    """The commit of this checkout, with a plus where files were changed since; None outside one."""
    try:
        head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        changed = subprocess.run(
            ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if head.returncode else head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _gpu() -> dict | None:
    if not torch.cuda.is_available():
        return None
    from benchmarks.gpu.machine import nvidia_smi

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "nvidia_smi": nvidia_smi(),
    }


def _flags() -> set[str]:
    lines = _cpuinfo()
    named = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return set(named.split())


def _cpuinfo() -> list[str]:
    facts = Path("/proc/cpuinfo")
    return facts.read_text().splitlines() if facts.is_file() else []


def _processor() -> str:
    named = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _load() -> float | None:
    """Of the last minute, before the measurement: other work beside it spoils the numbers."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None  # no such number on this platform


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None  # no such system call on this platform


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
