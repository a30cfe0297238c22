"""How cost grows: with the tokens of a batch, the length at equal tokens, the batch, the layers and the hidden size.

Each sweep changes one thing, and a line through its times says what the change costs: seconds for what is there in any
case, and seconds for one more. At equal tokens attention grows with the length; hidden size is a power.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.sections.encoders import Contender, base_model, ready
from benchmarks.settings import Settings
from benchmarks.workloads import Batch, collate, random_ids

_PEERS = ("ours", "hugging_face")
_LENGTH = 128
SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "tokens": (128, 256, 512, 1024, 2048, 4096),
    "length": (16, 32, 64, 128, 256, 512),
    "layers": (1, 2, 4, 8, 12),
    "hidden": (128, 256, 384, 512, 768),
}
_TINY: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 3), "tokens": (8, 16, 32), "length": (4, 8, 16), "layers": (1, 2, 3), "hidden": (16, 32, 48),
}  # fmt: skip


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row per sweep, peer and value, then one with the fit for each sweep and peer."""
    for sweep, values in (_TINY if settings.tiny else SWEEPS).items():
        if not settings.wanted(sweep):
            continue
        times: dict[str, list[float]] = {}
        for value, calls in _calls(settings, sweep, values):
            for name, timing in settings.compete(calls).items():
                times.setdefault(name, []).append(timing.seconds)
                yield {
                    "sweep": sweep, "value": value, "peer": name, "model": settings.model_name,
                    "dtype": settings.dtype, "s": timing.seconds, "p20": timing.p20, "p80": timing.p80,
                    "runs": timing.runs,
                }  # fmt: skip
        for name, seconds in times.items():
            yield {"sweep": sweep, "peer": name, "dtype": settings.dtype, "fit": fitted(sweep, values, seconds)}


def _calls(
    settings: Settings, sweep: str, values: Sequence[int]
) -> Iterator[tuple[int, dict[str, Callable[[], object]]]]:
    if sweep in ("layers", "hidden"):
        for value in values:
            if sweep == "layers":
                change = {"num_hidden_layers": value}
            else:
                heads = max(1, value // 64)
                change = {"hidden_size": value, "intermediate_size": 4 * value, "num_attention_heads": heads}
            model = base_model(settings, **change)
            contenders, _ = ready(settings, model, _PEERS)
            batch = _batch(settings, model, [4 if settings.tiny else _LENGTH] * (2 if settings.tiny else 8))
            yield value, _bound(contenders, batch)
        return
    model = base_model(settings)
    contenders, _ = ready(settings, model, _PEERS)
    length = 4 if settings.tiny else _LENGTH
    tokens = 32 if settings.tiny else 2048
    for value in values:
        lengths = {
            "batch": [length] * value,
            "tokens": [length] * (value // length),
            "length": [value] * (tokens // value),
        }[sweep]
        yield value, _bound(contenders, _batch(settings, model, lengths))


def _batch(settings: Settings, model: Any, lengths: list[int]) -> Batch:
    return settings.to_device(collate(random_ids(lengths, model.config.vocab_size)))


def _bound(contenders: Sequence[Contender], batch: Batch) -> dict[str, Callable[[], object]]:
    return {c.name: lambda encode=c.encode: encode(batch) for c in contenders}


def fitted(sweep: str, values: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The law of a sweep: its text, coefficients in microseconds, and how much of the spread it explains.

    Relative errors are what is made small, so that the short times count as much as the long.
    """
    x, y = np.asarray(values, dtype=float), np.asarray(seconds, dtype=float) * 1e6
    if sweep == "hidden":
        power, scale = np.polyfit(np.log(x), np.log(y), 1)
        predicted = np.exp(scale) * x**power
        explained = _explained(np.log(y), np.log(predicted))
        return {"law": f"hidden^{power:.2f}", "power": float(power), "explained": explained}
    columns = [np.ones_like(x), x]
    coefficients, *_ = np.linalg.lstsq(np.stack([c / y for c in columns], 1), np.ones_like(y), rcond=None)
    predicted = sum(c * column for c, column in zip(coefficients, columns, strict=True))
    fixed, each = (float(c) for c in coefficients)
    law = f"{_short(fixed)} + {_short(each)} a {_ONE[sweep]}"
    return {"law": law, "fixed_us": fixed, "each_us": each, "explained": _explained(y, predicted)}


def _short(us: float) -> str:
    """Three digits, and no power of ten."""
    value, unit = (us / 1e3, "ms") if abs(us) >= 1000 else (us, "us")
    return f"{float(f'{value:.3g}'):,g} {unit}"


_ONE = {"batch": "sequence", "tokens": "token", "length": "token of length", "layers": "layer"}


def _explained(y: np.ndarray, predicted: np.ndarray) -> float:
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - predicted) ** 2).sum()) / spread if spread > 0 else 1.0


def ours(settings: Settings) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ours at each value of each sweep."""
    for sweep, values in (_TINY if settings.tiny else SWEEPS).items():
        if settings.wanted(sweep):
            for value, calls in _calls(settings, sweep, values):
                yield f"{sweep} {value}", calls["bert_fast"]
