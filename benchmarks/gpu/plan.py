"""What there is to do, as data: every item by name, in order of importance, with the seconds it may take.

An item is the smallest thing that can be lost: it runs in a process that is killed when it hangs and replaced when the
GPU is lost to it. Nothing here imports PyTorch: the process that watches stays light.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """``module`` of this package runs it, in at most ``seconds``."""

    module: str
    name: str
    seconds: float
    quick: bool = True  # part of a --quick run

    @property
    def label(self) -> str:
        return f"{self.module}/{self.name}"


@dataclass(frozen=True)
class Section:
    """``seconds``: its share of the whole; what it leaves over goes to the sections after it."""

    name: str
    seconds: float
    items: tuple[Item, ...]


ATTENTION_LENGTHS = (128, 512, 64, 256, 32)
KERNELS = (
    "dropout_add_layer_norm",
    "dropout_add_layer_norm p=0.1",
    *(f"attention S={length}" for length in ATTENTION_LENGTHS),
    "attention ragged",
    "embedding_layer_norm",
    "embedding_layer_norm p=0.1",
    "bias_gelu",
    "attention S=128 p=0.1",
    "attention S=512 p=0.1",
    "scaled_masked_softmax",
    "gelu_layer_norm",
    "layer_norm",
    "cross_entropy",
    "linear_cross_entropy",
    "lamb",
    "adamw",
    "unpad",
    "pad_rows",
    "unpad_rows",
    "pool mean",
    "pool max",
)
SMALL_SHAPES = tuple(f"{part}/6" for part in range(6))
MODELS = ("model base", "model large", "model large training")
_NOT_QUICK = {"attention S=32", "attention S=256", "attention S=512 p=0.1", "layer_norm", "gelu_layer_norm"}


def _items(module: str, seconds: float, *names: str, skipped_when_quick: frozenset[str] = frozenset()) -> tuple:
    return tuple(Item(module, name, seconds, name not in skipped_when_quick) for name in names)


SECTIONS = (
    Section("machine", 15, _items("machine", 20, "facts", "gpu", "packages")),
    Section("build", 90, _items("build", 180, "install")),
    Section("doctor", 30, (*_items("build", 30, "extension"), *_items("doctor", 90, "selftest"))),
    Section(
        "kernels",
        190,
        (
            *_items("kernels", 100, "ahead"),
            *_items("kernels", 45, "roofs"),
            *_items("kernels", 75, *KERNELS, skipped_when_quick=frozenset(_NOT_QUICK)),
        ),
    ),
    Section(
        "model",
        150,
        (
            *_items("model", 75, "base 128", "large squad", "latency", "training"),
            *_items("model", 60, "profile"),
            *_items("model", 150, "compiled", skipped_when_quick=frozenset({"compiled"})),
        ),
    ),
    Section("tests", 120, _items("tests", 200, "gpu", "kernels", "extension", "large")),
    Section("sanitizer", 70, _items("sanitizer", 150, "memcheck", "racecheck")),
)


def selected(only: list[str] | None, *, build: bool, quick: bool) -> list[Section]:
    """The sections that run: those named, or all; building only where it was asked for.

    Raises:
        ValueError: no such section.
    """
    names = [section.name for section in SECTIONS]
    for name in only or []:
        if name not in names:
            raise ValueError(f"--only must name some of {', '.join(names)}, not {name!r}")
    chosen = []
    for section in SECTIONS:
        wanted = build if section.name == "build" else only is None or section.name in only
        items = tuple(item for item in section.items if item.quick or not quick)
        if wanted and items:
            chosen.append(Section(section.name, section.seconds, items))
    return chosen


def deadlines(sections: list[Section], seconds: float) -> list[float]:
    """When each section must have ended, in seconds from the start: shares scaled down to fit, saved time handed on."""
    total = sum(section.seconds for section in sections)
    scale = min(1.0, seconds / total) if total else 1.0
    ends, passed = [], 0.0
    for section in sections:
        passed += section.seconds * scale
        ends.append(passed)
    slack = seconds - passed
    return [end + slack for end in ends]
