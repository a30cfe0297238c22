"""Compile the production kernels for GPUs that are not here, and read from the machine code what they need.

    python tests/kernels/compiled.py [--arch 80 90] [--dtype bfloat16] [--only "attention D=64"] [--json]

A kernel's registers, spills and load widths depend on facts of the launch (alignment of pointers, strides that are
constants), so nothing here imitates a launch: the launchers themselves run, on small CPU tensors, under a stand-in
driver that claims a GPU. Where they would start a kernel, the compiled kernel is kept instead.

What to launch is listed beside the kernels' tests: each ``tests/kernels/cases_*.py`` has ``cases(dtype)``, which yields
``(name, launch)`` with ``launch`` a function without arguments. A launch may run several kernels.

This runs in a process of its own: kernels imported for the interpreter cannot be compiled.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

CAPABILITIES = (80, 86, 89, 90, 100, 120)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a multiprocessor offers (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    block_shared: int  # bytes one block may use
    shared: int  # bytes of all blocks together; each block also costs 1,024
    warps: int
    blocks: int
    registers: int = 65536


CHIPS = {
    80: Chip(166912, 167936, 64, 32),
    86: Chip(101376, 102400, 48, 16),
    89: Chip(101376, 102400, 48, 24),
    90: Chip(232448, 233472, 64, 32),
    100: Chip(232448, 233472, 64, 32),
    120: Chip(101376, 102400, 48, 24),
}


TENSOR_MEMORY = 512  # columns of a multiprocessor's tensor memory, where a chip has one


@dataclasses.dataclass
class Resources:
    """One compiled kernel. ``loads``: instructions that read global memory (also into shared), by bits a thread."""

    case: str
    kernel: str
    capability: int
    dtype: str
    warps: int
    registers: int
    spills: int  # instructions that read or write local memory
    stack: int  # bytes a thread
    shared: int  # bytes a block
    tensor_memory: int  # columns a block (sm_100)
    blocks: int  # that fit on a multiprocessor
    instructions: int
    loads: dict[str, int]
    matrix: dict[str, int]  # matrix instructions by name, such as HMMA.16816.F32.BF16


class StandInDriver:
    """As much of a Triton driver as compiling asks for. Each capability is a device, so that caches keep them apart."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[list[tuple[str, object]]]:
    """Inside, launches compile for ``capability`` instead of running; yields the growing list of (kernel, compiled)."""
    import triton
    from triton.runtime.jit import JITFunction

    kept: list[tuple[str, object]] = []
    run = JITFunction.run

    def compile_only(self, *args, **kwargs):
        kwargs["warmup"] = True
        compiled = run(self, *args, **kwargs)
        kept.append((self.fn.__name__, compiled))
        return compiled

    triton.runtime.driver.set_active(StandInDriver(capability))
    JITFunction.run = compile_only
    try:
        yield kept
    finally:
        JITFunction.run = run


def resources(case: str, name: str, compiled, capability: int, dtype: str) -> Resources:
    """Reads a compiled kernel's machine code."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    opcodes = collections.Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.M))
    warps, shared, registers = compiled.metadata.num_warps, compiled.metadata.shared, int(usage[1])
    columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    blocks = blocks_that_fit(CHIPS[capability], warps, registers, shared, columns)
    return Resources(
        case=case, kernel=name, capability=capability, dtype=dtype, warps=warps, registers=registers,
        spills=sum(n for op, n in opcodes.items() if op.split(".")[0] in ("STL", "LDL")), stack=int(usage[2]),
        shared=shared, tensor_memory=columns, blocks=blocks,
        instructions=sum(opcodes.values()), loads=_loads(opcodes),
        matrix={op: n for op, n in sorted(opcodes.items()) if re.match(r"(HMMA|HGMMA|UTC\w*MMA)\b", op)},
    )  # fmt: skip


def blocks_that_fit(chip: Chip, warps: int, registers: int, shared: int, columns: int = 0) -> int:
    """Blocks a multiprocessor holds at once. Registers are given out to warps 256 at a time."""
    a_warp = -(-registers * 32 // 256) * 256
    by_registers = chip.registers // a_warp // warps
    by_shared = chip.shared // (shared + 1024) if shared <= chip.block_shared else 0
    by_columns = TENSOR_MEMORY // columns if columns else chip.blocks
    return min(by_registers, by_shared, by_columns, chip.warps // warps, chip.blocks)


def _loads(opcodes: collections.Counter[str]) -> dict[str, int]:
    found: collections.Counter[str] = collections.Counter()
    for opcode, count in opcodes.items():
        name, *modifiers = opcode.split(".")
        if name not in ("LDG", "LDGSTS"):
            continue
        wide = [m for m in modifiers if m in ("64", "128", "256")]
        narrow = [m[1:] for m in modifiers if m in ("U8", "S8", "U16", "S16")]
        found[(wide or narrow or ["32"])[0]] += count
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def measure(
    capabilities: tuple[int, ...] = CAPABILITIES, dtypes: tuple[str, ...] = ("bfloat16",), only: str = ""
) -> Iterator[Resources]:
    """Compiles every case whose "file name" matches ``only``, a regular expression, for each capability and dtype."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1: interpreted kernels cannot be compiled; unset it for this process")
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for dtype in dtypes:
            for name, launch in module.cases(DTYPES[dtype]):
                if not re.search(only, f"{path.stem} {name}"):
                    continue
                for capability in capabilities:
                    with compiling_for(capability) as kept, _quiet():
                        launch()
                    for kernel, compiled in kept:
                        yield resources(name, kernel, compiled, capability, dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what Triton prints from standard output, which carries the table, and shows it if compiling fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except BaseException:
        print(said.getvalue()[:4000], file=sys.stderr)
        raise


def table(rows: list[Resources]) -> str:
    """The rows as aligned text."""
    head = ["case", "kernel", "sm", "dtype", "warps", "regs", "spills", "stack", "shared", "tmem", "blocks/SM"]
    head += ["loads", "matrix"]
    lines = [head]
    for r in rows:
        loads = " ".join(f"{n}x{bits}" for bits, n in r.loads.items())
        matrix = " ".join(f"{n}x{op}" for op, n in r.matrix.items())
        numbers = (r.warps, r.registers, r.spills, r.stack, r.shared, r.tensor_memory, r.blocks)
        lines.append([r.case, r.kernel, str(r.capability), r.dtype, *map(str, numbers), loads, matrix])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compile the kernels for GPUs that are not here; print what they need."
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16"])
    parser.add_argument("--only", default="", help="a regular expression for case files and cases")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    found = []
    for row in measure(tuple(options.arch), tuple(options.dtype), options.only):
        found.append(row)
        if options.json:
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    if not options.json:
        print(table(found))


if __name__ == "__main__":
    main()
