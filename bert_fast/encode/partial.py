"""The work directory beside an output file, from which a job that was killed goes on.

    OUTPUT.partial/manifest.json   what job this is; never changes
                   rows            room for the output's header, then float32 rows, appended window by window
                   journal         one JSON line per window that is safe on disk: rows so far, a checksum, ...
                   lock            held while a process works here

A window's rows are forced to disk before its line is, so a line is the proof that everything up to it is whole;
whatever lies beyond the last line is cut off on resuming.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_fast.encode.outputs import header, header_size, write_parquet
from bert_fast.io import atomic_write, fsync

_FILES = ("manifest.json", "rows", "rows.parquet", "journal", "lock")


class ResumeError(ValueError):
    """A job cannot go on, or cannot start, in the work directory there is. The message says why and what to do."""


@dataclass
class Done:
    """How far a job is: rows and bytes that are safe, texts that were cut, and whether all rows are there."""

    rows: int = 0
    cut: int = 0
    tokens: int = 0
    position: int = 0
    length: int = 0
    crc: int = 0
    finished: bool = False


class Partial:
    """The work directory of one output; use it through `opened`."""

    def __init__(self, output: Path, kind: str, hidden: int) -> None:
        self.output, self.kind, self.hidden = output, kind, hidden
        self.folder = partial_folder(output)
        self.done = Done()
        self._renamed = False  # killed after the output got its name, before this directory was removed
        self._rows: BinaryIO
        self._journal: BinaryIO

    @contextmanager
    def opened(self, manifest: dict[str, Any], restart: bool) -> Iterator[Done]:
        """Starts or resumes the job that `manifest` describes; yields how far it already is.

        Raises ResumeError if another process works here, if the directory belongs to another job (and not `restart`),
        or if it is no work directory at all.
        """
        self.folder.mkdir(exist_ok=True)
        foreign = sorted(set(os.listdir(self.folder)) - set(_FILES))
        foreign = [name for name in foreign if not name.endswith(".tmp")]  # left by a killed atomic_write
        if foreign:
            raise ResumeError(f"{self.folder} is in the way: it holds {foreign[0]!r}, which is not this program's")
        with _locked(self.folder):
            try:
                if restart:
                    self._clear()
                self._check(manifest)
                with open(self.folder / "rows", "ab+") as rows, open(self.folder / "journal", "ab+") as journal:
                    self._rows, self._journal = rows, journal
                    self._recover()
                    yield self.done
            finally:
                self._remove_if_nothing_is_done()

    def _check(self, manifest: dict[str, Any]) -> None:
        path = self.folder / "manifest.json"
        begun = read_manifest(self.folder)
        if begun is None or not _rows_in(self.folder):
            self._clear()
            atomic_write(path, (json.dumps(manifest, indent=1) + "\n").encode())
            fsync(self.folder.parent)
            return
        differences = _differences(begun, manifest)
        if differences:
            raise ResumeError(
                f"{self.folder} holds a job that was begun with other settings: {'; '.join(differences)}. "
                "Use the same settings to go on, or --restart to throw that work away."
            )

    def _recover(self) -> None:
        """Reads the journal and cuts off what is not proven whole."""
        good = 0
        self._journal.seek(0)
        for line in self._journal:
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            good += len(line)
            self.done = done
        self._journal.truncate(good)
        size, first = os.stat(self._rows.name).st_size, header_size(self.kind)
        if self.done.finished and not size:
            self._renamed = self.output.exists()
            if not self._renamed:  # it was, and the output has been removed since
                self._journal.truncate(0)
                self.done = Done()
        if not self.done.rows:
            self._rows.truncate(0)
            self._rows.write(bytes(first))
            self._rows.flush()
        elif not self._renamed:
            end = first + 4 * self.hidden * self.done.rows
            if size < end or self._checksum(end) != self.done.crc:
                raise ResumeError(f"{self._rows.name} is damaged: it is not what its journal says. Use --restart.")
            self._rows.truncate(end)

    def _checksum(self, end: int) -> int:
        self._rows.seek(end - self.done.length)
        return zlib.crc32(self._rows.read(self.done.length))

    def append(self, rows: np.ndarray, cut: int, tokens: int, position: int) -> None:
        """Adds the rows of a window: float32 [B, hidden]. When this returns they survive a power cut."""
        data = np.ascontiguousarray(rows, dtype="<f4").tobytes()
        self._rows.write(data)
        self._rows.flush()
        os.fsync(self._rows.fileno())
        before = self.done
        self._record(
            Done(
                before.rows + len(rows), before.cut + cut, before.tokens + tokens, position, len(data), zlib.crc32(data)
            )
        )

    def _record(self, done: Done) -> None:
        self._journal.write(json.dumps(vars(done)).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.done = done

    def finish(self, about: dict[str, Any]) -> None:
        """Makes the output file out of the rows and removes the directory."""
        if not self.done.finished:
            self._record(Done(**{**vars(self.done), "finished": True}))
        self._rows.close()
        if not self._renamed:
            os.replace(self._finished_file(about), self.output)
            fsync(self.output.parent)
        self._journal.close()
        self._clear(everything=True)

    def _finished_file(self, about: dict[str, Any]) -> Path:
        """The file, still in this directory, that is the output; safe on disk."""
        rows, parquet = self.folder / "rows", self.folder / "rows.parquet"
        if self.kind == ".parquet":
            write_parquet(rows, parquet, self.done.rows, self.hidden)
            return parquet
        with open(rows, "rb+") as file:
            file.write(header(self.kind, self.done.rows, self.hidden, about))
        fsync(rows)
        return rows

    def _clear(self, everything: bool = False) -> None:
        for path in list(self.folder.iterdir()):
            if path.name != "lock" or everything:
                path.unlink()
        if everything:
            self.folder.rmdir()

    def _remove_if_nothing_is_done(self) -> None:
        """A job that failed before its first window leaves nothing to go on from: leave no directory either."""
        if self.folder.is_dir() and not _rows_in(self.folder):
            with suppress(OSError):
                self._clear(everything=True)


def partial_folder(output: Path) -> Path:
    """Where the work directory of an output file is."""
    return output.with_name(output.name + ".partial")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a work directory, None if it has none (or a broken one, which atomic writes do not leave)."""
    try:
        value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _rows_in(folder: Path) -> bool:
    path = folder / "journal"
    return path.is_file() and path.stat().st_size > 0


def _differences(begun: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two manifests, as text."""
    found: list[str] = []
    for key in dict.fromkeys([*begun, *now]):
        old, new = begun.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{key} " if key != "options" else prefix)
        elif old != new:
            found.append(f"{prefix}{key} was {old!r:.80}, now {new!r:.80}")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock that the system releases when the process dies, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResumeError(f"another process is working on {folder}: wait for it, or end it") from None
        yield
