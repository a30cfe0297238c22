"""encode_file: a file of texts to a file of embeddings, in constant memory, resumable after any death."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_fast.encode.encoder import DTYPES, Encoder, Window
from bert_fast.encode.identity import input_identity, model_identity, software
from bert_fast.encode.inputs import InputError, Source
from bert_fast.encode.memory import give_back
from bert_fast.encode.outputs import output_kind
from bert_fast.encode.partial import Done, Partial, ResumeError, partial_folder, read_manifest
from bert_fast.encode.progress import Progress
from bert_fast.ops.linear import cpu_linear_plan, pinned_cpu_linear


@dataclass(frozen=True)
class Report:
    """What a job did: rows and tokens in all, texts that were cut, rows found done at the start, and
    the seconds spent, loading the model not counted."""

    output: Path
    rows: int
    hidden: int
    tokens: int
    cut: int
    max_length: int
    resumed: int
    seconds: float

    def __str__(self) -> str:
        rate = (self.rows - self.resumed) / self.seconds
        lines = [f"{self.output}: {self.rows:,} x {self.hidden} float32, {self.tokens:,} tokens"]
        lines.append(f"{self.seconds:.1f} s, {rate:,.0f} texts/s" + (", not counting" if self.resumed else ""))
        if self.resumed:
            lines[-1] += f" the {self.resumed:,} that were done before"
        if self.cut:
            lines.append(f"{self.cut:,} texts were longer than {self.max_length} tokens and were cut")
        return "\n".join(lines)


def encode_file(
    source: str | Path,
    output: str | Path,
    model: str | Path,
    *,
    input_format: str | None = None,
    text_field: str | None = None,
    threads: int | None = None,
    restart: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    **options: Any,
) -> Report:
    """Embeds every text of `source` into `output`, row by row in the same order.

    `output` appears when it is complete. Until then the work is in `OUTPUT.partial`, and the same call goes on from
    there after a kill, a crash or a power cut, to the same bytes as an unbroken run. Memory does not grow with the
    input. The output's suffix decides its format: `.npy` (float32 [rows, hidden]), `.safetensors` (tensor
    "embeddings") or `.parquet` (column "embedding").

    Args:
        source: text (one per line), .jsonl, .csv, .tsv or .parquet; "-" is standard input, which cannot be resumed.
        model: a checkpoint's folder.
        input_format: "text", "jsonl", "csv", "tsv" or "parquet" where the suffix does not say it.
        text_field: the JSON field or column; "text" by default.
        threads: of the CPU; None means PyTorch's choice, or that of the run that is gone on with.
        restart: throw away what an earlier run has done.
        overwrite: replace an output that is there.
        quiet: show no progress.
        options: pooling, normalize, max_length, max_tokens, prompt, dtype, device, quantization: as for `Encoder`.

    Raises InputError, ResumeError, RecipeError, TokenizerError or ValueError, all ValueErrors with one clear line.
    """
    output = Path(output)
    kind = output_kind(output)
    reader = Source(source, input_format, text_field)
    _check_output(reader, output, overwrite)
    begun = read_manifest(partial_folder(output)) or {}
    if begun.get("input") == {"stdin": True} and reader.is_stdin:
        restart = True
    before = {} if restart else begun.get("options", {})
    with _settings(threads or before.get("threads"), before):
        encoder = Encoder(model, **options)
        manifest = {
            "input": input_identity(reader),
            "model": model_identity(encoder.recipe.model_folder),
            "options": {**encoder.describe(), "output": kind, "threads": torch.get_num_threads(), **_plan(encoder)},
            "software": software(),
        }
        began = time.monotonic()
        partial = Partial(output, kind, encoder.hidden_size)
        with partial.opened(manifest, restart) as start:
            resumed = start.rows
            try:
                if not start.finished:
                    _run(encoder, reader, partial, start, quiet)
                partial.finish(manifest["options"])
            except KeyboardInterrupt:
                if not quiet:
                    print(f"\n{_how_to_go_on(partial, reader)}", file=sys.stderr)
                raise
    done, hidden, limit = partial.done, encoder.hidden_size, encoder.max_length
    return Report(output, done.rows, hidden, done.tokens, done.cut, limit, resumed, time.monotonic() - began)


def _check_output(source: Source, output: Path, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"cannot write {output}: it is a folder")
    if not source.is_stdin and output.exists() and output.samefile(source.path):
        raise InputError(f"{output} is the input itself")
    if output.exists() and not overwrite and not partial_folder(output).exists():
        raise InputError(f"{output} is there already: --overwrite replaces it")


@contextmanager
def _settings(threads: int | None, before: dict[str, Any]) -> Iterator[None]:
    """Within the block, as many CPU threads, and the matrix product that a run to be gone on with had measured best."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: at least 1")
    had = torch.get_num_threads()
    with ExitStack() as stack:
        if threads is not None:
            torch.set_num_threads(threads)
            stack.callback(torch.set_num_threads, had)
        if before.get("cpu_linear") is not None:
            packed, dtype = before["cpu_linear"]
            stack.enter_context(pinned_cpu_linear(DTYPES[before["dtype"]], (packed, DTYPES[dtype])))
        yield


