"""The door of LAMB and Adam down to its kernels' arithmetic, which here runs on the host: what goes where."""

import importlib
from types import SimpleNamespace

import optimizer_cases as cases
import pytest
import torch
from host_optimizer import CHUNK, HostOptimizer

from bert_fast import backend, extension
from bert_fast.ops import lamb
from bert_fast.training import Lamb


@pytest.fixture
def kernels(harness, monkeypatch):
    made = HostOptimizer(harness)
    monkeypatch.setattr(extension, "module", lambda: made)
    monkeypatch.setattr(backend, "runs", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    return made


def tensors_of(*arguments, **options):
    return cases.tensors_of(*arguments, **options, device="cpu")


@pytest.mark.parametrize("kind", cases.DTYPES)
@pytest.mark.parametrize("name", cases.RULES)
def test_a_step_holds_the_contract(kernels, name, kind):
    sizes = [1, 0, 3, 700, CHUNK + 1, 2 * CHUNK + 6, 0]
    cases.check(tensors_of(sizes, kind, shift=1), [cases.RULES[name]], max_grad_norm=1.0)


def test_groups_and_dtypes_share_one_norm(kernels):
    mixed = [t for i, kind in enumerate(cases.DTYPES) for t in tensors_of([700, 33, CHUNK + 1], kind, seed=i)]
    rules = list(cases.RULES.values())
    cases.check(mixed, rules, steps=1, max_grad_norm=1.0, grad_scale=torch.tensor(8.0))
    assert kernels.calls.count("clip_factor") == 1
    assert kernels.calls.index("clip_factor") > max(i for i, c in enumerate(kernels.calls) if c == "square_gradients")


def test_few_calls_for_many_tensors(kernels):
    found = tensors_of(cases.ragged(400))
    cases.check(found, [cases.RULES["lamb"], cases.RULES["adamw"]], steps=1)
    assert kernels.calls == ["lamb", "adam"]


def test_without_clipping_the_loss_scale_is_undone_too(kernels):
    cases.check(tensors_of([50, 700]), [cases.RULES["google"]], grad_scale=torch.tensor(4.0))


def test_found_inf_leaves_everything(kernels):
    found = tensors_of([700, 33])
    before = cases.copied(found)
    lamb.adam_step([(cases.RULES["lamb"], found)], max_grad_norm=1.0, found_inf=torch.ones(1))
    for t, old in zip(found, before, strict=True):
        assert all(torch.equal(x, y) for x, y in zip((*t.written(), t.step), (*old.written(), old.step), strict=True))


def test_a_learning_rate_on_the_device_is_read_there(kernels):
    lr = torch.tensor(0.5)
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = Lamb(params, lr)
    params[0].grad = torch.ones(3)
    given = []
    step = kernels.adam_cuda
    kernels.adam_cuda = lambda *a: given.append(a[9:11]) or step(*a)
    optimizer.step()
    assert given == [(lr.data_ptr(), 0.0)]
    torch.testing.assert_close(params[0].detach(), torch.full((3,), 0.5))


def test_the_compiled_functions_take_what_the_door_gives(kernels):
    """Numbers of arguments, their types and order, as far as a machine without a GPU can tell."""
    compiled = importlib.import_module("bert_fast._C")
    if not hasattr(compiled, "adam_cuda"):
        pytest.skip("the extension has no CUDA code here")
    assert compiled.optimizer_chunk() == CHUNK
    given = []
    for name in ("square_gradients_cuda", "adam_cuda"):
        run = getattr(kernels, name)
        setattr(kernels, name, lambda *a, name=name, run=run: given.append((name, a)) or run(*a))
    cases.check(tensors_of([5] * 5), list(cases.RULES.values()), max_grad_norm=1.0, found_inf=torch.zeros(1))
    assert len(given) == 2 * 2 * len(cases.RULES)
    for name, arguments in given:
        getattr(compiled, name)([], *arguments[1:-2], 0, 0)  # without tensors there is nothing to launch
    with pytest.raises(ValueError, match="tensors must hold 7 numbers"):
        compiled.square_gradients_cuda([1, 2, 3], "float32", 0, 0, 0)
    with pytest.raises(ValueError, match="grad must not be null"):
        compiled.square_gradients_cuda([0, 2, 3, 4, 5, 6, 7], "float32", 8, 0, 0)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        compiled.clip_factor_cuda(8, 1, 0.0, 0, 8, 0, 0)
