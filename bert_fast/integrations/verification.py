"""verify: how far an accelerated encoder and the untouched one lie from float64, layer by layer, on a user's batch."""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import contract
from bert_fast.integrations.live import Live
from bert_fast.integrations.reading import as_owner
from bert_fast.integrations.record import asking
from bert_fast.integrations.switch import lives, restore


class ContractBroken(RuntimeError):
    """An accelerated encoder lies further from float64 than the numeric contract allows; ``reports`` say where."""

    def __init__(self, reports: "list[Verification]") -> None:
        super().__init__("\n".join(map(str, reports)))
        self.reports = reports

    def __reduce__(self) -> tuple[type["ContractBroken"], tuple[list["Verification"]]]:
        return type(self), (self.reports,)


@dataclass(frozen=True)
class LayerErrors:
    """The errors of one hidden state against float64, over the places that the mask shows.

    With u the dtype's unit roundoff, and c 1 or, in float32, the square root of the longest product's terms, the
    contract allows root mean square errors of ``2 * theirs + c * u * rms(truth)``, and in a single element
    ``4 * theirs_largest + 8 * u * max|truth|``.

    Attributes:
        layer: 0 for the embeddings' output, then each layer's.
        elements: how many there are; under 64 only the largest error is judged.
        ours, theirs: root mean square errors of the accelerated and of the untouched encoder.
        allowed: the bound of ``ours``.
        ours_largest, theirs_largest: the largest errors of both.
        allowed_largest: the bound of ``ours_largest``.
    """

    layer: int
    elements: int
    ours: float
    theirs: float
    allowed: float
    ours_largest: float
    theirs_largest: float
    allowed_largest: float

    @property
    def held(self) -> bool:
        """Whether both bounds are kept; never so where an error is not finite."""
        rms = self.ours <= self.allowed or (self.elements < contract.FEW and math.isfinite(self.ours))
        return rms and self.ours_largest <= self.allowed_largest

    def __str__(self) -> str:
        mark = "" if self.held else "  BROKEN"
        return (
            f"  {self.layer:3d}: rms {self.ours:.2e}, untouched {self.theirs:.2e}, allowed {self.allowed:.2e}; "
            f"largest {self.ours_largest:.2e}, untouched {self.theirs_largest:.2e}, "
            f"allowed {self.allowed_largest:.2e}{mark}"
        )


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found for one encoder. ``own_code``: why it ran its own code, if it did."""

    encoder: str
    dtype: torch.dtype
    layers: tuple[LayerErrors, ...]
    own_code: str | None

    @property
    def held(self) -> bool:
        """Whether every layer holds the contract."""
        return all(row.held for row in self.layers)

    def __str__(self) -> str:
        how = "holds" if self.held else "BREAKS"
        lines = [f"{self.encoder} in {self.dtype} {how} the numeric contract (errors against float64)"]
        if self.own_code is not None:
            lines[0] += f"; it ran its own code: {self.own_code}"
        return "\n".join([*lines, *map(str, self.layers)])


def verify(module: nn.Module, texts_or_batch: Any, *, tokenizer: Any = None) -> list[Verification]:
    """Compare every accelerated encoder in ``module``, and the untouched one in the same dtype, with float64.

    Without its quantization, if it has one: of int8 the contract says nothing.

    Args:
        module: what :func:`bert_fast.accelerate` was given; it is left as it is, in its mode.
        texts_or_batch: texts, or the keyword arguments of an encoder's forward (others are left out).
        tokenizer: for texts: called as those of ``transformers`` are; a SentenceTransformer brings its own.

    Returns:
        one :class:`Verification` an encoder; print it. Costs a copy of each encoder, and one in float64.

    Raises:
        ContractBroken: with the same report, if a layer's errors are larger than the contract allows.
        ValueError: nothing in ``module`` is accelerated, or texts came without a tokenizer.
    """
    found = lives(module)
    if not found:
        raise ValueError(f"nothing in this {type(module).__name__} is accelerated: call bert_fast.accelerate first")
    batch = _batch(module, texts_or_batch, tokenizer)
    reports = [_verify(live, batch) for live in found]
    if not all(report.held for report in reports):
        raise ContractBroken(reports)
    return reports


def _batch(module: nn.Module, given: Any, tokenizer: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise ValueError("texts_or_batch must be a list of texts or a dictionary of tensors")
    if tokenizer is not None:
        return tokenizer(list(given), padding=True, truncation=True, return_tensors="pt")
    tokenize = getattr(module, "preprocess", None) or getattr(module, "tokenize", None)
    if tokenize is None:
        raise ValueError(f"texts need a tokenizer=, a {type(module).__name__} has none")
    return tokenize(list(given))


def _verify(live: Live, batch: Mapping[str, Any]) -> Verification:
    encoder = live.module
    known = inspect.signature(encoder.forward).parameters
    weight = next(encoder.parameters())
    arguments = {k: v.to(weight.device) for k, v in batch.items() if k in known and isinstance(v, Tensor)}
    mask = arguments.get("attention_mask")
    theirs = restore(copy.deepcopy(encoder))
    with asking() as outcomes, _without_quantization(live):
        ours_states = _states(encoder, arguments)
        if live.positions.hidden_positions == "zero":  # what is asked for hidden states computes every place
            with as_owner():
                ours_states = (*ours_states[:-1], _outputs(encoder, arguments).last_hidden_state)
    reasons = [reason for _, reason in outcomes if reason is not None]
    theirs_states = _states(theirs, arguments)
    exact_states = _states(theirs.double(), arguments)
    terms = max((m.in_features for m in encoder.modules() if isinstance(m, nn.Linear)), default=1)
    rows = []
    for layer, states in enumerate(zip(ours_states, theirs_states, exact_states, strict=True)):
        shown = (x.double() if mask is None or mask.dim() != 2 else x.double()[mask != 0] for x in states)
        rows.append(_errors(layer, *shown, dtype=weight.dtype, terms=terms))
    return Verification(type(encoder).__name__, weight.dtype, tuple(rows), reasons[0] if reasons else None)


def _errors(layer: int, ours: Tensor, eager: Tensor, exact: Tensor, *, dtype: torch.dtype, terms: int) -> LayerErrors:
    if exact.numel() == 0:
        return LayerErrors(layer, 0, *[0.0] * 6)
    ours, eager = ours - exact, eager - exact
    rms, largest = contract.allowed(eager, exact, dtype, terms)
    means, peaks = (contract.rms(ours), contract.rms(eager)), (contract.largest(ours), contract.largest(eager))
    return LayerErrors(layer, exact.numel(), *means, rms, *peaks, largest)


def _states(encoder: Any, arguments: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return _outputs(encoder, arguments, output_hidden_states=True).hidden_states


def _outputs(encoder: Any, arguments: dict[str, Tensor], **options: bool) -> Any:
    dtype = next(encoder.parameters()).dtype
    arguments = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}
    with torch.no_grad(), _evaluating(encoder):
        return encoder(**arguments, **options, return_dict=True)


@contextmanager
def _without_quantization(live: Live) -> Iterator[None]:
    held, live.quantization = live.quantization, None
    try:
        yield
    finally:
        live.quantization = held


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
