"""One small run of every op on every device, forward and backward, judged against float64 by the numeric contract."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_fast import backend, contract, extension, ops, packing, reference, reference_optim
from bert_fast.ops.lamb import adam_step
from bert_fast.ops.linear import pack_linear
from bert_fast.ops.pooling import POOLINGS, pool

LENGTHS = (7, 1, 0, 33, 16)
HEADS, HEAD_DIM, HIDDEN = 4, 32, 128


@dataclass(frozen=True)
class Case:
    """A self-test: `inputs` makes float64 and integer tensors, `run` uses the op and `truth` its definition.

    Attributes:
        terms: the length of the longest sum behind an element, for matrix products in float32.
        gradients: whether the gradients of all float inputs are compared as well.
        cpu_only: not run on GPUs.
    """

    inputs: Callable[[], dict[str, Tensor]]
    run: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    terms: int = 1
    gradients: bool = True
    cpu_only: bool = False


@dataclass(frozen=True)
class Result:
    """How a self-test went. `error` is the largest error as a share of the allowed one; `problem` what went wrong."""

    op: str
    device: str
    dtype: str
    backend: str
    reasons: dict[str, list[str]]
    error: float | None
    milliseconds: float
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None


def run_all(devices: list[torch.device]) -> list[Result]:
    """Runs every case on every device: float32, and bfloat16 too on a GPU."""
    results = []
    for device in devices:
        dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]
        for op, case in CASES.items():
            if not (case.cpu_only and device.type != "cpu"):
                results += [run_case(op, case, device, dtype) for dtype in dtypes]
    results.append(_host_functions())
    return results


def run_case(op: str, case: Case, device: torch.device, dtype: torch.dtype) -> Result:
    """Runs one case; whatever goes wrong becomes the result's problem."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    name = op.partition(" ")[0].removesuffix("_joined")
    before = backend.decisions().get(name)
    began = time.perf_counter()
    error, problem = None, None
    try:
        rounded = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.inputs().items()}
        exact = {k: v.double() if v.is_floating_point() else v for k, v in rounded.items()}
        truth, eager = _results(case, case.truth, exact), _results(case, case.truth, rounded)
        got = _results(case, case.run, {k: v.to(device) for k, v in rounded.items()})
        errors = {name: _share_of_allowed(got[name], eager[name], truth[name], dtype, case.terms) for name in truth}
        worst = max(errors, key=lambda name: errors[name])
        error = errors[worst]
        if not error <= 1:
            problem = f"its {worst} has {error:.3g} times the error that is allowed"
    except Exception as failure:  # noqa: BLE001 - a self-test reports every failure
        last = traceback.extract_tb(failure.__traceback__)[-1]
        problem = f"{type(failure).__name__}: {failure} (at {last.name}, line {last.lineno} of {last.filename})"
    finally:
        torch.set_rng_state(torch_state)
    spent = 1000 * (time.perf_counter() - began)
    after = backend.decisions().get(name)
    chosen, reasons = after if after is not None and after is not before else (_usual(op, device), {})
    if device.type == "cuda" and problem is None:
        idle = [name for name in reasons if not backend.reasons_against(name, device)]
        problem = "; ".join(f"its {name} kernel should run here: {', '.join(reasons[name])}" for name in idle) or None
    return Result(op, str(device), str(dtype).removeprefix("torch."), chosen, reasons, error, spent, problem)


