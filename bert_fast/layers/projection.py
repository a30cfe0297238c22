"""Calling a linear layer: as a module, or through a derived weight where that is the same and faster."""

import torch
from torch import Tensor, nn

from bert_fast import backend, derived, ops
from bert_fast.layers.activations import GELU, activation_function
from bert_fast.ops.library import autocast_dtype
from bert_fast.ops.linear import PackedLinear, cpu_linear_plan, pack_linear, rows_to_pack
from bert_fast.ops.quantized import MAX_WIDTH, ByteLinear, byte_linear


def project(module: nn.Module, x: Tensor, hidden_act: str | None = None) -> Tensor:
    """``activation(module(x))`` for ``x [T, in]``, with the activation fused where the product allows it."""
    if hidden_act is None or hidden_act in GELU:
        product = _packed((module,), x)
        if product is not None:
            return product(x) if hidden_act is None else product(x, "gelu", GELU[hidden_act])
    if hidden_act in GELU:
        return ops.bias_gelu(*project_split(module, x), GELU[hidden_act])
    y = call(module, x)
    return y if hidden_act is None else activation_function(hidden_act)(y)


def project_split(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``module(x)`` as a product and a bias still to be added, for a kernel that adds it on its way; or None for it."""
    if backend.has_kernels(x.device) and derived.plain_linear(module) and module.weight.device == x.device:
        return ops.linear(x, module.weight, None), module.bias
    return project(module, x), None


def project_and_add(module: nn.Module, x: Tensor, residual: Tensor) -> Tensor | None:
    """``residual + module(x)`` in one pass over memory, where the product can add; else None."""
    product = _packed((module,), x)
    return None if product is None or residual.dtype != x.dtype else product.add(x, residual)


def project_joined(modules: tuple[nn.Module, ...], x: Tensor) -> Tensor | None:
    """``module(x)`` of several layers that read the same ``x``, side by side, where one product makes them; else None.

    Without gradients the joined weight is derived and kept. Where the kernels run it is otherwise joined anew, in the
    graph of autograd, of a compiler or of a capture: copying a few MB of weights costs less than a second and a third
    product and, in the backward pass, than summing three gradients of ``x``.

    Returns:
        ``[T, len(modules), out]``, or None where a layer has to be called or the layers differ in kind.
    """
    joined = _packed(modules, x) or _joined(modules, x)
    if joined is not None:
        y = joined(x)
    elif _joins_anew(modules, x):
        y = ops.linear(x, *_join(modules))
    else:
        return None
    return y.unflatten(-1, (len(modules), modules[0].out_features))


def compute_dtype(dtype: torch.dtype, device: torch.device, quantization: str | None = None) -> torch.dtype:
    """The dtype in which an encoder of ``dtype`` best runs on ``device`` now; float32 for 16 bits on most CPUs.

    Beside int8 products it is float32: what they leave is added up over all layers.
    """
    if quantization is not None:
        return torch.float32
    return cpu_linear_plan(dtype)[1] if _packing_allowed(device) else dtype


def packs(parameter: Tensor, x: Tensor) -> bool:
    """Whether linear layers with weights like ``parameter`` run packed on rows like ``x`` now."""
    return _packing_allowed(x.device) and cpu_linear_plan(parameter.dtype) == (True, x.dtype)


def _packing_allowed(device: torch.device) -> bool:
    allowed = device.type == "cpu" and derived.allowed() and autocast_dtype(device) is None
    return allowed and not backend.has_kernels(device)


class _Joined:
    """The product with several layers' weights at once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in x's dtype, for a layer that has to be called as it is.

    ``compute_dtype`` may have raised the encoder's rows above the dtype of its parameters.
    """
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.dtype == x.dtype or not parameter.is_floating_point():
        return module(x)
    if autocast_dtype(x.device) is not None:
        return module(x)
    return module(x.to(parameter.dtype)).to(x.dtype)


def _packed(modules: tuple[nn.Module, ...], x: Tensor) -> PackedLinear | None:
    if not _packing_allowed(x.device) or x.shape[0] != rows_to_pack(x.shape[0]) or not _plain(modules):
        return None
    return packed(modules, x)


def packed(modules: tuple[nn.Module, ...], x: Tensor, always: bool = False) -> PackedLinear | None:
    """One product for all these plain layers, on rows like ``x``, ``rows_to_pack`` of them, if weights may be packed.

    None where they differ in kind or (but for ``always``) run otherwise.
    """
    if not _same_kind(modules):
        return None
    if not always and cpu_linear_plan(modules[0].weight.dtype) != (True, x.dtype):
        return None
    # Kept beside the first of them: layers that share their leaves share this.
    key = ("packed", len(modules), x.dtype)
    return derived.derive(modules[0], key, _sources(modules), lambda: pack_linear(*_join(modules), x.dtype))


def byte_products(modules: tuple[nn.Module, ...]) -> ByteLinear | None:
    """One product in int8 for all these plain layers; None where one is too wide or kinds differ."""
    if not _same_kind(modules) or modules[0].in_features > MAX_WIDTH:
        return None
    key = ("int8", len(modules))
    return derived.derive(modules[0], key, _sources(modules), lambda: byte_linear(*_join(modules)))


def _joined(modules: tuple[nn.Module, ...], x: Tensor) -> _Joined | None:
    if not derived.allowed() or autocast_dtype(x.device) is not None:
        return None
    if not (_plain(modules) and _same_kind(modules)) or modules[0].weight.dtype != x.dtype:
        return None
    if packs(modules[0].weight, x):
        return None  # a third copy of the weights, for the few calls whose rows cannot run packed
    return derived.derive(modules[0], "joined", _sources(modules), lambda: _Joined(*_join(modules)))


def _joins_anew(modules: tuple[nn.Module, ...], x: Tensor) -> bool:
    if not (backend.has_kernels(x.device) and _plain(modules) and _alike(modules)):
        return False
    weight = modules[0].weight
    return weight.device == x.device and (weight.dtype == x.dtype or autocast_dtype(x.device) is not None)


def _same_kind(modules: tuple[nn.Module, ...]) -> bool:
    return _alike(modules) and derived.trackable(_sources(modules))


def _plain(modules: tuple[nn.Module, ...]) -> bool:
    return all(map(derived.plain_linear, modules))


def _alike(modules: tuple[nn.Module, ...]) -> bool:
    first = modules[0]
    if len(modules) == 1:
        return True
    return all(
        m.weight.dtype == first.weight.dtype
        and m.weight.shape == first.weight.shape
        and m.weight.device == first.weight.device
        and (m.bias is None) == (first.bias is None)
        for m in modules
    )


def _sources(modules: tuple[nn.Module, ...]) -> list[Tensor]:
    return [p for m in modules for p in (m.weight, m.bias) if p is not None]


def _join(modules: tuple[nn.Module, ...]) -> tuple[Tensor, Tensor | None]:
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    weight = torch.cat([m.weight for m in modules])
    return weight, None if modules[0].bias is None else torch.cat([m.bias for m in modules])
