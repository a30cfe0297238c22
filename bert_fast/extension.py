"""The compiled part, ``bert_fast._C``: loaded on first use, and done without, with one warning, where it cannot be.

``BERT_FAST_EXTENSION=0`` in the environment turns it off. What it exports is listed in ``csrc/module.cpp``.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

# The number of kInterface in csrc/module.cpp: an extension built from other sources must not be called.
INTERFACE = 6

_PACKAGE = Path(__file__).resolve().parent
_lock = threading.Lock()
_loaded: tuple[ModuleType | None, str | None] | None = None


def require_installed() -> None:
    """Raise ImportError, in one line, if this is the bare source tree: only an install maps ``kernels/`` into place."""
    kernels = importlib.util.find_spec("bert_fast.kernels")
    if kernels is None:
        raise ImportError(
            f"bert_fast is not installed: {_PACKAGE} is its source. Run `pip install -e .` in {_PACKAGE.parent}, or, "
            "if bert_fast is installed elsewhere, start Python in another folder."
        )
    found = [Path(folder).resolve() for folder in kernels.submodule_search_locations or []]
    if not {_PACKAGE / "kernels", _PACKAGE.parent / "kernels"} & set(found):
        raise ImportError(
            f"bert_fast is imported from {_PACKAGE}, but another one is installed, with its kernels in {found[0]}. "
            f"Run `pip install -e .` in {_PACKAGE.parent}, or start Python in another folder."
        )


def module() -> ModuleType | None:
    """The extension, or None where it cannot be used: the first call then warns once, with the cause."""
    return _load()[0]


def required() -> ModuleType:
    """The extension; RuntimeError with the cause where it cannot be used."""
    compiled, reason = _load()
    if compiled is None:
        raise RuntimeError(f"bert_fast needs its C++ extension here: {reason}")
    return compiled


def unavailable_reason() -> str | None:
    """Why ``module()`` is None; None if it is not."""
    return _load()[1]


def build_info() -> dict[str, Any]:
    """Facts of this build.

    ``version``; ``extension`` (is it in use?) and ``reason`` (why not, or None); ``compiler``; ``made_for`` (pybind11
    and Python); ``cuda`` (has it CUDA code?), ``nvcc`` (its version, or None) and ``archs`` (such as ``["80", "90"]``);
    ``notes`` (what the build had to leave out, and why).
    """
    compiled, reason = _load()
    info: dict[str, Any] = dict.fromkeys(("version", "compiler", "made_for", "nvcc")) | {"cuda": False, "archs": []}
    if compiled is None:
        info["version"] = importlib.metadata.version("bert-fast")
    else:
        info |= compiled.build_info()
    return info | {"extension": compiled is not None, "reason": reason, "notes": _build_notes()}


def _load() -> tuple[ModuleType | None, str | None]:
    global _loaded
    with _lock:
        if _loaded is None:
            disabled = os.environ.get("BERT_FAST_EXTENSION", "1").strip() == "0"
            _loaded = (None, "it is turned off by BERT_FAST_EXTENSION=0") if disabled else _import()
            if _loaded[0] is None and not disabled:
                warnings.warn(
                    f"bert_fast runs without its C++ extension: {_loaded[1]}. PyTorch stands in for it; "
                    "BERT_FAST_EXTENSION=0 silences this warning.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return _loaded


def _import() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec("bert_fast._C") is None:
        return None, "; ".join(_build_notes()) or "it is not built for this Python (run the install again)"
    try:
        compiled = importlib.import_module("bert_fast._C")
    except Exception as error:  # whatever a broken file raises, the package goes on without it
        return None, f"bert_fast._C does not load ({type(error).__name__}: {error})"
    found = getattr(compiled, "INTERFACE", None)
    if found != INTERFACE:
        return None, f"bert_fast._C was built from other sources (interface {found}, not {INTERFACE}): install again"
    return compiled, None


def _build_notes() -> list[str]:
    """What setup.py left out, and why: pip hides its output."""
    record = _PACKAGE / "_build.json"
    return json.loads(record.read_text())["notes"] if record.exists() else []
