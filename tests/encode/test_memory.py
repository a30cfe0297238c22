"""Memory does not grow with the input: neither with its rows nor with its bytes."""

import os
import subprocess
import sys

import pytest
from encode import tiny

ROWS, TIMES = 8_000, 6
HIDDEN = 256
# Each further row is 1 KiB of embedding and 1 KiB of text: keeping either would cost 39 MiB. A run that does not grow
# still has up to 18 MiB between its peaks: how far reading, computing and writing overlap is chance, and a long run
# meets the worst of it (seven runs of each length, alone and beside two busy processes: 273-275 and 281-289 MiB).
ALLOWED_MIB = 24

# Not getrusage: its ru_maxrss starts from what the parent had.
RUN = """
import sys
from bert_fast.cli import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def peak_mib(folder, source, output):
    arguments = ["encode", str(source), "--model", str(folder), "--output", str(output), "--threads", "1", "--quiet"]
    arguments += ["--max-tokens", "1024"]
    # oneDNN keeps a compiled product for each of the few numbers of rows it meets, up to 38 MiB here, late ones too.
    environment = {**os.environ, "BERT_FAST_CPU_LINEAR": "torch"}
    command = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_memory_is_flat(tmp_path):
    folder = tiny.write_model(tmp_path / "model", hidden=HIDDEN, layers=1)
    texts = [text[:20].ljust(1000) for text in tiny.make_texts(ROWS)]
    peaks = []
    for times in (1, TIMES):
        source = tmp_path / f"{times}.txt"
        with open(source, "w", encoding="utf-8") as file:
            for _ in range(times):
                file.writelines(f"{text}\n" for text in texts)
        peaks.append(peak_mib(folder, source, tmp_path / f"{times}.npy"))
    assert peaks[1] - peaks[0] <= ALLOWED_MIB, peaks
