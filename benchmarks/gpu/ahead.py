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
from typing import Any

from benchmarks.gpu.plan import KERNELS, ROOT, SMALL_SHAPES, Options


def ahead(options: Options) -> Iterator[dict[str, Any]]:
    """Start the processes, wait for all of them; a row with what each came to."""
    names = KERNELS[:1] if options.rehearse else (*KERNELS, *SMALL_SHAPES)
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
    from benchmarks.gpu import small_shapes
    from benchmarks.gpu.context import context
    from benchmarks.gpu.kernels import once
    from benchmarks.gpu.specs import spec_named

    here = context(chosen.options)
    failures = 0
    for name in chosen.names:
        here.forget_compiled()
        try:
            if name in SMALL_SHAPES:
                small_shapes.main([name])
            else:
                once(spec_named(name, here), here)
        except Exception as error:  # noqa: BLE001 - the item of this op will meet it again and report it
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
