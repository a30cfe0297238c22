"""The keyword arguments of `from_pretrained`: those of `transformers`, each honoured or named in an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Names of attention that `transformers` knows. Here all of them mean the same: the best kernel that can run."""

_WHENCE = (
    "use_safetensors",
    "variant",
    "subfolder",
    "revision",
    "cache_dir",
    "local_files_only",
    "force_download",
    "token",
)

_FLOATS = ("float32", "float16", "bfloat16", "float64")

# What makes no difference here: automatic, always on, or long without effect in transformers too.
_NO_EFFECT = ("low_cpu_mem_usage", "trust_remote_code", "resume_download", "from_tf", "mirror", "_fast_init")

_REFUSED = {
    "quantization_config": "weights are loaded in floating point; quantize the model after loading",
    "load_in_8bit": "weights are loaded in floating point; quantize the model after loading",
    "load_in_4bit": "weights are loaded in floating point; quantize the model after loading",
    "state_dict": "construct the model from its config and call load_state_dict",
    "max_memory": "a model is loaded onto one device; pass device=",
    "offload_folder": "a model is loaded onto one device; pass device=",
    "offload_state_dict": "a model is loaded onto one device; pass device=",
    "tp_plan": "shard the loaded model with torch.distributed",
    "tp_size": "shard the loaded model with torch.distributed",
    "device_mesh": "shard the loaded model with torch.distributed",
    "distributed_config": "shard the loaded model with torch.distributed",
    "adapter_kwargs": "load the base model, then its adapter with peft",
    "gguf_file": "only safetensors, PyTorch and TensorFlow-1 checkpoints are read",
    "from_flax": "only safetensors, PyTorch and TensorFlow-1 checkpoints are read",
    "key_mapping": "rename the tensors in the file",
    "proxies": "set HTTPS_PROXY in the environment",
    "use_kernels": "bert_fast chooses its own; see bert_fast.use_backend",
    "kernel_config": "bert_fast chooses its own; see bert_fast.use_backend",
    "fusion_config": "bert_fast fuses by itself",
}


@dataclass
class LoadOptions:
    """What `from_pretrained` was asked for, beside the checkpoint, its config and changes to that."""

    dtype: str | torch.dtype | None = None
    torch_dtype: str | torch.dtype | None = None
    device: str | int | torch.device | None = None
    device_map: Any = None
    strict: bool = False
    ignore_mismatched_sizes: bool = False
    output_loading_info: bool = False
    attn_implementation: str | None = None
    use_safetensors: bool | None = None
    weights_only: bool = True
    variant: str | None = None
    subfolder: str = ""
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False
    token: str | bool | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that are none of these: for the config, or the model's constructor."""

    @classmethod
    def take(cls, arguments: Mapping[str, Any]) -> LoadOptions:
        """Sort keyword arguments into options and the rest.

        Raises:
            ValueError: an argument that `transformers` knows and that cannot be honoured, or a value not allowed.
        """
        known = {option.name for option in fields(cls)} - {"rest"}
        rest = dict(arguments)
        for name in _NO_EFFECT:
            rest.pop(name, None)
        for name, advice in _REFUSED.items():
            if rest.pop(name, None) not in (None, False, {}):
                raise ValueError(f"{name}= is not supported: {advice}")
        if "use_auth_token" in rest:  # the name of token= before transformers 5
            rest.setdefault("token", rest.pop("use_auth_token"))
        chosen = {name: rest.pop(name) for name in list(rest) if name in known}
        options = cls(**chosen, rest=rest)
        if options.attn_implementation not in ATTENTION:
            allowed = ", ".join(str(name) for name in ATTENTION)
            raise ValueError(f"attn_implementation must be one of {allowed}, not {options.attn_implementation!r}")
        if not options.weights_only:
            raise ValueError("weights_only=False is not supported: a pickle of more than tensors can run any code")
        return options

    def whence(self) -> dict[str, Any]:
        """The options that say which files, and where they come from: the arguments of `resolve`."""
        return {name: getattr(self, name) for name in _WHENCE}

    def chosen_device(self) -> torch.device:
        """The one device to load onto: `device`, `device_map`, or torch's default.

        Raises:
            ValueError: several devices, two that contradict each other, or none that torch knows.
        """
        mapped = self.device_map
        if isinstance(mapped, dict):
            if list(mapped) != [""]:
                raise ValueError(f'device_map must be one device or {{"": device}}, not {mapped!r}')
            mapped = mapped[""]
        given = [value for value in (self.device, mapped) if value is not None]
        if not given:
            device = torch.get_default_device()
        elif any(isinstance(value, (bool, dict)) or not isinstance(value, (str, int, torch.device)) for value in given):
            raise ValueError(f"device must be a string, a number or a torch.device, not {given!r}")
        else:
            try:
                devices = {torch.device(value) for value in given}
            except RuntimeError:
                raise ValueError(f"device must be one like 'cpu' or 'cuda:0', not {given!r}") from None
            if len(devices) > 1:
                raise ValueError(f"device={self.device!r} and device_map={self.device_map!r} contradict each other")
            device = devices.pop()
        if device.type == "meta":
            raise ValueError("weights cannot be loaded onto the meta device; construct the model from its config there")
        return device

    def chosen_dtype(self, saved: torch.dtype | str | None) -> torch.dtype:
        """The dtype to load as: `dtype` (or `torch_dtype`), or with None or "auto" the one `saved` names.

        Raises:
            ValueError: not a floating point type, or two that contradict each other.
        """
        given = {as_dtype(value, "dtype") for value in (self.dtype, self.torch_dtype) if value not in (None, "auto")}
        if len(given) > 1:
            raise ValueError(f"dtype={self.dtype!r} and torch_dtype={self.torch_dtype!r} contradict each other")
        return given.pop() if given else as_dtype(saved or torch.float32, "dtype in the config")


def as_dtype(value: Any, argument: str) -> torch.dtype:
    """A floating point dtype, also by name ("float16", "torch.float16"). Raises ValueError for any other."""
    name = str(value).removeprefix("torch.")
    if name not in _FLOATS:
        raise ValueError(f"{argument} must be one of {', '.join(_FLOATS)} or 'auto', not {value!r}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
