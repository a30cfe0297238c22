"""Kernel tests run for real on a CUDA machine and in Triton's interpreter, on CPU tensors, elsewhere."""

import pytest
import torch

# The interpreter's bfloat16 is wrong (raw bits in dots, truncation in stores): bfloat16 is judged on a GPU.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])


def pytest_generate_tests(metafunc):
    """A test that takes ``dtype`` runs for every dtype its machine can judge, unless it says which."""
    marked = {name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")}
    if "dtype" in metafunc.fixturenames and "dtype" not in {name.strip() for name in marked}:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fresh memory holds NaN: an element that a kernel should have written and did not cannot pass for a result."""

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
