"""What a run found, on disk and whole after every row: a run that is killed leaves what it had."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.files import load
from benchmarks.gpu.plan import Item, Section
from benchmarks.options import ROOT, Options

# Not through the package: a report is also written where bert_fast is not installed, or its install is broken.
atomic_write = load(ROOT / "bert_fast" / "io.py").atomic_write

SCHEMA = 1
_EVERY = 0.5  # seconds between writes while rows arrive


class Report:
    """The file ``gpu_check.json``: options, and for each item its status, rows, error and time.

    Statuses: "ok"; "failed" (an exception, in full), "crashed" (its process ended), "timed out" or "not run".
    """

    def __init__(self, folder: Path, options: Options, sections: list[Section]) -> None:
        self.path = folder / "gpu_check.json"
        self.rehearsal = options.rehearse
        self.items: dict[str, dict[str, Any]] = {
            item.label: {"status": "not run", "rows": []} for section in sections for item in section.items
        }
        self._head = {
            "schema": SCHEMA,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rehearsal": options.rehearse,
            "options": json.loads(options.to_json()),
        }
        self._began = time.monotonic()
        self._written = -_EVERY
        self.summary: list[dict[str, Any]] = []

    def rows(self, label: str) -> list[dict[str, Any]]:
        """The rows of an item; none if it did not run."""
        return self.items.get(label, {}).get("rows", [])

    def add_row(self, item: Item, row: dict[str, Any]) -> None:
        """One measurement, or whatever the item found."""
        self.items[item.label]["rows"].append(row)
        self.write(now=False)

    def finish(self, item: Item, status: str, seconds: float, error: str | None = None) -> None:
        """The item is over."""
        self.items[item.label] |= {"status": status, "seconds": round(seconds, 2)} | ({"error": error} if error else {})
        self.write()

    def write(self, *, now: bool = True) -> None:
        """Put the whole report on disk, in the place of the last one."""
        passed = time.monotonic() - self._began
        if not now and passed - self._written < _EVERY:
            return
        self._written = passed
        whole = {**self._head, "seconds": round(passed, 1), "summary": self.summary, "items": self.items}
        atomic_write(self.path, (json.dumps(whole, indent=1) + "\n").encode())
