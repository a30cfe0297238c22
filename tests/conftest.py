"""What every test shares: a fixed seed, one thread, no GPU tests without a GPU, and no network."""

import importlib
import os

import pytest
import torch
import without_hypothesis
from emulated import cuda_device, emulated, emulated_module  # noqa: F401 - fixtures

without_hypothesis.install()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Whether kernels run for real or in Triton's interpreter is settled when a kernel's module is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: torch.cuda.is_available() is False here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def cpu_linear(request):
    """Run the test with ``bert_fast.set_cpu_linear(request.param)``, and the setting before it afterwards."""
    # bert_fast.ops.linear names the function, too: the module has to be asked for.
    linear = importlib.import_module("bert_fast.ops.linear")
    before = linear._setting
    linear.set_cpu_linear(request.param)
    yield request.param
    linear.set_cpu_linear(before)
