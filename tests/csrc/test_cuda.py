"""The CUDA functions of the extension, called as the ops call them, by pointer: on a GPU, and emulated on the host."""

import pytest
import torch

from bert_fast import extension
from bert_fast.ops import library

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
EPS = 1e-12


@pytest.fixture
def compiled(cuda_device: str):
    module = extension.module()
    if module is None or not hasattr(module, "unpad_cuda"):
        pytest.skip(f"no CUDA code in the extension: {extension.build_info()}")
    if cuda_device == "cuda":
        reason = module.cuda_status(torch.cuda.current_device())
        assert reason is None, reason
    return module


@pytest.fixture
def on_gpu(compiled, cuda_device: str) -> None:
    if cuda_device != "cuda":
        pytest.skip("only a GPU can show this")


def on(x: torch.Tensor) -> tuple[int, int]:
    """Device and stream; CPU tensors are the emulator's."""
    return library.launch_on(x) if x.is_cuda else (0, 0)


def unpad(compiled, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    batch, seqlen = mask.shape
    indices = torch.full((batch * seqlen + 1,), -7, dtype=torch.int64, device=mask.device)
    cu_seqlens = torch.full((batch + 2,), -7, dtype=torch.int32, device=mask.device)
    stats = torch.full((2,), -7, dtype=torch.int64, device=mask.device)
    nbytes = compiled.unpad_cuda_workspace(batch, seqlen)
    workspace = torch.full((nbytes,), 255, dtype=torch.uint8, device=mask.device)
    outputs = (x.data_ptr() for x in (indices, cu_seqlens, stats, workspace))
    compiled.unpad_cuda(mask.data_ptr(), batch, seqlen, *outputs, nbytes, *on(mask))
    total, longest = stats.tolist()
    assert (indices[total:] == -7).all(), "indices was written past the total"
    assert cu_seqlens[-1] == -7, "cu_seqlens was written past B + 1"
    return indices[:total], cu_seqlens[:-1], total, longest


def check_unpad(compiled, mask: torch.Tensor) -> None:
    indices, cu_seqlens, total, longest = unpad(compiled, mask)
    lengths = (mask != 0).sum(1)
    assert torch.equal(indices, (mask != 0).flatten().nonzero().flatten())
    assert cu_seqlens[0] == 0
    assert torch.equal(cu_seqlens[1:].long(), lengths.cumsum(0))
    assert total == lengths.sum()
    assert longest == (lengths.max() if len(lengths) else 0)


SHAPES = [(0, 5), (5, 0), (1, 1), (32, 128), (1000, 3), (1, 32769), (32769, 1), (65, 511)]
LARGER = [(2048, 777), (10**6, 2)]


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpad_equals_torch(compiled, cuda_device: str, shape: tuple[int, int], density: float) -> None:
    generator = torch.Generator(cuda_device).manual_seed(0)
    check_unpad(compiled, torch.rand(shape, generator=generator, device=cuda_device) < density)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("shape", LARGER)
def test_unpad_of_more_tiles_than_blocks_at_once(compiled, shape: tuple[int, int]) -> None:
    check_unpad(compiled, torch.rand(shape, device="cuda") < 0.5)


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_unpad_of_a_mask_that_is_not_aligned(compiled, cuda_device: str, offset: int) -> None:
    storage = (torch.rand(300 * 257 + offset, device=cuda_device) < 0.5).to(torch.uint8) * 254
    check_unpad(compiled, storage[offset:].view(300, 257))


@pytest.mark.usefixtures("on_gpu")
def test_unpad_over_two_to_the_31_positions(compiled) -> None:
    batch, seqlen = 2**16 + 1, 2**15 + 8
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    mask = torch.zeros(batch, seqlen, dtype=torch.bool, device="cuda")
    mask[-1, ::3] = mask[7, :5] = True
    indices, cu_seqlens, total, longest = unpad(compiled, mask)
    last = (batch - 1) * seqlen + torch.arange(0, seqlen, 3, device="cuda")
    assert torch.equal(indices, torch.cat([7 * seqlen + torch.arange(5, device="cuda"), last]))
    assert (total, longest) == (5 + len(last), len(last))
    assert cu_seqlens[[7, 8, batch - 1, batch]].tolist() == [0, 5, 5, total]


class Case:
    def __init__(self, tokens: int, hidden: int, dtype: torch.dtype, device: str = "cuda", shift: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(tokens + hidden)

        def table(rows: int) -> torch.Tensor:
            storage = torch.randn(rows * hidden + shift, generator=generator, device=device).to(dtype)
            return storage[shift:].view(rows, hidden)

        self.rows = {"word": 997, "position": 512, "type": 2}
        self.tables = {name: table(n) for name, n in self.rows.items()}
        self.ids = {
            name: torch.randint(n, (tokens,), generator=generator, device=device) for name, n in self.rows.items()
        }
        self.gamma, self.beta = table(1)[0], table(1)[0]
        self.out = torch.full((tokens, hidden), float("nan"), dtype=dtype, device=device)
        self.mean, self.rstd = torch.full((2, tokens), float("nan"), device=device)
        self.bad_id = torch.zeros(1, dtype=torch.int32, device=device)

    def run(self, compiled, type_ids: bool = True) -> None:
        ids = [self.ids[name].data_ptr() for name in ("word", "type", "position")]
        ids[1] *= type_ids
        tables = [self.tables[name].data_ptr() for name in ("word", "position", "type")]
        dtype = str(self.out.dtype).removeprefix("torch.")
        inputs = (*ids, *tables, self.gamma.data_ptr(), *self.out.shape, *self.rows.values(), dtype, 0, 0.0, 0)
        outputs = (x.data_ptr() for x in (self.out, self.mean, self.rstd, self.bad_id))
        compiled.embedding_layer_norm_cuda(inputs, self.beta.data_ptr(), EPS, *outputs, *on(self.out))

    def check(self) -> None:
        x = sum(self.tables[name].double()[self.ids[name].clamp(0, n - 1)] for name, n in self.rows.items())
        mean, rstd = x.mean(1), (x.var(1, correction=0) + EPS).rsqrt()
        y = (x - mean[:, None]) * rstd[:, None] * self.gamma.double() + self.beta.double()
        torch.testing.assert_close(self.mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(self.rstd.double(), rstd, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(self.out.double(), y, rtol=UNIT[self.out.dtype] + 1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 2, 31, 128, 257, 312, 384, 768, 1000, 1024, 1032, 2048, 8192, 9001])
@pytest.mark.parametrize("tokens", [1, 7, 1025])
def test_embedding_layer_norm_agrees_with_float64(
    compiled, cuda_device: str, tokens: int, hidden: int, dtype: torch.dtype
) -> None:
    if cuda_device != "cuda" and tokens * hidden > 2**15:
        pytest.skip("the emulator is slow")
    case = Case(tokens, hidden, dtype, cuda_device)
    case.run(compiled)
    case.check()
    assert case.bad_id.item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_layer_norm_of_tables_that_are_not_aligned(compiled, cuda_device: str, dtype: torch.dtype) -> None:
    case = Case(33, 768, dtype, cuda_device, shift=1)
    case.run(compiled)
    case.check()


def test_embedding_layer_norm_without_token_types_adds_row_0(compiled, cuda_device: str) -> None:
    case = Case(65, 384, torch.float32, cuda_device)
    case.ids["type"].zero_()
    case.run(compiled, type_ids=False)
    case.check()


@pytest.mark.parametrize(("table", "flag"), [("word", 1), ("position", 2), ("type", 3)])
@pytest.mark.parametrize("value", [-1, 10**6, 2**62, -(2**62)])
def test_a_bad_id_sets_the_flag_and_the_device_lives_on(
    compiled, cuda_device: str, table: str, flag: int, value: int
) -> None:
    case = Case(60, 768, torch.bfloat16, cuda_device)
    case.ids[table][57] = value
    case.run(compiled)
    assert case.bad_id.item() == flag
    case.check()


@pytest.mark.usefixtures("on_gpu")
def test_embedding_layer_norm_over_two_to_the_31_elements(compiled) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    case = Case(2**31 // 768 + 9, 768, torch.bfloat16)
    case.run(compiled)
    case.out, case.mean, case.rstd = case.out[-5:], case.mean[-5:], case.rstd[-5:]
    case.ids = {name: ids[-5:] for name, ids in case.ids.items()}
    case.check()


@pytest.mark.usefixtures("on_gpu")
def test_the_launch_is_on_the_given_stream_and_can_be_captured(compiled) -> None:
    case = Case(64, 768, torch.float32)
    case.run(compiled)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(compiled)
    case.out.fill_(float("nan"))
    graph.replay()
    case.check()


@pytest.mark.usefixtures("on_gpu")
def test_results_are_the_same_on_every_run(compiled) -> None:
    case = Case(4097, 768, torch.bfloat16)
    case.run(compiled)
    first = case.out.clone()
    case.run(compiled)
    assert torch.equal(first, case.out)


@pytest.mark.usefixtures("on_gpu")
def test_the_current_device_is_left_as_it_was(compiled) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    with torch.cuda.device(0):
        case = Case(64, 768, torch.float32, device="cuda:1")
        case.run(compiled)
        assert torch.cuda.current_device() == 0
        assert torch.ones(3, device="cuda").device.index == 0
        case.check()
