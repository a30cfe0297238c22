"""The JSON of a run: environment, settings, and the rows of every section. Written whole after each section."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, revision
from benchmarks.files import plain
from bert_fast.io import atomic_write

SCHEMA = 1


class Run:
    """One run of the suite.

    Attributes:
        facts: what is written: ``environment``, ``settings`` and ``sections`` (name -> rows).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = {
            "schema": SCHEMA,
            "suite": "bert-fast bench",
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "revision": revision(),
            "environment": environment(),
            "settings": settings,
            "sections": {},
        }

    def add(self, section: str, row: dict[str, Any]) -> None:
        """One row of a section."""
        self.facts["sections"].setdefault(section, []).append(row)

    def write(self, path: Path) -> None:
        """Complete or not at all."""
        text = json.dumps(plain(self.facts), indent=1, default=str, allow_nan=False)
        atomic_write(path, (text + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """A run's facts.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(facts, dict) or facts.get("suite") != "bert-fast bench" or facts.get("schema") != SCHEMA:
        raise ValueError(f'{path} is not what "bert-fast bench --json" writes (schema {SCHEMA})')
    return facts
