"""Ids outside their embedding table: an IndexError, at once on CPU and without a wait of its own on a GPU."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bert_fast.backend import constant_while_compiling
from bert_fast.ops.library import capturing, valueless

TABLES = {1: "input_ids", 2: "position_ids", 3: "token_type_ids"}
BAD_LABEL = 4  # in the flag, beside the tables' codes; csrc/shared/cross_entropy_row.h sets it too
_flags: dict[torch.device, Tensor] = {}


def check_ids(name: str, ids: Tensor, rows: int) -> None:
    """Raise an IndexError that names the argument, the id and the table's size if one of CPU ``ids`` lies outside."""
    if ids.numel() == 0 or valueless(ids):
        return
    low, high = torch.aminmax(ids)
    if low < 0 or high >= rows:
        bad = int(low) if low < 0 else int(high)
        raise IndexError(f"{name} holds {bad}, but its embedding table has {rows} rows (0 to {rows - 1})")


def bad_id_flag(device: torch.device) -> Tensor:
    """The device's sticky flag, int32 ``[1]``: 0, or the code of the first table that an id lay outside of."""
    if device not in _flags:
        if capturing(device):
            # A graph's memory goes with the graph: the flag of a device that was never warmed up is not kept.
            return torch.zeros(1, dtype=torch.int32, device=device)
        with torch.inference_mode(False):  # it outlives the block of its first call, and is written outside of it
            _flags[device] = torch.zeros(1, dtype=torch.int32, device=device)
    return _flags[device]


@constant_while_compiling
def flag_is_made(device: torch.device) -> bool:
    """Make the device's flag before a graph is traced or recorded: made inside one, it would lie in the graph's memory.

    True, so that it stays one decision of the traced program.
    """
    there = torch.cuda.is_initialized() or torch.cuda.is_available()  # a fake tensor may be where no GPU is
    if device.type == "cuda" and there and not capturing(device):
        with unset_fake_temporarily():
            bad_id_flag(device)
    return True


def clamp_ids(code: int, ids: Tensor | None, rows: int) -> Tensor | None:
    """GPU ids that a gather cannot fail on; one that had to move leaves its table's code in the device's flag."""
    if ids is None:
        return None
    clamped = ids.clamp(0, rows - 1)
    if valueless(ids):
        return clamped
    flag = bad_id_flag(ids.device)
    moved = (clamped != ids).any().to(flag.dtype) * code
    torch.where(flag == 0, moved, flag, out=flag)
    return clamped


def checked_labels(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Labels of which each is a class or ``ignore_index``.

    On CPU another one is an IndexError that names it; on a GPU it becomes ``ignore_index`` and leaves its code in the
    device's flag. int64 ``[R]``.
    """
    if valueless(labels):
        return labels
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if labels.device.type == "cuda":
        flag = bad_id_flag(labels.device)
        torch.where(flag == 0, bad.any().to(flag.dtype) * BAD_LABEL, flag, out=flag)
        return labels.masked_fill(bad, ignore_index)
    if labels.device.type == "cpu" and bad.any():
        raise IndexError(
            f"labels hold {int(labels[bad][0])}, but there are {classes} classes (0 to {classes - 1}), "
            f"and {ignore_index} is ignored"
        )
    return labels


def raise_for_flag(code: int, device: torch.device) -> None:
    """Raise the IndexError of an earlier call on ``device`` if its flag, read by the caller, says so; clears it."""
    if code:
        _flags[device].zero_()
        if code == BAD_LABEL:
            raise IndexError(f"labels of an earlier batch on {device} held one that is neither a class nor ignored")
        raise IndexError(f"{TABLES[code]} of an earlier batch on {device} held an id outside its embedding table")
