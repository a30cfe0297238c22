"""What the calls of an accelerated encoder did: kept cheaply with every call, read by explain."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bert_fast import notices
from bert_fast.ops.library import valueless
from bert_fast.packing import Layout

_BATCHES = 64


class Record:
    """Counts of one encoder's calls.

    Attributes:
        accelerated: calls that ran packed.
        reasons: how many ran the module's own code, by reason.
        batches: visible tokens and places of the last packed calls of which both were known on the host.
    """

    def __init__(self) -> None:
        self.accelerated = 0
        self.reasons: Counter[str] = Counter()
        self.batches: deque[tuple[int, int]] = deque(maxlen=_BATCHES)

    def packed(self, layout: Layout) -> None:
        """A call ran packed."""
        asked = _asked.get()
        if asked is not None:
            asked.append((self, None))
            return
        self.accelerated += 1
        tokens = _tokens(layout)
        if tokens is not None and layout.padded_shape is not None:
            batch, seqlen = layout.padded_shape
            self.batches.append((tokens, batch * seqlen))

    def own_code(self, kind: str, reason: str) -> None:
        """A call of an encoder of class ``kind`` ran its own code; the first one for a reason warns."""
        asked = _asked.get()
        if asked is not None:
            asked.append((self, reason))
            return
        first = reason not in self.reasons
        self.reasons[reason] += 1
        if first:
            notices.warn(f"bert_fast: {kind} runs its own code: {reason}")

    def padding(self) -> float | None:
        """The share of the places in ``batches`` without a visible token; None if there are none."""
        batches = self.batches.copy()  # other threads go on adding
        places = sum(size for _, size in batches)
        return 1 - sum(tokens for tokens, _ in batches) / places if places else None


_asked: ContextVar[list[tuple[Record, str | None]] | None] = ContextVar("asked", default=None)


@contextmanager
def asking() -> Iterator[list[tuple[Record, str | None]]]:
    """Within the block, calls go into the list that is given, with why they ran their own code, and in no record."""
    heard: list[tuple[Record, str | None]] = []
    token = _asked.set(heard)
    try:
        yield heard
    finally:
        _asked.reset(token)


def _tokens(layout: Layout) -> int | None:
    """How many tokens the mask shows, where saying so waits for no device."""
    if layout.bias is not None:
        return None  # it may hide anything
    mask, device = layout.key_mask, layout.cu_seqlens.device
    if mask is not None:
        return int(mask.sum()) if device.type == "cpu" and not valueless(mask) else None
    if layout.indices is not None:
        return layout.indices.shape[0]
    return None if layout.padded_shape is None else layout.padded_shape[0] * layout.padded_shape[1]
