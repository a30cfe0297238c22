"""The GPU's clock against a GPU made of paper, whose kernels take as long as they say."""

import pytest
import torch

from benchmarks import timing


class PaperGpu:
    """Stands in for ``torch.cuda``: work queues up in virtual seconds, the host's clock is virtual, too."""

    FLUSH = 50e-6

    def __init__(self):
        self.host = 0.0  # seconds the host has spent
        self.done = 0.0  # when the GPU will have done all that is queued
        self.slept = []
        self.flushes = 0

    def work(self, seconds, launch=0.0):
        self.host += launch
        self.done = max(self.done, self.host) + seconds

    def synchronize(self):
        self.host = max(self.host, self.done)

    def _sleep(self, cycles):
        self.slept.append(cycles / timing.CudaClock._SLEEP_HZ)
        self.work(self.slept[-1])

    def current_device(self):
        return 0

    def get_device_properties(self, index):
        return type("Properties", (), {"L2_cache_size": 1024})()

    def event(gpu, enable_timing=False):
        class Event:
            def record(self):
                self.at = max(gpu.done, gpu.host)

            def query(self):
                return gpu.host >= self.at

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        return Event()


@pytest.fixture
def gpu(monkeypatch):
    gpu = PaperGpu()

    class Buffer:
        def zero_(self):
            gpu.flushes += 1
            gpu.work(gpu.FLUSH)

    for name in ("synchronize", "_sleep", "current_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(timing.torch, "empty", lambda *shape, **options: Buffer())
    monkeypatch.setattr(timing.time, "perf_counter", lambda: gpu.host)
    return gpu


def test_a_kernel_is_timed_alone_however_long_python_takes_to_launch_it(gpu):
    found = timing.CudaClock().cold([lambda: gpu.work(100e-6, launch=300e-6)])
    assert found.seconds == pytest.approx(100e-6)
    assert found.p20 == pytest.approx(found.p80)
    assert not found.host_bound
    assert gpu.flushes > found.runs


def test_without_the_sleeping_kernel_the_gpu_waits_and_the_clock_says_so(gpu, monkeypatch):
    monkeypatch.delattr(torch.cuda, "_sleep")
    found = timing.CudaClock().cold([lambda: gpu.work(100e-6, launch=300e-6)])
    assert found.seconds > 200e-6
    assert found.host_bound


def test_work_that_waits_for_the_gpu_is_called_host_bound(gpu):
    def run():
        gpu.work(20e-6, launch=10e-6)
        gpu.synchronize()

    assert timing.CudaClock().cold([run]).host_bound


def test_inputs_take_turns_and_the_median_is_of_all(gpu):
    seen = []

    def run(name, seconds):
        seen.append(name)
        gpu.work(seconds)

    found = timing.CudaClock().cold([lambda: run("a", 10e-6), lambda: run("b", 30e-6)])
    assert found.p20 == pytest.approx(10e-6)
    assert found.p80 == pytest.approx(30e-6)
    assert abs(seen.count("a") - seen.count("b")) <= 1


def test_long_runs_are_repeated_ten_times_and_short_ones_a_hundred(gpu):
    assert timing.CudaClock().cold([lambda: gpu.work(0.5)]).runs == 10
    assert timing.CudaClock().cold([lambda: gpu.work(1e-6)]).runs == 100


def test_many_launches_are_not_all_queued_behind_one_sleep(gpu):
    timing.CudaClock().cold([lambda: gpu.work(1e-6)], calls=400)
    sleeps = len(gpu.slept)
    assert sleeps == 100


def test_a_loop_of_batches_counts_what_the_host_adds(gpu):
    found = timing.CudaClock().steady(lambda: gpu.work(1e-3, launch=2e-3))
    assert found.seconds == pytest.approx(2e-3, rel=0.2)
    found = timing.CudaClock().steady(lambda: gpu.work(2e-3, launch=1e-3))
    assert found.seconds == pytest.approx(2e-3, rel=0.2)


def test_latency_runs_from_the_call_to_the_answer(gpu):
    found = timing.CudaClock().latency(lambda: gpu.work(200e-6, launch=300e-6))
    assert found.seconds == pytest.approx(500e-6)
    assert 20 <= found.runs <= 500