def _plan(encoder: Encoder) -> dict[str, Any]:
    """Which matrix product runs on the CPU: measured, so it might come out differently on resuming; None on a GPU."""
    if encoder.device.type != "cpu":
        return {"cpu_linear": None}
    packed, dtype = cpu_linear_plan(encoder.dtype)
    return {"cpu_linear": [packed, str(dtype).removeprefix("torch.")]}


def _run(encoder: Encoder, source: Source, partial: Partial, start: Done, quiet: bool) -> None:
    """Encodes what is not done yet. Reading, computing and writing overlap; three windows are in memory at most."""
    progress = Progress(source.total, source.unit, start.position, quiet)
    pending: Future[None] | None = None
    first = start.rows
    with ThreadPoolExecutor(1) as writer, _read_ahead(encoder, source, start.rows) as windows:
        try:
            for window, position in windows:
                rows = _embed(encoder, window, first)
                first += len(rows)
                if pending is not None:
                    pending.result()
                pending = writer.submit(partial.append, rows, window.cut, len(window.ids), position)
                progress.update(position, len(rows))
                give_back()
        finally:
            if pending is not None:
                pending.result()
            progress.close()


def _embed(encoder: Encoder, window: Window, first: int) -> np.ndarray:
    try:
        rows = encoder.embed(window)
    except torch.OutOfMemoryError as error:
        raise ResumeError(
            f"out of GPU memory at --max-tokens {encoder.max_tokens}: use less, with --restart"
        ) from error
    if not np.isfinite(rows).all():
        worst = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ResumeError(f"the vector of text {first + worst + 1} or one near it is not finite in {encoder.dtype}")
    return rows


@contextmanager
def _read_ahead(encoder: Encoder, source: Source, skip: int) -> Iterator[Iterator[tuple[Window, int]]]:
    """Reads and tokenizes in another thread, one window ahead; what goes wrong there is raised here."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for window in encoder.windows(source.texts(skip)):
                put((window, source.position()))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed over, and raised in the thread that waits
            put(error)

    def consume() -> Iterator[tuple[Window, int]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=produce, name="bert-fast reader", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        if not source.is_stdin:  # a read from a terminal may never return; the thread is a daemon
            thread.join()


def _how_to_go_on(partial: Partial, source: Source) -> str:
    if source.is_stdin:
        return "stopped; standard input cannot be read again, so nothing is kept"
    if not partial.done.rows:
        return "stopped before anything was done"
    return f"stopped; {partial.done.rows:,} texts are safe in {partial.folder}: run the same command again to go on"
