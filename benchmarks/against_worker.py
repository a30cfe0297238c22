"""One of the two processes of ``--against``: times cases of ours on demand, a line of JSON for each.

Run by its path, so that neither this folder nor the checkout beside it is where ``import bert_fast`` looks.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_ENOUGH = 5e-3  # seconds


def main() -> int:
    """Answer until standard input ends."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (FOLDER, FOLDER.parent)]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not end up among the answers
    _import_benchmarks()
    asked = json.loads(sys.stdin.readline())
    settings = _settings(asked["settings"])
    cases, failed = {}, {}
    for section in asked["sections"]:
        try:
            for name, call in importlib.import_module(f"benchmarks.sections.{section}").ours(settings):
                cases[f"{section}: {name}"] = call
        except Exception as error:  # noqa: BLE001 - an older revision may lack what a section begins with
            failed[section] = f"{type(error).__name__}: {error}"[:500]
    import bert_fast

    _write(answers, {"cases": list(cases), "failed": failed, "package": bert_fast.__file__})
    repeats: dict = {}
    for line in sys.stdin:
        _write(answers, _timed(cases[json.loads(line)["case"]], settings, repeats))
    return 0


def _import_benchmarks() -> None:
    spec = importlib.util.spec_from_file_location(
        "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["benchmarks"])


def _settings(given: dict):
    import torch

    from benchmarks.settings import Settings

    torch.set_num_threads(given["threads"])
    for name in ("only", "peers"):
        given[name] = tuple(given[name])
    given["texts"] = Path(given["texts"]) if given["texts"] else None
    return Settings(**given)


def _timed(call, settings, repeats: dict) -> dict:
    """Seconds of one call, over as many as make a time that a clock can tell; how many, the first call says."""
    import torch

    def clocked(times: int) -> float:
        if settings.context.on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            call()
        if settings.context.on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    try:
        if call not in repeats:
            clocked(1)
            repeats[call] = max(1, min(1000, int(_ENOUGH / clocked(1))))
        return {"seconds": clocked(repeats[call])}
    except Exception as error:  # noqa: BLE001 - what this revision cannot do is the case's result
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _write(answers, answer: dict) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
