"""doctor's self-test, on the CPU and on every GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.options import Options


def run(name: str, options: Options) -> Iterator[dict[str, Any]]:
    """Item "selftest": one row per op, device and dtype, as `bert-fast doctor --json` has them."""
    from bert_fast.doctor.report import examine

    found = examine()
    yield from found["ops"]
    fallen_back = [
        f"{row['op']} ({row['dtype']}): {'; '.join(sum(row['reasons'].values(), []))}"
        for row in found["ops"]
        if row["device"].startswith("cuda") and row["backend"] == "reference" and row["reasons"]
    ]
    yield {"problems": found["problems"], "hints": found["hints"], "without their kernel": fallen_back}
    if found["problems"]:
        raise RuntimeError("doctor found problems:\n" + "\n".join(found["problems"]))
