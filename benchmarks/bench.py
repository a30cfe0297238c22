"""Measures bert_fast beside its peers: ops, encoders, latency, training, scaling, MLPerf-like scenarios.

    bert-fast bench                                 # kernels, model and latency on this machine
    bert-fast bench model --dtype bfloat16 --json out.json
    bert-fast bench kernels --only attention layer_norm
    bert-fast bench kernels model --against main    # this tree beside another revision, in one run

Whoever gives wrong numbers is reported as wrong and not timed. --json, --plots and --html keep what was found;
--from FILE makes plots and page of an earlier run's JSON. As pytest-benchmark users know it: pytest benchmarks.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import sections

DEFAULT = ("kernels", "model", "latency")
DTYPES = ("float32", "bfloat16", "float16", "int8")
_IN_INT8 = ("model", "latency", "scaling", "scenario")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Measure, show, and keep; 0, or 1 where ours was wrong or a section could not run."""
    parser = _parser(program)
    chosen = parser.parse_args(arguments)
    for name in chosen.sections:
        if name not in sections.NAMES:
            parser.error(f"a section must be one of {', '.join(sections.NAMES)}, not {name!r}")
    _can_keep(chosen)
    if chosen.source is not None:
        from benchmarks.report.store import read

        facts = read(chosen.source)
        _show(facts)
        return _keep(facts, chosen)
    return _measure(chosen)


def _can_keep(chosen: argparse.Namespace) -> None:
    """Before anything is measured, since after an hour it would be lost.

    Raises:
        ValueError: a file's folder does not exist, or plots cannot be drawn.
    """
    for option, path in (("--json", chosen.json), ("--html", chosen.html)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option} must name a file in a folder that exists, not {str(path)!r}")
    if (chosen.plots or chosen.html) and importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plots and --html need matplotlib: pip install -e ".[bench]" brings it')


def _measure(chosen: argparse.Namespace) -> int:
    import torch

    from benchmarks.report.store import Run

    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    settings = _settings(chosen)
    run = Run(settings.plain())
    before = signal.signal(signal.SIGTERM, _stopped)
    names = chosen.sections or DEFAULT
    good = True
    try:
        if chosen.against:
            from benchmarks.against import compare

            for row in compare(chosen.against, names, settings):
                run.add("against", row)
                good = good and "error" not in row
        else:
            for name in names:
                good = _section(name, settings, run) and good
                _write(run, chosen)
    finally:  # what an interrupted run had found is shown and kept, too
        signal.signal(signal.SIGTERM, before)
        _show(run.facts)
        _write(run, chosen)
    _keep(run.facts, chosen)
    return 0 if good else 1


def _stopped(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _section(name: str, settings: Any, run: Any) -> bool:
    """One section's rows; whether ours ran and was right throughout."""
    from benchmarks.report.tables import reason_of

    began = time.monotonic()
    good = True
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        for row in importlib.import_module(f"benchmarks.sections.{name}").run(settings):
            run.add(name, row)
            ours = "bert_fast" in (row.get("provider"), row.get("peer"))
            good = good and not (ours and "not run" not in row and reason_of(row))
    except (ArithmeticError, ImportError) as error:
        run.add(name, {"error": f"{type(error).__name__}: {error}"})
        good = False
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return good


def _settings(chosen: argparse.Namespace) -> Any:
    import torch

    from benchmarks import peers
    from benchmarks.settings import Settings

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch.cuda.is_available() is False here")
    on_gpu = device == "cuda"
    if chosen.dtype == "int8" and (on_gpu or not set(chosen.sections or DEFAULT) <= set(_IN_INT8)):
        raise ValueError(f"--dtype int8 is for the encoders on a CPU: sections {', '.join(_IN_INT8)}")
    large = chosen.sections == ["scenario"]
    for name in chosen.peers or ():
        peers.peer(name)
    if chosen.texts is not None and not (chosen.model and Path(chosen.model).is_dir() and chosen.texts.is_file()):
        raise ValueError(
            f"--texts must be a file, and --model the folder of a model with its tokenizer to read it with, not "
            f"{str(chosen.texts)!r} and {chosen.model!r}"
        )
    return Settings(
        device=device,
        dtype=chosen.dtype or ("bfloat16" if on_gpu else "float32"),
        model=chosen.model or ("large" if on_gpu and large else "base" if on_gpu else "minilm"),
        threads=torch.get_num_threads(),
        seconds=chosen.seconds,
        sequences=chosen.sequences,
        batch_size=chosen.batch_size or (256 if on_gpu else 32),
        texts=chosen.texts,
        only=tuple(chosen.only or ()),
        peers=tuple(chosen.peers or peers.NAMES),
        compile=not chosen.no_compile,
        bound_ms=chosen.bound_ms,
        tokens=chosen.tokens,
        tiny=chosen.tiny,
    )


def _show(facts: dict[str, Any]) -> None:
    from benchmarks.report.tables import tables, text

    for table in tables(facts):
        print(text(table), end="\n\n")


def _write(run: Any, chosen: argparse.Namespace) -> None:
    if chosen.json is not None:
        run.write(chosen.json)


def _keep(facts: dict[str, Any], chosen: argparse.Namespace) -> int:
    """Plots and page, where they were asked for."""
    if chosen.plots is None and chosen.html is None:
        return 0
    from benchmarks.report.page import page
    from benchmarks.report.plots import plots
    from bert_fast.io import atomic_write

    made = plots(facts)
    if chosen.plots is not None:
        chosen.plots.mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            atomic_write(chosen.plots / f"{name}.png", data)
    if chosen.html is not None:
        atomic_write(chosen.html, page(facts, made).encode())
    return 0


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"{', '.join(sections.NAMES)} (default: {' '.join(DEFAULT)})")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--model", metavar="SIZE|DIR", help="minilm, base, large (random weights) or a checkpoint's folder")
    add("--texts", type=Path, metavar="FILE", help="texts, one a line, as a workload of section model; --model DIR")
    add("--only", nargs="+", metavar="WORD", help="ops, mixes, lengths or sweeps whose name holds one of these")
    add("--peers", nargs="+", metavar="NAME", help="files of benchmarks/peers: ours hugging_face onnx_runtime ...")
    add("--threads", type=_positive, metavar="N", help="CPU threads, for everybody (default: PyTorch's)")
    add("--seconds", type=float, default=15.0, metavar="S", help="about, for one comparison of all peers (15)")
    add("--sequences", type=int, default=0, metavar="N", help="in a mix of lengths")
    add("--batch-size", type=_positive, metavar="N", help="default: 32 on a CPU, 256 on a GPU")
    add("--tokens", type=int, default=0, metavar="N", help="of the kernels' inputs (2048 on a CPU, 65536 on a GPU)")
    add("--bound-ms", type=float, default=130.0, metavar="MS", help="of scenario server: MLPerf's 130")
    add("--no-compile", action="store_true", help="kernels without torch.compile, which takes long to compile")
    add("--tiny", action="store_true", help="everything small: a look at the suite, no measurement")
    add("--against", metavar="REV", help="time ours alone, this tree and that git revision in turn")
    add("--json", type=Path, metavar="FILE", help="keep the rows and the environment")
    add("--plots", type=Path, metavar="DIR", help="keep plots as PNG")
    add("--html", type=Path, metavar="FILE", help="keep one page with tables and plots")
    add("--from", dest="source", type=Path, metavar="FILE", help="measure nothing: show an earlier run's JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
