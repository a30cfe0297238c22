"""The process that does the work: runs items one after another and writes an event for every row.

    python -m benchmarks.gpu.worker --events FILE --options JSON module/name ...

Events are lines of JSON, on disk before the next thing happens. It is started, watched and replaced by supervise.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from benchmarks.files import plain
from benchmarks.options import Options

LOST = 17  # exit status: the GPU no longer answers this process


def main(arguments: list[str] | None = None) -> int:
    """Run the items named; 0, or LOST after an item that took the GPU with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--options", type=Options.from_json, required=True)
    parser.add_argument("labels", nargs="+")
    chosen = parser.parse_args(arguments)
    faulthandler.enable()
    with chosen.events.open("a", encoding="utf-8") as events:
        for label in chosen.labels:
            if not _run(label, chosen.options, events):
                return LOST
    return 0


def _run(label: str, options: Options, events: TextIO) -> bool:
    """Run one item; whether the GPU still answers afterwards."""
    module, _, name = label.partition("/")
    print(f"\n== {label}", flush=True)
    began = time.monotonic()
    _write(events, event="start", item=label)
    error = None
    try:
        for row in importlib.import_module(f"benchmarks.gpu.{module}").run(name, options):
            _write(events, event="row", item=label, row=row)
    except Exception:  # noqa: BLE001 - whatever went wrong is the item's result
        error = traceback.format_exc()
        print(error, flush=True)
    alive = error is None or _gpu_answers()
    status = "ok" if error is None else "failed" if alive else "crashed"
    _write(events, event="end", item=label, status=status, seconds=time.monotonic() - began, error=error)
    return alive


def _write(events: TextIO, **event: Any) -> None:
    events.write(json.dumps(plain(event), default=str, allow_nan=False) + "\n")
    events.flush()
    os.fsync(events.fileno())


def _gpu_answers() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.ones(8, device="cuda").sum().item()
    except Exception as failure:  # noqa: BLE001 - any failure here means the same
        print(f"the GPU is lost to this process: {failure}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