def _results(case: Case, function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The result of a case and its gradients, on the CPU; upstream gradients are drawn from a seed of their own."""
    if not case.gradients:
        with torch.no_grad():
            return {"result": function(**inputs).cpu()}
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items() if v.is_floating_point()}
    result = function(**{**inputs, **leaves})
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # rounded to 8 bits, so that it is the same number in every dtype
    upstream = upstream.bfloat16().to(device=result.device, dtype=result.dtype)
    gradients = torch.autograd.grad(result, list(leaves.values()), upstream)
    named = {f"gradient of {name}": gradient.cpu() for name, gradient in zip(leaves, gradients, strict=True)}
    return {"result": result.detach().cpu(), **named}


def _usual(op: str, device: torch.device) -> str:
    """The backend of an op that leaves no choice."""
    if op not in ("unpad", "token_budget_batches"):
        return "reference"
    usable = not backend.cuda_reasons(device) if device.type == "cuda" else extension.module() is not None
    return "extension" if usable else "reference"


def _share_of_allowed(got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype, terms: int) -> float:
    """The larger of the rms and maximum errors as shares of what the contract allows; inf for what is not finite."""
    if got.shape != truth.shape:
        raise AssertionError(f"shape {list(got.shape)} instead of {list(truth.shape)}")
    error, eager_error = got.double() - truth, eager.double() - truth
    if not torch.isfinite(error).all():
        return float("inf")
    rms, largest = contract.allowed(eager_error, truth, dtype, terms)
    mean = contract.rms(error) / rms if truth.numel() >= contract.FEW else 0.0
    return max(mean, contract.largest(error) / largest)


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _cu_seqlens() -> Tensor:
    return torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)


def _attention_inputs() -> dict[str, Tensor]:
    shape = (sum(LENGTHS), HEADS, HEAD_DIM)
    return {"q": _randn(*shape), "k": _randn(*shape), "v": _randn(*shape), "cu_seqlens": _cu_seqlens()}


def _joined_attention_inputs() -> dict[str, Tensor]:
    return {"qkv": _randn(sum(LENGTHS), 3, HEADS, HEAD_DIM), "cu_seqlens": _cu_seqlens()}


def _rotary_inputs() -> dict[str, Tensor]:
    angles = 10 * _randn(sum(LENGTHS), HEAD_DIM // 2)
    return {"x": _randn(sum(LENGTHS), 2, HEADS, HEAD_DIM), "cos": angles.cos(), "sin": angles.sin()}


def _norm_inputs() -> dict[str, Tensor]:
    rows = sum(LENGTHS)
    x, residual = _randn(rows, HIDDEN), _randn(rows, HIDDEN)
    return {"x": x, "residual": residual, "weight": 1 + 0.1 * _randn(HIDDEN), "bias": 0.1 * _randn(HIDDEN)}


def _plain_norm_inputs() -> dict[str, Tensor]:
    return {name: value for name, value in _norm_inputs().items() if name != "residual"}


def _embedding_inputs() -> dict[str, Tensor]:
    rows = sum(LENGTHS)
    tables = {"word": _randn(50, HIDDEN), "position": _randn(40, HIDDEN), "token_type": _randn(2, HIDDEN)}
    ids = {"input_ids": torch.randint(50, (rows,)), "position_ids": torch.randint(40, (rows,))}
    norm = {"weight": 1 + 0.1 * _randn(HIDDEN), "bias": 0.1 * _randn(HIDDEN)}
    return {**ids, "token_type_ids": torch.randint(2, (rows,)), **tables, **norm}


def _embedding(door: Any) -> Callable[..., Tensor]:
    """With dropout: a seed draws the same mask everywhere."""
    names = ("input_ids", "token_type_ids", "position_ids", "word", "position", "token_type", "weight", "bias")

    def run(**inputs: Tensor) -> Tensor:
        seed = torch.tensor([77], device=inputs["word"].device)
        return door.embedding_layer_norm(*(inputs[name] for name in names), 1e-12, p=0.1, seed=seed, site=-1)

    return run


def _pool(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.cat([pool(hidden, cu_seqlens, mode, mode == "max") for mode in POOLINGS])


def _pooled(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    bounds = cu_seqlens.tolist()
    parts = [hidden[a:b].double() for a, b in zip(bounds, bounds[1:], strict=False)]
    empty = hidden.new_zeros(hidden.shape[1], dtype=torch.float64)
    means, firsts, highest = (
        torch.stack([take(p) if len(p) else empty for p in parts])
        for take in (lambda p: p.mean(0), lambda p: p[0], lambda p: p.max(0).values)
    )
    return torch.cat([means, firsts, torch.nn.functional.normalize(highest, dim=-1)])


_PLACES = torch.tensor([0, 3, 4, 11, 12, 13, 29])
_PADDED = (3, 10)


def _padded(x: Tensor) -> Tensor:
    return x.new_zeros(_PADDED[0] * _PADDED[1], x.shape[1]).index_copy(0, _PLACES.to(x.device), x).unflatten(0, _PADDED)


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if not torch.backends.mkldnn.is_available():
        return ops.linear(x, weight, bias)
    return pack_linear(weight, bias, x.dtype)(x)


def _linear_inputs() -> dict[str, Tensor]:
    return {"x": _randn(sum(LENGTHS), HIDDEN), "weight": 0.1 * _randn(96, HIDDEN), "bias": _randn(96)}


def _softmax_inputs() -> dict[str, Tensor]:
    hidden = torch.zeros(2, 1, 1, 24, dtype=torch.bool)
    hidden[0, ..., 9:] = True
    return {"scores": _randn(2, HEADS, 24, 24), "hidden": hidden}


def _softmax(door: Any) -> Callable[..., Tensor]:
    def run(scores: Tensor, hidden: Tensor) -> Tensor:
        mask = torch.zeros(hidden.shape, dtype=scores.dtype, device=scores.device).masked_fill(hidden, -torch.inf)
        return door.scaled_masked_softmax(scores, mask, 0.3)

    return run


def _labels() -> Tensor:
    labels = torch.randint(300, (40,))
    labels[::7] = -100
    return labels


def _loss_inputs() -> dict[str, Tensor]:
    return {"logits": _randn(40, 300), "labels": _labels()}


def _linear_loss_inputs() -> dict[str, Tensor]:
    return {"hidden": _randn(40, 64), "weight": 0.1 * _randn(300, 64), "bias": _randn(300), "labels": _labels()}


def _lamb(step: Callable[..., Any]) -> Callable[..., Tensor]:
    rule = reference_optim.AdamRule(0.1, weight_decay=0.01, adapt=True)

    def run(weight: Tensor, grad: Tensor) -> Tensor:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        moments = [torch.zeros_like(weight, dtype=wide) for _ in range(2)]
        count = torch.zeros((), device=weight.device)
        tensors = reference_optim.AdamTensors(weight.clone(), grad, moments[0], moments[1], count)
        step([(rule, [tensors])], max_grad_norm=1.0)
        return tensors.param

    return run


CASES = {
    "attention": Case(
        _attention_inputs,
        lambda **x: ops.attention(**x, max_seqlen=max(LENGTHS)),
        lambda **x: reference.attention(**x, max_seqlen=max(LENGTHS)),
        terms=HEAD_DIM,
    ),
    "attention (inference)": Case(
        _attention_inputs,
        lambda **x: ops.attention(**x, max_seqlen=max(LENGTHS)),
        lambda **x: reference.attention(**x, max_seqlen=max(LENGTHS)),
        terms=HEAD_DIM,
        gradients=False,
        cpu_only=True,
    ),
    "attention (window, bias)": Case(
        lambda: {**_attention_inputs(), "bias": _randn(1, HEADS, max(LENGTHS), max(LENGTHS))},
        lambda **x: ops.attention(**x, max_seqlen=max(LENGTHS), window=4),
        lambda **x: reference.attention(**x, max_seqlen=max(LENGTHS), window=4),
        terms=HEAD_DIM,
        gradients=False,
        cpu_only=True,
    ),
    "rotary": Case(
        _rotary_inputs, lambda **x: ops.rotary(**x), lambda **x: reference.rotary(**x), gradients=False
    ),
    "attention_joined": Case(
        _joined_attention_inputs,
        lambda **x: ops.attention_joined(**x, max_seqlen=max(LENGTHS)),
        lambda qkv, cu_seqlens: reference.attention(*qkv.unbind(1), cu_seqlens, max(LENGTHS)),
        terms=HEAD_DIM,
    ),
    "dropout_add_layer_norm": Case(
        _norm_inputs,
        lambda **x: ops.dropout_add_layer_norm(**x, eps=1e-12),
        lambda **x: reference.dropout_add_layer_norm(**x, eps=1e-12),
    ),
    "layer_norm": Case(
        _plain_norm_inputs,
        lambda x, weight, bias: ops.layer_norm(x, weight, bias, 1e-12),
        lambda x, weight, bias: reference.layer_norm(x, weight, bias, 1e-12),
    ),
    "bias_gelu": Case(
        lambda: {"x": _randn(sum(LENGTHS), HIDDEN), "bias": _randn(HIDDEN)},
        lambda x, bias: ops.bias_gelu(x, bias),
        reference.bias_gelu,
    ),
    "gelu_layer_norm": Case(
        _plain_norm_inputs,
        lambda x, weight, bias: ops.gelu_layer_norm(x, weight, bias, 1e-12),
        lambda x, weight, bias: reference.gelu_layer_norm(x, None, weight, bias, 1e-12),
    ),
    "scaled_masked_softmax": Case(_softmax_inputs, _softmax(ops), _softmax(reference)),
    "embedding_layer_norm": Case(_embedding_inputs, _embedding(ops), _embedding(reference)),
    "linear": Case(_linear_inputs, ops.linear, torch.nn.functional.linear, terms=HIDDEN),
    "linear (packed)": Case(
        _linear_inputs, _packed_linear, torch.nn.functional.linear, terms=HIDDEN, gradients=False, cpu_only=True
    ),
    "cross_entropy": Case(
        _loss_inputs,
        lambda logits, labels: ops.cross_entropy(logits, labels),
        lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels),
    ),
    "linear_cross_entropy": Case(
        _linear_loss_inputs,
        lambda **x: ops.linear_cross_entropy(**x, chunk_bytes=2**14),
        lambda hidden, weight, bias, labels: torch.nn.functional.cross_entropy(
            torch.nn.functional.linear(hidden, weight, bias), labels
        ),
        terms=64,
    ),
    "unpad": Case(
        lambda: {"mask": torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)},
        lambda mask: torch.cat([ops.unpad(mask)[0].double(), ops.unpad(mask)[1].double()]),
        lambda mask: torch.tensor([0.0, 1, 3, 8, 0, 3, 3, 4], dtype=torch.float64),
        gradients=False,
    ),
    "lamb": Case(
        lambda: {"weight": _randn(130, 131), "grad": _randn(130, 131)},
        _lamb(adam_step),
        _lamb(reference_optim.adam_step),
        gradients=False,
    ),
    "pool": Case(
        lambda: {"hidden": _randn(sum(LENGTHS), HIDDEN), "cu_seqlens": _cu_seqlens()},
        _pool,
        _pooled,
    ),
    "pad_rows": Case(
        lambda: {"x": _randn(len(_PLACES), HIDDEN)},
        lambda x: ops.pad_rows(x, _PLACES.to(x.device), *_PADDED),
        _padded,
    ),
    "unpad_rows": Case(
        lambda: {"x": _randn(*_PADDED, HIDDEN)},
        lambda x: ops.unpad_rows(x, _PLACES.to(x.device)),
        lambda x: x.flatten(0, 1)[_PLACES],
    ),
}


def _host_functions() -> Result:
    """The extension's batching against the Python that stands in for it."""
    began, problem = time.perf_counter(), None
    lengths = np.random.default_rng(0).integers(0, 60, 500)
    try:
        got = packing.token_budget_batches(lengths, 256, 9)
        wanted = packing._budget_in_python(lengths.astype(np.int64), 256, 9)
        if [list(b) for b in got] != [list(b) for b in wanted]:
            problem = "the extension cuts other batches than Python does"
    except Exception as failure:  # noqa: BLE001 - a self-test reports every failure
        problem = f"{type(failure).__name__}: {failure}"
    spent = 1000 * (time.perf_counter() - began)
    op = "token_budget_batches"
    return Result(op, "cpu", "int64", _usual(op, torch.device("cpu")), {}, None, spent, problem)
