"""unpad as an op of PyTorch: its schema, its fake, its compiled form. Its properties: tests/test_packing.py."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bert_fast import extension, ops

MASKS = {
    "holes": torch.tensor([[True, False, True], [False, True, True]]),
    "all": torch.ones(2, 4, dtype=torch.bool),
    "none": torch.zeros(2, 4, dtype=torch.bool),
    "one": torch.tensor([[True]]),
    "no_rows": torch.zeros(0, 3, dtype=torch.bool),
    "no_columns": torch.zeros(3, 0, dtype=torch.bool),
    "transposed": torch.rand(5, 7).gt(0.5).t(),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("compiled_extension", [True, False], ids=["extension", "pytorch"])
def test_opcheck_of_unpad_indices(case, compiled_extension, monkeypatch):
    if not compiled_extension:
        monkeypatch.setattr(extension, "module", lambda: None)
    torch.library.opcheck(torch.ops.bert_fast.unpad_indices.default, (MASKS[case],))


def test_compiled_unpad_and_pad_recompile_at_most_once_for_any_count():
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def run(x, mask):
        indices, cu_seqlens, longest, _ = ops.unpad(mask)
        return ops.pad_rows(ops.unpad_rows(x, indices) * 2, indices, *mask.shape), cu_seqlens, longest

    for step in range(12):
        rows, length = 2 + step % 4, 3 + step
        x, mask = torch.randn(rows, length, 5), torch.rand(rows, length) < 0.6
        out, cu_seqlens, longest = run(x, mask)
        assert torch.equal(out, 2 * x * mask[..., None])
        assert cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
        assert longest == length
    assert counter.frame_count <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("case", MASKS)
def test_unpad_on_a_gpu(case):
    mask = MASKS[case]
    indices, cu_seqlens, longest, _ = ops.unpad(mask.cuda())
    want = ops.unpad(mask)
    assert torch.equal(indices.cpu(), want[0])
    assert torch.equal(cu_seqlens.cpu(), want[1])
    assert longest == want[2]
