"""The row arithmetic of the CUDA embedding + LayerNorm, run on the host by harness.cpp, against NumPy."""

import ctypes

import numpy as np
import pytest
import torch

from bert_fast import reference

KINDS = ["wc", "bc", "ws", "bs"]  # a warp or a block per row, which is cached in registers or streamed three times
DTYPES = {"f": torch.float32, "h": torch.float16, "b": torch.bfloat16}
VECTOR = {"f": 4, "h": 8, "b": 8}
EPS = 1e-12


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class Case:
    """Tables and ids for T tokens of H features, with what the harness makes of them."""

    def __init__(self, tokens: int, hidden: int, dtype: str, offset: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = {"word": 31, "position": 17, "type": 2}
        self.tables = {
            name: (torch.randn(n, hidden, generator=generator) + offset).to(DTYPES[dtype]) for name, n in rows.items()
        }
        self.gamma = torch.randn(hidden, generator=generator).to(DTYPES[dtype])
        self.beta = torch.randn(hidden, generator=generator).to(DTYPES[dtype])
        self.ids = {name: torch.randint(n, (tokens,), generator=generator) for name, n in rows.items()}
        self.sizes = torch.tensor([tokens, hidden, *rows.values()])
        self.dtype = dtype
        self.out = torch.full((tokens, hidden), float("nan"), dtype=DTYPES[dtype])
        self.mean, self.rstd = torch.full((tokens,), float("nan")), torch.full((tokens,), float("nan"))
        self.bad_id = torch.zeros(1, dtype=torch.int32)

    def run(self, harness: ctypes.CDLL, kind: str) -> None:
        ids = (self.ids["word"], self.ids["type"], self.ids["position"])
        tables = (self.tables["word"], self.tables["position"], self.tables["type"])
        outputs = (self.out, self.mean, self.rstd, self.sizes)
        harness.harness_embedding(
            kind.encode(),
            self.dtype.encode(),
            *(pointer(x) for x in (*ids, *tables, self.gamma, self.beta, *outputs)),
            ctypes.c_float(EPS),
            pointer(self.bad_id),
        )

    def truth(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = sum(self.tables[name].double()[self.ids[name].clamp(0, len(self.tables[name]) - 1)] for name in self.tables)
        mean, variance = x.mean(1), x.var(1, correction=0)
        rstd = (variance + EPS).rsqrt()
        return (x - mean[:, None]) * rstd[:, None] * self.gamma.double() + self.beta.double(), mean, rstd


def allowed(kind: str, hidden: int, dtype: str) -> bool:
    """Whether this way of sharing a row can be taken for this width."""
    return kind[1] == "s" or (hidden <= {"w": 1024, "b": 8192}[kind[0]] and hidden % VECTOR[dtype] == 0)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("hidden", [1, 2, 8, 31, 32, 100, 128, 257, 312, 384, 768, 1000, 1024, 1032, 2048, 8192, 9000])
def test_every_way_of_sharing_a_row_agrees_with_float64(harness: ctypes.CDLL, hidden: int, dtype: str) -> None:
    kinds = [kind for kind in KINDS if allowed(kind, hidden, dtype)]
    unit = {"f": 2.0**-24, "h": 2.0**-11, "b": 2.0**-8}[dtype]
    for kind in kinds:
        case = Case(tokens=5, hidden=hidden, dtype=dtype)
        case.run(harness, kind)
        y, mean, rstd = case.truth()
        torch.testing.assert_close(case.mean.double(), mean, rtol=1e-5, atol=1e-6, msg=lambda m, k=kind: f"{k}: {m}")
        torch.testing.assert_close(case.rstd.double(), rstd, rtol=1e-5, atol=1e-6, msg=lambda m, k=kind: f"{k}: {m}")
        # One rounding to the dtype, and float32 arithmetic before it.
        torch.testing.assert_close(
            case.out.double(), y, rtol=unit + 1e-5, atol=2e-5, msg=lambda m, k=kind: f"{k}: {m}"
        )
        assert case.bad_id.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_variance_is_not_lost_beside_a_large_mean(harness: ctypes.CDLL, kind: str) -> None:
    case = Case(tokens=4, hidden=768, dtype="f", offset=1000.0)
    case.run(harness, kind)
    torch.testing.assert_close(case.rstd.double(), case.truth()[2], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("table", "value", "flag"),
    [
        ("word", 31, 1),
        ("word", -1, 1),
        ("position", 17, 2),
        ("position", -(2**62), 2),
        ("type", 2, 3),
        ("type", 2**40, 3),
    ],
)
def test_an_id_outside_its_table_is_clamped_and_flagged(
    harness: ctypes.CDLL, table: str, value: int, flag: int
) -> None:
    case = Case(tokens=3, hidden=64, dtype="f")
    case.ids[table][1] = value
    case.run(harness, "wc")
    assert case.bad_id.item() == flag
    torch.testing.assert_close(case.out.double(), case.truth()[0], rtol=1e-4, atol=1e-4)


def test_the_first_bad_id_is_kept(harness: ctypes.CDLL) -> None:
    case = Case(tokens=3, hidden=8, dtype="f")
    case.ids["type"][0], case.ids["word"][1] = 9, 99
    case.run(harness, "ws")
    assert case.bad_id.item() == 3


def test_no_tokens_touch_nothing(harness: ctypes.CDLL) -> None:
    case = Case(tokens=0, hidden=8, dtype="f")
    case.run(harness, "ws")
    assert case.bad_id.item() == 0


@pytest.mark.parametrize("dtype", ["h", "b"])
def test_all_65536_values_widen_exactly(harness: ctypes.CDLL, dtype: str) -> None:
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    out = torch.empty(65536)
    harness.harness_to_float(dtype.encode(), pointer(bits), pointer(out), ctypes.c_int64(65536))
    torch.testing.assert_close(out, bits.view(DTYPES[dtype]).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["h", "b"])
def test_floats_narrow_to_nearest_even(harness: ctypes.CDLL, dtype: str) -> None:
    rng = np.random.default_rng(2)
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(DTYPES[dtype]).float()
    finite = values[torch.isfinite(values)].sort().values
    halfway = (finite[1:].double() + finite[:-1].double()).div(2).float()  # ties, exact in float32
    around = torch.cat([halfway, halfway.nextafter(torch.tensor(np.inf)), halfway.nextafter(torch.tensor(-np.inf))])
    random = torch.from_numpy(rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)).view(torch.float32)
    edges = torch.tensor([0.0, np.inf, np.nan, 65519.0, 65520.0, 65536.0, 2.0**-25, 2.0**-24, 1e-45, 3e38])
    x = torch.cat([values, around, random, edges, -edges])
    out = torch.empty(len(x), dtype=torch.uint16)
    harness.harness_from_float(dtype.encode(), pointer(x), pointer(out), ctypes.c_int64(len(x)))
    number = ~x.isnan()
    assert torch.equal(out[number].view(torch.int16), x[number].to(DTYPES[dtype]).view(torch.int16))
    assert out.view(DTYPES[dtype])[~number].isnan().all()


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("site", [0, 5, -1])
@pytest.mark.parametrize("first", [0, 8, 2**31 - 8, 2**34 + 24, 2**40])
def test_dropout_draws_the_words_of_the_reference(harness: ctypes.CDLL, first: int, site: int, vector: int) -> None:
    seed, p, n = torch.tensor([-0x0123_4567_89AB_CDEF]), 0.3, 64
    x = torch.randn(n)
    got = x.clone()
    threshold, scale = ctypes.c_uint32(round(p * 2**32)), ctypes.c_float(1 / (1 - p))
    where = (ctypes.c_int32(site), threshold, scale, ctypes.c_int64(first), pointer(got), ctypes.c_int64(n))
    harness.harness_dropout(vector, ctypes.c_int64(int(seed)), *where)
    keep = reference.dropout_keep(seed, site, p, first + torch.arange(n))
    assert 0 < keep.sum() < n
    assert torch.equal(got != 0, keep)
    torch.testing.assert_close(got, x * keep / (1 - p), rtol=1e-6, atol=0)
