"""Small, awkward calls of every kernel, forward and backward: what compute-sanitizer runs.

    python -m benchmarks.gpu.small_shapes PART/COUNT

Sizes that leave tiles half full: a step beyond a tensor's end then leaves its allocation.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import bert_fast
from bert_fast import backend, ops
from bert_fast.ops.pooling import POOLINGS, pool
from bert_fast.training import Lamb

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if _INTERPRETED else "cuda"
LENGTHS = ((3, 1, 0, 9), (100, 7), (130, 200, 1))  # every plan: several sequences a program, one, and the loops


def _randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


def _backward(out: Tensor) -> None:
    out.backward(torch.randn(out.shape).to(out))
    if not torch.isfinite(out).all():
        raise ArithmeticError("an output is not finite")


def _seed() -> Tensor:
    return torch.tensor([77], dtype=torch.int64, device=DEVICE)


def _attention(lengths: tuple[int, ...], dim: int, extra: str, dtype: torch.dtype) -> None:
    heads, total, longest = 12, sum(lengths), max(lengths)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(DEVICE)
    q, k, v = (_randn(total, heads, dim, dtype=dtype) for _ in range(3))
    options: dict[str, object] = {}
    if extra == "dropout":
        options = {"p": 0.2, "seed": _seed(), "site": 5, "key_mask": torch.arange(total).to(DEVICE) % 3 > 0}
    elif extra == "bias":
        options = {"bias": _randn(1, heads, longest, longest, dtype=dtype)}
    _backward(ops.attention(q, k, v, cu_seqlens, longest, **options))


def _layer_norm(tokens: int, width: int, dtype: torch.dtype) -> None:
    x, residual = (_randn(tokens, width, dtype=dtype) for _ in range(2))
    weight, bias, x_bias = (_randn(width, dtype=dtype) for _ in range(3))
    for p in (0.0, 0.2):
        dropout = {"p": p, "seed": _seed(), "site": 2}
        _backward(ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-12, x_bias=x_bias, **dropout))
    _backward(ops.layer_norm(x, weight, bias, 1e-12))


def _gelu(tokens: int, width: int, dtype: torch.dtype, approximate: str) -> None:
    x, weight, bias, x_bias = (_randn(*shape, dtype=dtype) for shape in ((tokens, width), *[(width,)] * 3))
    _backward(ops.bias_gelu(x, x_bias, approximate))
    _backward(ops.gelu_layer_norm(x, weight, bias, 1e-12, approximate, x_bias=x_bias))


def _softmax(keys: int, p: float, dtype: torch.dtype) -> None:
    scores = _randn(2, 3, 2, keys, dtype=dtype)
    mask = torch.zeros(2, 1, 1, keys).to(DEVICE, dtype)
    _backward(ops.scaled_masked_softmax(scores, mask, 0.3, p=p, seed=_seed(), site=1))


def _embedding(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    tables = [_randn(n, hidden, dtype=dtype) for n in (50, 40, 2)]
    weight, bias = _randn(hidden, dtype=dtype), _randn(hidden, dtype=dtype)
    ids = [torch.randint(n, (tokens,)).to(DEVICE) for n in (50, 2, 40)]
    for p in (0.0, 0.2):
        _backward(ops.embedding_layer_norm(*ids, *tables, weight, bias, 1e-12, p=p, seed=_seed(), site=-1))


def _pool(lengths: tuple[int, ...], hidden: int, dtype: torch.dtype) -> None:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(DEVICE)
    for mode in POOLINGS:
        _backward(pool(_randn(sum(lengths), hidden, dtype=dtype), cu_seqlens, mode, normalize=True))


def _pad(batch: int, seqlen: int, width: int, dtype: torch.dtype) -> None:
    indices = (torch.rand(batch * seqlen) < 0.5).nonzero().squeeze(1).to(DEVICE)
    _backward(ops.pad_rows(_randn(len(indices), width, dtype=dtype), indices, batch, seqlen))
    _backward(ops.unpad_rows(_randn(batch, seqlen, width, dtype=dtype), indices))


def _unpad(batch: int, seqlen: int) -> None:
    mask = (torch.rand(batch, seqlen) < 0.5).to(DEVICE)
    if not torch.equal(ops.unpad(mask)[0].cpu(), mask.cpu().flatten().nonzero().squeeze(1)):
        raise ArithmeticError(f"unpad of [{batch}, {seqlen}] is wrong")


def _optimizer(sizes: tuple[int, ...], shift: int, dtype: torch.dtype) -> None:
    params = [torch.nn.Parameter(torch.randn(n + shift).to(DEVICE, dtype)[shift:]) for n in sizes]
    optimizer = Lamb([{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0}], 0.01, max_grad_norm=1.0)
    for _ in range(2):
        for p in params:
            p.grad = torch.randn(p.shape).to(p)
        optimizer.step()
    if not all(torch.isfinite(p).all() for p in params):
        raise ArithmeticError("a weight is not finite")


def cases() -> list[tuple[str, Callable[[], None]]]:
    """``(backend, call)``: what runs, and the backend whose kernels it must run on."""
    half = torch.float32 if _INTERPRETED else torch.bfloat16
    found: list[tuple[str, Callable[[], None]]] = []
    for lengths in LENGTHS:
        found += [("triton", partial(_attention, lengths, 64, extra, half)) for extra in ("plain", "dropout", "bias")]
    found.append(("triton", partial(_attention, LENGTHS[-1], 24, "plain", half)))
    found.append(("triton", partial(_attention, LENGTHS[-1], 64, "plain", torch.float32)))
    for tokens, width in ((33, 312), (7, 768), (3, 1000), (2, 5000)):
        found.append(("triton", partial(_layer_norm, tokens, width, half)))
    found.append(("triton", partial(_layer_norm, 5, 96, torch.float32)))
    found += [("triton", partial(_gelu, 7, 312, half, approximate)) for approximate in ("none", "tanh")]
    softmax = ((5, 0.0), (77, 0.2), (700, 0.0), (20000, 0.0))
    found += [("triton", partial(_softmax, keys, p, half)) for keys, p in softmax]
    embeddings = ((1, 31, half), (330, 768, half), (130, 1032, half), (9, 768, torch.float32))
    embeddings += ((5, 4104, half), (3, 8201, half))  # past what registers hold, backward and forward
    found += [("cuda", partial(_embedding, *arguments)) for arguments in embeddings]
    found += [("cuda", partial(_unpad, *shape)) for shape in ((1, 1), (3, 33), (257, 129), (3, 20001))]
    found += [("cuda", partial(_pool, LENGTHS[-1], width, half)) for width in (384, 31)]
    found += [("cuda", partial(_pad, 5, 33, width, half)) for width in (768, 31, 1)]
    lists = (((5, 0, 1027, 16385), 0, torch.float32), ((3, 33000), 1, half), (tuple(range(60)), 0, half))
    found += [("cuda", partial(_optimizer, *arguments)) for arguments in lists]
    return found


def main(arguments: list[str]) -> int:
    """Run one part of the cases, on the kernels and nothing else."""
    part, count = map(int, arguments[0].split("/"))
    torch.manual_seed(0)
    without_cuda = () if _INTERPRETED else backend.cuda_reasons(torch.device("cuda"))
    for kind, call in cases()[part::count]:
        if kind == "cuda" and without_cuda:
            print(f"left out, for {'; '.join(without_cuda)}: {call}")
            continue
        with bert_fast.use_backend("auto" if _INTERPRETED and kind == "cuda" else kind):
            call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print("all ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
