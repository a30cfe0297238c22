"""The modules below an encoder: what is the same as before, and what must be called as it is."""

from typing import Any

from torch import nn

from bert_fast.integrations.adapter import Unsupported

_HOOKS = ("_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def read(root: nn.Module, called: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """Every module below ``root``, but for the children named in ``called``, which are called with what they expect.

    Raises:
        Unsupported: one of them has a hook, which would see packed rows, or a forward of its own on the instance.
    """
    found: list[nn.Module] = []
    for name, child in root._modules.items():
        if child is not None and name not in called:
            _walk(child, name, found)
    return tuple(found)


def _walk(module: nn.Module, name: str, found: list[nn.Module]) -> None:
    if "forward" in module.__dict__:
        raise Unsupported(f"the forward of {name} was replaced")
    for kind in _HOOKS:
        if getattr(module, kind):
            raise Unsupported(f"{name} has a hook, which expects padded tensors")
    for hook in module._forward_hooks.values():
        if not _harmless(hook):
            raise Unsupported(f"{name} has a hook, which expects padded tensors")
    found.append(module)
    for child_name, child in module._modules.items():
        if child is not None:
            _walk(child, f"{name}.{child_name}", found)


def _harmless(hook: Any) -> bool:
    """`transformers` records outputs by hooks that only wake up inside its own forward, and marks embeddings by one."""
    home, name = getattr(hook, "__module__", ""), getattr(hook, "__name__", "")
    if home == "transformers.utils.output_capturing":
        return True
    return home.startswith(("transformers.", "peft.")) and name.startswith("make_inputs_require_grad")


def unchanged(now: tuple[nn.Module, ...], before: tuple[nn.Module, ...]) -> bool:
    """Whether both are the very same modules."""
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
