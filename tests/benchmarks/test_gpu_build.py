"""The install item builds for the GPU at hand, unless it was told otherwise or nvcc does not know that GPU."""

import subprocess

import pytest
import torch

from benchmarks.gpu import build
from benchmarks.options import Options

UNKNOWN = "bert_fast: BERT_FAST_CUDA_ARCHS names ['90'], but nvcc knows ['75', '80']"


@pytest.fixture
def pip(monkeypatch):
    """The environments pip was started with on a machine with an sm_90; ``pip.knows`` is whether its nvcc does."""

    def run(command, env, **piped):
        run.environments.append(env.get("BERT_FAST_CUDA_ARCHS"))
        failed = not run.knows and env.get("BERT_FAST_CUDA_ARCHS")
        return subprocess.CompletedProcess(command, int(bool(failed)), stdout=UNKNOWN if failed else "done")

    run.environments, run.knows = [], True
    monkeypatch.delenv("BERT_FAST_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(build.subprocess, "run", run)
    return run


def install():
    (row,) = build.run("install", Options())
    return row


def test_it_builds_for_the_gpu_here(pip):
    assert install()["BERT_FAST_CUDA_ARCHS"] == "90"
    assert pip.environments == ["90"]


def test_a_choice_of_the_users_stays(pip, monkeypatch):
    monkeypatch.setenv("BERT_FAST_CUDA_ARCHS", "80;90")
    install()
    assert pip.environments == ["80;90"]


def test_a_gpu_that_nvcc_does_not_know_gets_what_setup_chooses(pip):
    pip.knows = False
    assert "BERT_FAST_CUDA_ARCHS" not in install()
    assert pip.environments == ["90", None]
