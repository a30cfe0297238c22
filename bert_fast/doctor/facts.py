"""Facts about the machine and the installation. Nothing here fails: what cannot be found out is said as text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import torch

import bert_fast
from bert_fast import backend, extension

PACKAGES = ("bert-fast", "torch", "triton", "numpy", "safetensors", "tokenizers", "transformers", "huggingface_hub")


def machine() -> dict[str, Any]:
    """Operating system, CPU, memory, threads and GPUs."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": gpus(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, the packages that matter (None: not installed) and CUDA."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with the build, which the package's version may leave out
    found["cuda of torch"] = torch.version.cuda
    found["cuda driver"] = _driver()
    return found


def gpus() -> list[dict[str, Any]]:
    """The GPUs that PyTorch can use."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = f"{facts.major}.{facts.minor}"
        gib = round(facts.total_memory / 2**30, 1)
        found.append({"index": index, "name": facts.name, "capability": capability, "memory_gib": gib})
    return found


def extension_facts() -> dict[str, Any]:
    """Whether bert_fast._C is built, loads and has CUDA, with the facts of its build and the reasons against."""
    folder = Path(bert_fast.__file__).parent
    files = sorted(path.name for path in folder.glob("_C.*") if path.suffix in (".so", ".pyd", ".dylib"))
    module = extension.module()
    facts: dict[str, Any] = {
        "built": bool(files),
        "files": files,
        "loads": module is not None,
        "turned_off": os.environ.get("BERT_FAST_EXTENSION", "1").strip() == "0",
        "reason": extension.unavailable_reason(),
        "build": extension.build_info(),
    }
    facts["cuda"] = module is not None and hasattr(module, "cuda_status")
    facts["cuda_reason"] = module.cuda_status() if module is not None and facts["cuda"] else None
    return facts


def triton_facts() -> dict[str, Any]:
    """Whether Triton is there and, per device, why its kernels cannot run."""
    present = importlib.util.find_spec("triton") is not None
    return {
        "installed": present,
        "reasons": {str(device): list(backend.triton_reasons(device)) for device in devices()},
    }


def devices() -> list[torch.device]:
    """The devices that are examined: the CPU and every GPU."""
    return [torch.device("cpu"), *(torch.device("cuda", gpu["index"]) for gpu in gpus())]


def hints() -> list[str]:
    """What is not wrong, but a user would want to know."""
    found = []
    has_gpu = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    if has_gpu and not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "cannot use it"
        found.append(f"there is an NVIDIA driver, but PyTorch {torch.__version__} {why}: everything runs on the CPU")
    if platform.system() in ("Darwin", "Windows") or torch.version.hip is not None:
        found.append("on this platform every op runs on PyTorch; the kernels are for NVIDIA GPUs on Linux")
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.lower().startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: platform knows
    return platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _driver() -> str | None:
    """The NVIDIA driver's version, without starting CUDA."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    words = text.split("\n", 1)[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)
