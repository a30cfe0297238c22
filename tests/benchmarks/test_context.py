"""Whether what is measured as ours is ours."""

import pytest
import torch

from benchmarks.context import Context
from benchmarks.options import Options
from bert_fast import BackendError, backend


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(backend, "_broken", {})
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    monkeypatch.setattr(backend, "_decisions", {})
    found = Context(Options(device="cpu"))
    with found.on("auto"):
        yield found


def forward():
    backend.runs("softmax", "triton", torch.device("cpu"))


def fail():
    with pytest.warns(RuntimeWarning):
        backend.give_up("softmax", OSError("disk full"))


def test_a_kernel_that_fails_while_it_is_measured_is_an_error(here):
    with pytest.raises(BackendError, match="softmax was measured on PyTorch's ops: .*disk full"), here.ours():
        forward()
        fail()


def test_so_is_one_whose_gradient_fails_apart_from_its_forward_pass(here):
    with here.ours():
        forward()
    with pytest.raises(BackendError, match="disk full"), here.ours():
        fail()


def test_and_one_that_failed_before_but_nothing_that_does_not_need_it(here):
    forward()
    fail()
    with here.ours():
        backend.runs("layer_norm", "triton", torch.device("cpu"))
    with pytest.raises(BackendError, match="disk full"), here.ours():
        forward()
    with here.on("reference"), here.ours():
        forward()
