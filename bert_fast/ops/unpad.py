"""Leaving the padded world: mask -> indices and cu_seqlens."""

import torch
from torch import Tensor

from bert_fast import backend, extension
from bert_fast.ops import id_checks
from bert_fast.ops.library import define


def unpad(keep: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor, int, bool]:
    """Where the kept tokens of a padded batch lie.

    Args:
        keep: bool ``[B, S]``, True where a token gets a row.
        visible: bool ``[B, S]``, a part of ``keep``; None when the two are the same.

    Returns:
        ``indices`` int64 ``[T]``, the flat positions of the T kept tokens in ``[B * S]``, ascending;
        ``cu_seqlens`` int32 ``[B + 1]``, where each sequence starts among them; ``max_seqlen``, the longest sequence's
        length; and whether some kept token is not visible. Under ``torch.compile`` no value leaves the graph: the last
        two are S and whether ``visible`` was given.

    Raises:
        IndexError: on a GPU, an earlier batch's id lay outside its embedding table.

    On a GPU this is the forward pass's one wait for the device; none while compiling.
    """
    if torch.compiler.is_compiling():
        indices, cu_seqlens = _unpad_op(keep)
        return indices, cu_seqlens, keep.shape[1], visible is not None
    # A tensor inside torch.func has no memory to point to; PyTorch's ops serve it.
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(keep)
    on_host = keep.device.type == "cpu" and backend.requested() != "reference"
    if on_host and extension.module() is not None and not wrapped:
        indices, cu_seqlens, total, longest = _unpad_host(keep.contiguous())
        return indices, cu_seqlens, longest, visible is not None and int(visible.sum()) < total
    if backend.runs("unpad", "cuda", keep.device, ("the mask is inside torch.func",) if wrapped else ()):
        indices, cu_seqlens, stats = _unpad_cuda(keep.contiguous())
    else:
        cu_seqlens, stats = _statistics(keep)
        indices = None
    total, longest, shown = _read(stats, keep if visible is None else visible)
    if indices is None:
        # nonzero_static is told the count, so that the host does not wait a second time.
        indices = torch.nonzero_static(keep.flatten(), size=total).squeeze(1)
    return indices[:total], cu_seqlens, longest, shown < total


def _unpad_host(mask: Tensor) -> tuple[Tensor, Tensor, int, int]:
    batch, seqlen = mask.shape
    # The C++ code writes through pointers: never where torch.set_default_device points.
    indices = torch.empty(batch * seqlen, dtype=torch.int64, device="cpu")
    cu_seqlens = torch.empty(batch + 1, dtype=torch.int32, device="cpu")
    total, longest = extension.module().unpad(mask.data_ptr(), batch, seqlen, indices.data_ptr(), cu_seqlens.data_ptr())
    return indices[:total], cu_seqlens, total, longest


def _unpad_cuda(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, seqlen = mask.shape
    module = extension.module()
    indices = torch.empty(batch * seqlen, dtype=torch.int64, device=mask.device)
    cu_seqlens = torch.empty(batch + 1, dtype=torch.int32, device=mask.device)
    stats = torch.empty(2, dtype=torch.int64, device=mask.device)
    size = module.unpad_cuda_workspace(batch, seqlen)
    workspace = torch.empty(size, dtype=torch.uint8, device=mask.device)
    module.unpad_cuda(
        mask.data_ptr(),
        batch,
        seqlen,
        indices.data_ptr(),
        cu_seqlens.data_ptr(),
        stats.data_ptr(),
        workspace.data_ptr(),
        size,
        mask.device.index,
        torch.cuda.current_stream(mask.device).cuda_stream,
    )
    return indices, cu_seqlens, stats


def _statistics(mask: Tensor) -> tuple[Tensor, Tensor]:
    lengths = mask.sum(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    longest = lengths.max() if lengths.numel() else lengths.sum()
    return cu_seqlens.to(torch.int32), torch.stack([cu_seqlens[-1], longest])


def _read(stats: Tensor, visible: Tensor) -> list[int]:
    """The three counts, and with them any report of a bad id, in one transfer from the device."""
    counts = [stats, visible.sum()[None]]
    if visible.device.type != "cuda":
        return torch.cat(counts).tolist()
    *values, code = torch.cat([*counts, id_checks.bad_id_flag(visible.device)]).tolist()
    id_checks.raise_for_flag(code, visible.device)
    return values


def _unpad_indices(mask: Tensor) -> tuple[Tensor, Tensor]:
    indices, cu_seqlens, _, _ = unpad(mask)
    return indices.clone(), cu_seqlens


def _unpad_indices_fake(mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = torch.library.get_ctx().new_dynamic_size()
    return (
        mask.new_empty(tokens, dtype=torch.int64),
        mask.new_empty(mask.shape[0] + 1, dtype=torch.int32),
    )


_unpad_op = define("unpad_indices(Tensor mask) -> (Tensor, Tensor)", _unpad_indices, _unpad_indices_fake)
