"""The install: made if asked, and what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.options import ROOT, Options

_PIP = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """Items "install" (pip, editable, offline) and "extension" (what bert_fast says of its compiled part)."""
    if name == "install":
        yield _install(*_PIP)
        return
    from bert_fast import extension

    info = extension.build_info()
    module = extension.module()
    status = module.cuda_status() if module is not None and hasattr(module, "cuda_status") else "no CUDA code in it"
    yield info | {"cuda_status": status}
    if not options.rehearse and (module is None or status is not None):
        why = info["reason"] or status
        raise RuntimeError(f"the extension's CUDA functions cannot run: {why}; notes: {info['notes']}")


def _install(*arguments: str) -> dict[str, Any]:
    archs = _own_arch()
    done = _pip(*arguments, **archs)
    if archs and "BERT_FAST_CUDA_ARCHS names" in done.stdout:  # nvcc is older than the GPU: what setup.py would choose
        archs = {}
        done = _pip(*arguments)
    if done.returncode and "externally-managed-environment" in done.stdout:
        # Debian's Python refuses installs beside its own packages; this one adds this project and nothing else.
        done = _pip(*arguments, "--break-system-packages", **archs)
    if done.returncode:
        raise RuntimeError(f"{' '.join(done.args)} ended with {done.returncode}:\n{done.stdout[-8000:]}")
    return {"command": " ".join(done.args), "output": done.stdout[-2000:]} | archs


def _own_arch() -> dict[str, str]:
    """The GPU here as the one to build for, unless the user chose: all of them would take the time of what follows."""
    if os.environ.get("BERT_FAST_CUDA_ARCHS"):
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"BERT_FAST_CUDA_ARCHS": "".join(map(str, torch.cuda.get_device_capability()))}


def _pip(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", **variables}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, **piped)
