"""Every op in front of a Triton kernel, called with small tensors, and the same of any module that has these names."""

import torch
from kernel_oracle import DEVICE, randn, seed_tensor

from bert_fast import ops

EPS = 1e-12
T, H = 21, 48
LENGTHS = [5, 9, 0, 1, 6]
QKV = (T, 3, 16)
DROPOUT = {"p": 0.3, "site": 3}


def bounds():
    return torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0).to(torch.int32)


def cases(dtype):
    """op -> (function, reference, tensors that get gradients, other arguments); dropout on where there is one."""
    seed = {**DROPOUT, "seed": seed_tensor()}
    rows, vector = (lambda: randn(T, H, dtype=dtype)), (lambda: randn(H, dtype=dtype))
    attention = [randn(*QKV, dtype=dtype) for _ in range(3)]
    joined = [torch.stack(attention, 1)]
    bias = randn(len(LENGTHS), 1, 9, 9, dtype=dtype)
    key_mask = torch.rand(T, device=DEVICE) < 0.7

    def layer_norm(module):
        return lambda x, w, b: module.layer_norm(x, w, b, EPS)

    def add_norm(module, **options):
        return lambda x, r, w, b, c: module.dropout_add_layer_norm(x, r, w, b, EPS, x_bias=c, **options)

    def attend(module, **options):
        return lambda q, k, v: module.attention(q, k, v, bounds(), 9, **options)

    def attend_bias(module, **options):
        return lambda q, k, v, bias: module.attention(q, k, v, bounds(), 9, bias=bias, **options)

    def attend_joined(module, **options):
        if module is ops:
            return lambda qkv: ops.attention_joined(qkv, bounds(), 9, **options)
        return lambda qkv: module.attention(*qkv.unbind(1), bounds(), 9, **options)

    def softmax(module, **options):
        return lambda scores: module.scaled_masked_softmax(scores, None, 0.5, **options)

    return {
        "layer_norm": (layer_norm, {}, [rows(), vector(), vector()]),
        "dropout_add_layer_norm": (add_norm, {}, [rows(), rows(), vector(), vector(), vector()]),
        "dropout_add_layer_norm_dropping": (add_norm, seed, [rows(), rows(), vector(), vector(), vector()]),
        "bias_gelu": (lambda m: m.bias_gelu, {}, [rows(), vector()]),
        "gelu_layer_norm": (
            lambda m: (
                lambda x, w, b, c: (
                    ops.gelu_layer_norm(x, w, b, EPS, x_bias=c) if m is ops else m.gelu_layer_norm(x, c, w, b, EPS)
                )
            ),
            {},
            [rows(), vector(), vector(), vector()],
        ),
        "attention": (attend, {}, attention),
        "attention_masked": (attend, {"key_mask": key_mask}, attention),
        "attention_dropping": (attend, seed, attention),
        "attention_biased": (attend_bias, {}, [*attention, bias]),
        "attention_joined": (attend_joined, {}, joined),
        "attention_joined_masked_dropping": (attend_joined, {**seed, "key_mask": key_mask}, joined),
        "attention_joined_biased": (
            lambda m, **options: lambda qkv, bias: attend_joined(m, bias=bias, **options)(qkv),
            {},
            [*joined, bias],
        ),
        "scaled_masked_softmax": (softmax, {}, [randn(2, 3, 5, 7, dtype=dtype)]),
        "scaled_masked_softmax_dropping": (softmax, seed, [randn(2, 3, 5, 7, dtype=dtype)]),
    }


CASES = list(cases(torch.float32))


def run(function, tensors, dtype=None):
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out))]


class Record(torch.utils._python_dispatch.TorchDispatchMode):
    """Every op of ours that is reached inside, with the arguments of its first call."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "bert_fast":
            self.calls.setdefault(func, [a.detach() if isinstance(a, torch.Tensor) else a for a in args])
        return func(*args, **(kwargs or {}))
