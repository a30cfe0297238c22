"""A model and its optimizer on their devices: alone, copied to every process (DDP), or cut up among them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import Optimizer

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(mixed_precision: str | None = None, unused_parameters: bool = False) -> Accelerator:
    """An Accelerator for :func:`bert_fast.training.fit`; under torchrun or ``accelerate launch``, one of several.

    Args:
        mixed_precision: "no", "bf16" or "fp16"; None for what ``accelerate launch`` says.
        unused_parameters: whether some parameters get no gradient (a pooler that no loss reads), which DDP has to be
            told, and pays for.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters, gradient_as_bucket_view=True)
    # Without a GPU, Accelerate would take each process of torchrun for a run of its own, unless it is told.
    cpu = not torch.accelerator.is_available()
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[ddp])


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, shard: bool
) -> tuple[nn.Module, Optimizer]:
    """The model and optimizer to train with; ``optimizer`` itself is changed to move the prepared parameters.

    An Accelerator with an FSDP2 plugin shards as the plugin says, by BERT's layers. One process has nothing to cut up.
    With fp16, sharded or not, the loss scale is ``torch.amp.GradScaler``'s, whose look for infinities is over all parts
    of sharded gradients: all processes skip a step, or none.
    """
    if accelerator.num_processes == 1 or not (shard or accelerator.is_fsdp2):
        return accelerator.prepare(model, optimizer)
    _shard(accelerator, model, optimizer)
    return model, accelerator.prepare_optimizer(optimizer)


def _shard(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> None:
    """FSDP2 by layers. Accelerate's own wrapping shards nothing on CPU, and cuts the word embedding, whose weight the
    embedding layer reads itself, off into a unit of its own."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {}
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        options = {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload}
        options["mp_policy"] = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    elif accelerator.mixed_precision in _HALF:
        options["mp_policy"] = MixedPrecisionPolicy(_HALF[accelerator.mixed_precision], reduce_dtype=torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    model.to(accelerator.device)
    units = set(getattr(model, "_no_split_modules", None) or ()) - {"BertEmbeddings"}
    for module in list(model.modules()):
        if type(module).__name__ in units:
            fully_shard(module, **options)
    fully_shard(model, **{name: value for name, value in options.items() if name != "reshard_after_forward"})
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]


@contextmanager
def without_exchange(accelerator: Accelerator, model: nn.Module, skip: bool) -> Iterator[None]:
    """Where ``skip``, gradients stay in this process: all but the last batch of a step need no exchange."""
    if skip and hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        with accelerator.no_sync(model) if skip else nullcontext():
            yield


def whole(value: Any) -> Any:
    """A tensor of a sharded model put together, on the host; collective. Anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()


def shared_out(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut and placed as ``like`` is."""
    if not hasattr(like, "device_mesh") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
