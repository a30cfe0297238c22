"""Where kernels run in tests, and what they are compared with.

With a CUDA GPU they run there; without, in Triton's interpreter on CPU tensors, which knows float32 and float16 (its
bfloat16 is wrong). Import this before any kernel: the choice is made when kernels are imported.
"""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])


def randn(*shape, dtype=torch.float32, scale=1.0, shift=0.0):
    """Normal numbers on the test device, rounded to the dtype."""
    return (torch.randn(*shape) * scale + shift).to(DEVICE, dtype)


def seed_tensor(seed=0x0123_4567_89AB_CDEF):
    """Dropout's seed as ops hand it over."""
    return torch.tensor([seed], dtype=torch.int64, device=DEVICE)


def run(function, tensors, dy, dtype=None, **options):
    """``function(**tensors, **options)`` and its gradients, everything floating in ``dtype`` if given.

    Returns a dict: "y" and "d<name>" for each tensor that is not None. The results of ``dtype=torch.float64`` are the
    truth (of the inputs as rounded to the dtype under test), those without are eager PyTorch's.
    """
    leaves = {
        name: None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()
    }
    y = function(**leaves, **options)
    y.backward(dy.to(y.dtype))
    return {"y": y.detach()} | {f"d{name}": t.grad for name, t in leaves.items() if t is not None}


def poison(monkeypatch):
    """Makes torch.empty hand out NaN, so that what a kernel forgets to write is seen."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return wrapper

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
