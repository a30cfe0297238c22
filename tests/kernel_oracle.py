"""Inputs for the tests of row-wise kernels, and what their results are compared with.

Kernels run on a CUDA GPU or in Triton's interpreter, which knows float32 and float16 (tests/kernels/conftest.py).
"""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
