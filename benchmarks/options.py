"""Where and how large to measure, as data. No PyTorch here: what only watches other processes stays light."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """What a command line chose; other processes get it as JSON.

    Attributes:
        rehearse: everything tiny on the CPU, Triton's kernels in its interpreter: every line, and no measurement.
        quick: fewer ops and a quarter of the tokens.
        dtype: "float32", "bfloat16" or "float16".
        device: "cuda" or "cpu", where a measurement is meant (a rehearsal has no choice).
        tokens: of the kernels' timed inputs; 0 for the device's own number.
        tiny: a rehearsal's sizes, for a look at how things run and not how fast.
    """

    rehearse: bool = False
    quick: bool = False
    dtype: str = "bfloat16"
    device: str = "cuda"
    tokens: int = 0
    tiny: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Options:
        return cls(**json.loads(text))
