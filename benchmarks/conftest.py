"""``pytest benchmarks``: options for where and how large, and what becomes of a provider that is missing or wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Without the checkout on sys.path, which would make its folder `kernels` importable.
if "benchmarks" not in sys.modules:
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["benchmarks"])


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bert_fast benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    dtypes = ("float32", "bfloat16", "float16")
    group.addoption("--dtype", choices=dtypes, help="default: bfloat16 on a GPU, else float32")
    group.addoption("--model-size", default=None, help="minilm (default on a CPU), base (on a GPU), large")
    group.addoption("--threads", type=int, help="CPU threads, for everybody (default: PyTorch's)")
    group.addoption("--tokens", type=int, default=0, help="of the kernels' inputs")
    group.addoption("--tiny", action="store_true", help="everything small: a look at the suite, no measurement")


def pytest_configure(config: pytest.Config) -> None:
    """The settings, before tests are collected: which providers there are depends on the device."""
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError('pytest benchmarks needs pytest-benchmark: pip install -e ".[bench]"')
    import torch

    from benchmarks.environment import environment
    from benchmarks.settings import Settings

    def option(name: str) -> Any:
        return config.getoption(name, None)  # no such option where this folder was not named: pytest .

    device = option("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch.cuda.is_available() is False here")
    on_gpu = device == "cuda"
    torch.set_num_threads(option("--threads") or torch.get_num_threads())
    config.stash[ENVIRONMENT] = environment()
    config.stash[SETTINGS] = Settings(
        device=device,
        dtype=option("--dtype") or ("bfloat16" if on_gpu else "float32"),
        model=option("--model-size") or ("base" if on_gpu else "minilm"),
        threads=torch.get_num_threads(),
        batch_size=256 if on_gpu else 32,
        tokens=option("--tokens") or 0,
        tiny=bool(option("--tiny")),
    )


SETTINGS: pytest.StashKey = pytest.StashKey()
ENVIRONMENT: pytest.StashKey = pytest.StashKey()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """The saved JSON holds where it was measured, as ``bert-fast bench`` says it.

    Not how busy the machine was: it never is twice the same, and --benchmark-compare warns where anything here differs.
    """
    machine_info["bert_fast"] = {name: fact for name, fact in config.stash[ENVIRONMENT].items() if name != "load"}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """That is kept beside it."""
    output_json["load"] = config.stash[ENVIRONMENT]["load"]


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest):
    """The run's choices."""
    return request.config.stash[SETTINGS]
