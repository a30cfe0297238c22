"""What explain answers: data for programs, and a page for people."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

_LAYER = re.compile(r"(.*\blayers?)\.(\d+)((?:\..*)?)$")


@dataclass(frozen=True)
class Choice:
    """What one op of one module runs on.

    Attributes:
        module: its path in the model.
        op: such as "attention"; "linear" for a product with a layer's weight.
        backend: "triton", "cuda", "extension" (C++ on the CPU), "onednn" (packed weights), "onednn int8" or
            "reference" (PyTorch's own ops, on a GPU with cuBLAS).
        against: why not on another, such as ``("triton: head dimension 20 is not a multiple of 8 from 8 to 128",)``.
    """

    module: str
    op: str
    backend: str
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncoderRecord:
    """What an accelerated encoder of another library did so far.

    Attributes:
        module, kind: its path in the model ("" for the model itself), and its class.
        accelerated: calls that ran on this package's encoder, since ``accelerate`` or since it was copied.
        own_code: calls that ran its own code, by reason.
        hidden_positions, why: what is done with places that the attention mask hides.
        batches: of how many of the last accelerated calls the visible tokens were known without waiting for a device.
        padding: the share of places in those batches that hold no visible token; None if there was none.
    """

    module: str
    kind: str
    accelerated: int
    own_code: dict[str, int]
    hidden_positions: str
    why: str
    batches: int
    padding: float | None

    def __str__(self) -> str:
        lines = [
            f"{self.module or '(the model)'} ({self.kind}): {self.accelerated} calls accelerated, "
            f"{sum(self.own_code.values())} by its own code; hidden positions {self.hidden_positions!r}: {self.why}"
        ]
        if self.padding is not None:
            lines.append(f"  padding: {self.padding:.0%} of the places in the last {self.batches} known batches")
        lines += [f"  {count} by its own code: {reason}" for reason, count in self.own_code.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """Printed it is a page for people, :meth:`as_dict` is for programs.

    Attributes:
        model, device, dtype: what was explained: a class, "cuda:0" and "torch.bfloat16".
        mode: "inference" or "training", and whether gradients are taken.
        choices: in the order in which the ops run.
        encoders: for an accelerated model of another library, each encoder's record.
    """

    model: str
    device: str
    dtype: str
    mode: str
    choices: tuple[Choice, ...]
    encoders: tuple[EncoderRecord, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as dictionaries, lists and strings."""
        return asdict(self)

    def __str__(self) -> str:
        reasons = list(dict.fromkeys(reason for choice in self.choices for reason in choice.against))
        rows = [
            (name, choice.op, choice.backend, " ".join(f"[{reasons.index(reason) + 1}]" for reason in choice.against))
            for name, choice in _joined(self.choices)
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = [f"{self.model} on {self.device}, {self.dtype}, {self.mode}"]
        for *cells, notes in rows:
            padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {padded}  {notes}".rstrip())
        lines += [f"[{i}] {reason}" for i, reason in enumerate(reasons, 1)]
        return "\n".join([*lines, *map(str, self.encoders)])


def _joined(choices: Iterable[Choice]) -> list[tuple[str, Choice]]:
    """Choices with the names to print: those that are the same in several layers once, as ``layer.0-11``."""
    layers: dict[tuple[str, str, Choice], list[int]] = {}
    for choice in choices:
        found = _LAYER.match(choice.module)
        before, behind = (found[1], found[3]) if found else (choice.module, "")
        key = (before, behind, Choice("", choice.op, choice.backend, choice.against))
        layers.setdefault(key, []).extend([int(found[2])] if found else [])
    return [
        (f"{before}.{_ranges(numbers)}{behind}" if numbers else before or "(the model)", choice)
        for (before, behind, choice), numbers in layers.items()
    ]


def _ranges(numbers: list[int]) -> str:
    text, start = [], numbers[0]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if following != number + 1:
            text.append(str(start) if start == number else f"{start}-{number}")
            start = following if following is not None else start
    return ",".join(text)
