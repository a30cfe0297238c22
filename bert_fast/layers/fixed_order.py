"""What PyTorch computes around an encoder, in an order that no other row of the batch can change.

:class:`FixedOrder` hears every function of PyTorch that is called within it. What only moves numbers, or rounds each
one exactly, runs as it is. Products and norms of rows see blocks of rows of one size (:func:`by_rows`), functions of
single elements blocks of elements of one size, in which none is computed another way because it stands at the end; and
a sum over places adds one after the other, so that zeros between them and after them change nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from bert_fast.layers.invariance import by_rows

# A multiple of every vector, and too few for a second thread.
ELEMENT_BLOCK = 4096


class FixedOrder(TorchFunctionMode):
    """Within it, PyTorch's functions of floating-point tensors give a row the same bits in any batch.

    Args:
        what: what runs within it, for the error.
        strict: raise for a function that is not known to; else it runs as it is.
    """

    def __init__(self, what: str, strict: bool) -> None:
        super().__init__()
        self.what, self.strict = what, strict

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # What is done within a function is its own affair, and not to be heard by another of these around this one.
        with torch._C.DisableTorchFunction():
            if not any(x.is_floating_point() or x.is_complex() for x in _tensors((args, *kwargs.values()))):
                return func(*args, **kwargs)
            ordered = _ORDERED.get(func)
            if ordered is not None:
                return ordered(self, func, *args, **kwargs)
            if self.strict and func not in _EXACT and getattr(func, "__name__", "") != "__get__":
                self.fail(func)
            return func(*args, **kwargs)

    def fail(self, func: Any, why: str = "is not known to give a sequence the same bits in any batch") -> None:
        """Raise where nothing may run that does not hold the promise.

        Raises:
            RuntimeError: it is strict.
        """
        if self.strict:
            name = resolve_name(func) or getattr(func, "__name__", repr(func))
            hint = ": leave out labels" if "loss" in name or "entropy" in name else ""
            raise RuntimeError(f"batch_invariant=True cannot hold here: {name} in {self.what} {why}{hint}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _rows(mode: FixedOrder, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A function of each row ``x[..., :]``."""
    y = by_rows(True, lambda block: func(block, *args, **kwargs), x.reshape(-1, x.shape[-1]))
    return y.view(*x.shape[:-1], y.shape[-1])


def _layer_norm(mode: FixedOrder, func: Any, input: Tensor, normalized_shape: Any, *args: Any, **kwargs: Any) -> Tensor:
    if len(normalized_shape) != 1:
        mode.fail(func, "works on more than rows")
        return func(input, normalized_shape, *args, **kwargs)
    return _rows(mode, func, input, normalized_shape, *args, **kwargs)


