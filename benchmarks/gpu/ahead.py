"""Compiling ahead, in as many processes as there are cores: Triton and torch.compile keep what they make on disk.

    python -m benchmarks.gpu.ahead --options JSON NAME...

Compilers, not the GPU, would otherwise take most of the time of a run on a machine that has compiled nothing yet.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import bert_fast
from benchmarks.gpu.plan import KERNELS, MODELS, SMALL_SHAPES
from benchmarks.options import ROOT, Options

if TYPE_CHECKING:
    from benchmarks.context import Context


def ahead(options: Options) -> Iterator[dict[str, Any]]:
    """Start the processes, wait for all of them; a row with what each came to."""
    names = KERNELS[:1] if options.rehearse else (*MODELS, *SMALL_SHAPES, *KERNELS)
    count = max(1, min(len(names), (os.cpu_count() or 2) - 2))
    command = [sys.executable, "-m", "benchmarks.gpu.ahead", "--options", options.to_json()]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    started = []
    for index in range(count):
        share = names[index::count]
        process = subprocess.Popen(
            [*command, *share], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append((share, process))
    for share, process in started:
        output, _ = process.communicate()
        row = {"compiled": list(share), "exit": process.returncode, "seconds": round(time.monotonic() - began, 1)}
        yield row if process.returncode == 0 else row | {"output": output[-3000:]}


def main(arguments: list[str] | None = None) -> int:
    """Run ours and the compiled peer once in every direction: what they compile, later processes find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", type=Options.from_json, required=True)
    parser.add_argument("names", nargs="+")
    chosen = parser.parse_args(arguments)
    from benchmarks.context import context

    here = context(chosen.options)
    failures = 0
    for name in chosen.names:
        here.forget_compiled()
        try:
            _once(name, here)
        except Exception as error:  # noqa: BLE001 - the item of this op will meet it again and report it
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            failures += 1
    return 1 if failures else 0


def _once(name: str, here: Context) -> None:
    from benchmarks.gpu import model_setup, small_shapes
    from benchmarks.measure import once
    from benchmarks.specs import spec_named

    if name in SMALL_SHAPES:
        small_shapes.main([name])
    elif name in MODELS:
        model = model_setup.ours(here, name.split()[1], "BertForPreTraining" if "training" in name else "BertModel")
        with here.ours():
            bert_fast.warmup(model, [(2, 8 if here.rehearse else 384)], training="training" in name)
    else:
        once(spec_named(name, here), here)


if __name__ == "__main__":
    sys.exit(main())
