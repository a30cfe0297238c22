"""A progress bar on a terminal (tqdm's, where installed), a line now and then in a log, nothing when told so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far a job is.

    Args:
        total: of what `update`'s `position` counts; None if unknown.
        unit: "bytes" or "rows", of `total`.
        start: where a resumed job starts.
        quiet: show nothing.
    """

    def __init__(self, total: int | None, unit: str, start: int = 0, quiet: bool = False) -> None:
        self.total, self.start = total, start
        self._texts = 0
        self._began = self._shown = time.monotonic()
        self._write: Callable[[str], None] | None = None if quiet else _print
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                self._write = _overwrite
            else:
                self._bar = tqdm(total=total, initial=start, unit="B" if unit == "bytes" else "row", unit_scale=True)

    def update(self, position: int, texts: int) -> None:
        """`position`: of `total`; `texts`: how many more have been encoded."""
        self._texts += texts
        rate = self._texts / max(time.monotonic() - self._began, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:,.0f} texts/s", refresh=False)
            self._bar.update(position - self._bar.n)
            return
        now = time.monotonic()
        wait = 0.2 if self._write is _overwrite else _SECONDS_BETWEEN_LINES
        if self._write is None or now - self._shown < wait:
            return
        self._shown = now
        line = f"{self._texts:,} texts, {rate:,.0f} texts/s"
        if self.total and position > self.start:
            left = (now - self._began) * (self.total - position) / (position - self.start)
            line += f", {100 * position / self.total:.0f}%, {_clock(left)} left"
        self._write(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._write is _overwrite and self._texts:
            sys.stderr.write("\n")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _overwrite(line: str) -> None:
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