def _linear(mode: FixedOrder, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _rows(mode, func, input, weight, bias)


def _along_rows(mode: FixedOrder, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """softmax and its like, whose first argument after the tensor is ``dim``."""
    dim, *rest = args or (kwargs.pop("dim", None),)
    if dim not in (-1, input.dim() - 1):
        mode.fail(func, f"works along dimension {dim}, not the last")
        return func(input, dim, *rest, **kwargs)
    return _rows(mode, lambda block: func(block, -1, *rest, **kwargs), input)


def _normalize(
    mode: FixedOrder, func: Any, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Tensor:
    if dim not in (-1, input.dim() - 1) or out is not None:
        mode.fail(func, f"works along dimension {dim}, not the last")
        return func(input, p, dim, eps, out)
    return _rows(mode, func, input, p, -1, eps)


def _elements(mode: FixedOrder, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if any(x.numel() > 1 for x in _tensors((args, *kwargs.values()))):
        mode.fail(func, "takes more tensors than one")
        return func(input, *args, **kwargs)
    flat, count = input.reshape(-1), input.numel()
    blocks = F.pad(flat, (0, -count % ELEMENT_BLOCK)).split(ELEMENT_BLOCK)
    return torch.cat([func(block, *args, **kwargs) for block in blocks])[:count].view(input.shape)


def _sum(mode: FixedOrder, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    dim = args[0] if args else kwargs.get("dim")
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int) or input.dim() < 2 or dim % input.dim() == 0 or len(args) > 2 or "out" in kwargs:
        mode.fail(func, "adds up all of the batch")
        return func(input, *args, **kwargs)
    total = torch.zeros_like(input.sum(dim), dtype=torch.float64)
    for part in input.unbind(dim):
        total = total + part
    keepdim = args[1] if len(args) == 2 else kwargs.get("keepdim", False)
    total = total.to(kwargs.get("dtype") or input.dtype)
    return total.unsqueeze(dim) if keepdim else total


def _largest(mode: FixedOrder, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """max and min along places, of which -0 and 0 are equal: 0 it is, wherever either stands."""
    other = args[0] if args else kwargs.get("dim", kwargs.get("other"))
    found = func(input, *args, **kwargs)
    if isinstance(other, Tensor):
        return found
    if not isinstance(other, int) or input.dim() < 2 or other % input.dim() == 0:
        mode.fail(func, "looks at all of the batch")
        return found
    return found + 0 if isinstance(found, Tensor) else type(found)((found[0] + 0, found[1]))


def _dropout(mode: FixedOrder, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    training = args[1] if len(args) > 1 else kwargs.get("training", True)
    if training and (args[0] if args else kwargs.get("p", 0.5)):
        mode.fail(func, "drops at random: call eval()")
    return func(input, *args, **kwargs)


def _plain_sum(mode: FixedOrder, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """add and sub, of which a factor ``alpha`` may be fused into one rounding or not."""
    if kwargs.get("alpha", 1) != 1:
        mode.fail(func, "with alpha may round once or twice")
    return func(*args, **kwargs)


def _named(names: str, *homes: Any) -> list[Any]:
    """The functions of these names that ``homes`` have, with what the names stand for in ``torch.Tensor``."""
    return [getattr(home, name) for name in names.split() for home in homes if hasattr(home, name)]


_MOVES = """
    __getitem__ __setitem__ __iter__ __len__ __repr__ __format__ __hash__ __deepcopy__ view view_as reshape reshape_as
    expand expand_as unsqueeze squeeze transpose swapaxes permute movedim contiguous split split_with_sizes chunk unbind
    flatten unflatten gather index_select take_along_dim select narrow cat concat stack clone detach to type type_as
    float double half bfloat16 cpu numpy tolist item masked_fill masked_fill_ masked_select where flip t repeat
    repeat_interleave broadcast_to pad zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
    new_tensor copy_ size dim ndimension numel nelement element_size stride storage_offset is_contiguous data_ptr
    is_floating_point is_complex is_tensor get_device requires_grad_ as_tensor result_type promote_types
"""
_ROUNDS_EXACTLY = """
    neg abs sqrt mul div true_divide multiply divide clamp clamp_min clamp_max maximum minimum relu relu_ square sign
    eq ne lt le gt ge isnan isinf isfinite logical_not nan_to_num round floor ceil trunc argmax argmin positive
    __neg__ __abs__ __mul__ __rmul__ __imul__ __truediv__ __itruediv__ __rtruediv__ __eq__ __ne__ __lt__ __le__ __gt__
    __ge__ mul_ div_ clamp_ neg_ abs_ sqrt_ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __pos__
"""
_OF_ELEMENTS = """
    tanh sigmoid exp exp2 expm1 log log1p log2 log10 erf erfc sin cos gelu silu mish elu selu celu softplus softsign
    logsigmoid hardswish hardsigmoid hardtanh leaky_relu tanhshrink relu6 pow rsqrt reciprocal __pow__
"""
_HOMES = (torch, torch.Tensor, F)
_EXACT = frozenset(f for f in (*_named(_MOVES, *_HOMES), *_named(_ROUNDS_EXACTLY, *_HOMES)) if callable(f))
_ORDERED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_named("add sub subtract add_ sub_", torch, torch.Tensor), _plain_sum),
    **dict.fromkeys(_named(_OF_ELEMENTS, *_HOMES), _elements),
    **dict.fromkeys(_named("softmax log_softmax", *_HOMES), _along_rows),
    **dict.fromkeys(_named("sum", torch, torch.Tensor), _sum),
    **dict.fromkeys(_named("max min amax amin", torch, torch.Tensor), _largest),
    **dict.fromkeys(_named("dropout", torch, F), _dropout),
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.normalize: _normalize,
}
