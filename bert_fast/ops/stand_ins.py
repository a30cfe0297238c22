"""What the ops of Triton's kernels give, and save for their gradients, by PyTorch's ops: for a kernel that fails.

Each function has its op's arguments and results. A kernel that does not compile is found out when it is first launched:
in a backward pass, or in the midst of a compiled graph, when it is too late to choose another way for the whole op. All
is computed in float32 and rounded once, as the kernels do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bert_fast import reference


def attention(q, k, v, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site):
    """``(out, lse)``; the log-sum-exps are NaN: whoever needs them is a kernel, and none will run any more."""
    options = {"scale": scale, "bias": bias, "key_mask": key_mask, "p": p, "seed": seed, "site": site}
    out = reference.attention(q.float(), k.float(), v.float(), cu_seqlens, max_seqlen, **options)
    return out.to(q.dtype).contiguous(), out.new_full((q.shape[1], q.shape[0]), float("nan"))


def attention_backward(
    dout, q, k, v, out, lse, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site, need_dbias
):
    """``[dq, dk, dv]``, and the bias's gradient if need_dbias."""
    given = [q, k, v, bias] if need_dbias else [q, k, v]
    options = {"scale": scale, "key_mask": key_mask, "p": p, "seed": seed, "site": site}
    with _recording():
        leaves = [x.detach().float().requires_grad_() for x in given]
        again = reference.attention(
            *leaves[:3], cu_seqlens, max_seqlen, bias=leaves[3] if need_dbias else bias, **options
        )
        grads = torch.autograd.grad(again, leaves, dout.float())
    return [grad.to(x.dtype).contiguous() for grad, x in zip(grads, given, strict=True)]


def attention_joined(qkv, *others):
    """As :func:`attention`."""
    return attention(*qkv.unbind(1), *others)


def attention_joined_backward(dout, qkv, *others):
    """``[dqkv]``, and the bias's gradient if asked for."""
    dq, dk, dv, *dbias = attention_backward(dout, *qkv.unbind(1), *others)
    return [torch.stack([dq, dk, dv], 1), *dbias]


def layer_norm(x, weight, bias, eps, out_dtype):
    """``(y, mean, rstd)``."""
    y, mean, rstd = torch.native_layer_norm(x.float(), x.shape[1:], weight.float(), bias.float(), eps)
    return y.to(out_dtype or x.dtype), mean.flatten(), rstd.flatten()


def layer_norm_backward(dy, x, mean, rstd, weight):
    """``(dx, dweight, dbias)``."""
    grads = torch.ops.aten.native_layer_norm_backward(
        dy.float(), x.float(), x.shape[1:], mean[:, None], rstd[:, None], weight.float(), weight.float(), [True] * 3
    )
    return tuple(grad.to(like.dtype) for grad, like in zip(grads, (x, weight, weight), strict=True))


def dropout_add_layer_norm(x, residual, weight, bias, x_bias, seed, eps, p, site, out_dtype, save):
    """``(y, z, mean, rstd)``: z is what LayerNorm was given; empty but for y without save."""
    branch = x.float() if x_bias is None else x.float() + x_bias.float()
    z = residual.float() + reference.dropout(branch, p, seed, site)
    dtype = torch.promote_types(x.dtype, residual.dtype)
    y, mean, rstd = layer_norm(z, weight, bias, eps, out_dtype or dtype)
    return (y, z.to(dtype), mean, rstd) if save else (y, *(x.new_empty(0) for _ in range(3)))


def dropout_add_layer_norm_backward(dy, z, mean, rstd, weight, seed, p, site, x_dtype, residual_dtype, x_bias_grad):
    """``[dresidual, dx unless it is the same, dweight, dbias, dx_bias if asked for]``."""
    dz, dweight, dbias = layer_norm_backward(dy, z.float(), mean, rstd, weight)
    branch = reference.dropout(dz, p, seed, site)
    shared = p == 0 and x_dtype == residual_dtype
    sums = [dweight, dbias, branch.sum(0).to(weight.dtype)] if x_bias_grad else [dweight, dbias]
    return [dz.to(residual_dtype), *([] if shared else [branch.to(x_dtype)]), *sums]


def bias_gelu(x, bias, approximate):
    """``y``."""
    return reference.bias_gelu(x.float(), None if bias is None else bias.float(), approximate).to(x.dtype)


def bias_gelu_backward(dy, x, bias, approximate):
    """``[dx]``, and dbias if there is a bias."""
    before = x.float() if bias is None else x.float() + bias.float()
    dx = torch.ops.aten.gelu_backward(dy.float(), before, approximate=approximate)
    return [dx.to(x.dtype)] + ([] if bias is None else [dx.sum(0).to(bias.dtype)])


def gelu_layer_norm(x, x_bias, weight, bias, eps, approximate, out_dtype):
    """``(y, mean, rstd)``."""
    return layer_norm(bias_gelu(x.float(), x_bias, approximate), weight, bias, eps, out_dtype or x.dtype)


def gelu_layer_norm_backward(dy, x, x_bias, mean, rstd, weight, approximate):
    """``[dx, dweight, dbias]``, and dx_bias if there is one."""
    inner = bias_gelu(x.float(), x_bias, approximate)
    dinner, dweight, dbias = layer_norm_backward(dy, inner, mean, rstd, weight)
    dx, *dx_bias = bias_gelu_backward(dinner, x, x_bias, approximate)
    return [dx, dweight, dbias, *(grad.to(weight.dtype) for grad in dx_bias)]


def scaled_masked_softmax(scores, mask, seed, scale, p, site):
    """``(dropped, probs)``; without dropout the second is empty."""
    dtype = scores.dtype if mask is None else torch.promote_types(scores.dtype, mask.dtype)
    probs = reference.scaled_masked_softmax(scores.float(), mask, scale)
    if p == 0:
        return probs.to(dtype), probs.new_empty(0, dtype=dtype)
    return _dropped(probs, seed, p, site).to(dtype), probs.to(dtype)


def scaled_masked_softmax_backward(grads, probs, seed, scale, p, site, dtype):
    """``dscores``."""
    dprobs = _dropped(grads.float(), seed, p, site)
    return (torch._softmax_backward_data(dprobs, probs.float(), -1, torch.float32) * scale).to(dtype)


def _dropped(x: Tensor, seed: Tensor | None, p: float, site: int) -> Tensor:
    return reference.dropout(x, p, seed, site, width=reference.ATTENTION_WIDTH)


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd on, also where an op's implementation runs below the keys at which it works."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded.remove(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
