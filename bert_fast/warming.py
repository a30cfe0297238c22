"""warmup: everything that would be compiled or loaded on a model's first batches, done before them."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import backend
from bert_fast.models import BertForMultipleChoice
from bert_fast.models.base import BertPreTrainedModel
from bert_fast.packing import PackedBatch

Shape = tuple[int, int] | int
_SHORTEST = 16  # the attention kernels' plan changes at the powers of two from here on


@dataclass(frozen=True)
class Warmup:
    """What :func:`warmup` did: the Triton kernels it compiled or loaded, the seconds it took, and, if it had nothing
    to do, the reason."""

    kernels: int
    seconds: float
    reason: str | None = None


def warmup(model: BertPreTrainedModel, shapes: Iterable[Shape], *, training: bool | None = None) -> Warmup:
    """Run ``model`` on made-up batches, so that real ones find every kernel compiled.

    Kernels do not depend on the number of tokens or sequences, but attention has a plan for each power of two up to the
    longest sequence: all plans that a batch of the given shape can need are compiled, with and without padding.
    Weights, gradients, modes and random numbers are as before.

    Args:
        model: any model of this package, on the device and in the dtype it will be used in, before it is wrapped or
            sharded. Call this under the same ``torch.autocast`` as the model, if any.
        shapes: ``(batch, seqlen)`` for padded batches; a number of tokens for a ``PackedBatch``.
        training: whether gradients will be needed: forward in training mode, and backward. By default, whether the
            model is in training mode now.

    Returns:
        the count of kernels and the time. Where no kernel runs, as on a CPU, it returns at once and says why.

    Raises:
        TypeError: ``model`` is no model of this package, or a shape is neither a pair nor a number.
        ValueError: a shape has a size below 1 or more tokens a sequence than the model has positions.
    """
    if not isinstance(model, BertPreTrainedModel):
        raise TypeError(f"model must be a bert_fast model, not {type(model).__name__}: unwrap it first")
    checked = [_checked(shape, model.config.max_position_embeddings) for shape in shapes]
    began = time.perf_counter()
    if not backend.has_kernels(model.device):
        against = backend.reasons_against("triton", model.device)
        if backend.requested() == "reference":
            against = ("use_backend('reference') is in force",)
        return Warmup(0, time.perf_counter() - began, "; ".join(against))
    training = model.training if training is None else training
    with _left_as_it_was(model), _counted() as compiled:
        for module in model.modules():
            module.training = training
        for shape in checked:
            for arguments in _batches(model, shape):
                _run(model, arguments, training)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
    return Warmup(len(compiled), time.perf_counter() - began)


def _checked(shape: Shape, positions: int) -> Shape:
    numbers = (shape,) if isinstance(shape, int) else shape
    pair = isinstance(shape, (tuple, list)) and len(shape) == 2
    if isinstance(shape, bool) or not (pair or isinstance(shape, int)) or not all(isinstance(n, int) for n in numbers):
        raise TypeError(f"shapes must hold pairs (batch, seqlen) and numbers of tokens, not {shape!r}")
    if min(numbers) < 1:
        raise ValueError(f"shapes must hold sizes of at least 1, not {shape!r}")
    if pair and numbers[1] > positions:
        raise ValueError(f"shapes holds {shape!r}, but the model has {positions} positions (max_position_embeddings)")
    return shape


def _batches(model: BertPreTrainedModel, shape: Shape) -> Iterator[dict[str, Any]]:
    """Arguments of a forward pass for every plan: padded on the right, on the left and not at all; or packed."""
    device, positions = model.device, model.config.max_position_embeddings
    if isinstance(shape, int):
        for length in _lengths(min(shape, positions)):
            count, rest = divmod(shape, length)
            rows = [[1] * length] * count + ([[1] * rest] if rest else [])
            extra = {"num_choices": 1} if isinstance(model, BertForMultipleChoice) else {}
            yield {"input_ids": PackedBatch.from_sequences(rows).to(device), **extra}
        return
    batch, seqlen = shape
    ids = torch.ones(batch, seqlen, dtype=torch.int64, device=device)
    yield _shaped(model, {"input_ids": ids})
    places = torch.arange(seqlen, device=device).expand(batch, seqlen)
    for length in _lengths(seqlen):
        # On the left the pooler's place, though hidden, is computed and counts.
        for visible in (places < length, places > seqlen - length):
            yield _shaped(model, {"input_ids": ids, "attention_mask": visible.long()})


def _lengths(longest: int) -> Iterator[int]:
    length = _SHORTEST
    while length < longest:
        yield length
        length *= 2
    yield longest


def _shaped(model: BertPreTrainedModel, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """``[B, S]``, or ``[B, 1, S]`` for multiple choice."""
    if isinstance(model, BertForMultipleChoice):
        return {name: x.unsqueeze(1) for name, x in arguments.items()}
    return arguments


def _run(model: nn.Module, arguments: dict[str, Any], training: bool) -> None:
    with torch.set_grad_enabled(training):
        output = model(**arguments, return_dict=True)
    if not training:
        return
    loss = sum(x.float().sum() for x in output.values() if isinstance(x, Tensor) and x.requires_grad)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if isinstance(loss, Tensor) and parameters:
        torch.autograd.grad(loss, parameters, allow_unused=True)  # unlike backward(), leaves .grad alone


@contextmanager
def _left_as_it_was(model: BertPreTrainedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The names of the kernels that Triton makes ready within the block, compiled or found on disk."""
    import triton

    names: list[str] = []
    knobs = triton.knobs.runtime
    before = knobs.jit_post_compile_hook

    def seen(*args: Any, **kwargs: Any) -> Any:
        names.append(str(kwargs.get("repr")))
        return before(*args, **kwargs) if before is not None else None

    knobs.jit_post_compile_hook = seen
    try:
        yield names
    finally:
        knobs.jit_post_compile_hook = before
