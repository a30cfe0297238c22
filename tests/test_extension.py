"""bert_fast.extension: what the compiled host functions compute, and what happens where they cannot be loaded."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bert_fast
from bert_fast import extension

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compiled():
    if extension.module() is None:
        pytest.skip(f"no extension here: {extension.unavailable_reason()}")
    return extension.module()


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def unpad(compiled, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The visible positions, cu_seqlens and the longest row, after a check that nothing else was written."""
    batch, seqlen = mask.shape
    mask = np.ascontiguousarray(mask)
    indices = np.full(batch * seqlen + 1, -7, dtype=np.int64)
    cu_seqlens = np.full(batch + 2, -7, dtype=np.int32)
    total, longest = compiled.unpad(address(mask), batch, seqlen, address(indices), address(cu_seqlens))
    assert indices[-1] == -7, "indices was written past B * S"
    assert cu_seqlens[-1] == -7, "cu_seqlens was written past B + 1"
    return indices[:total], cu_seqlens[:-1], longest


def check_unpad(compiled, mask: np.ndarray) -> None:
    indices, cu_seqlens, longest = unpad(compiled, mask)
    lengths = (mask != 0).sum(axis=1)
    np.testing.assert_array_equal(indices, np.flatnonzero(mask))
    np.testing.assert_array_equal(cu_seqlens, np.concatenate([[0], np.cumsum(lengths)]))
    assert longest == lengths.max(initial=0)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(0, 0), (0, 9), (9, 0), (1, 1), (1, 1000), (1000, 1), (33, 129)])
def test_unpad_equals_numpy(compiled, shape: tuple[int, int], density: float, dtype: type) -> None:
    check_unpad(compiled, (np.random.default_rng(0).random(shape) < density).astype(dtype))


def test_unpad_takes_any_byte_but_zero_as_visible(compiled) -> None:
    check_unpad(compiled, np.arange(256, dtype=np.uint8).reshape(16, 16))


@given(batch=st.integers(0, 30), seqlen=st.integers(0, 60), density=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_unpad_equals_numpy_for_any_mask(compiled, batch: int, seqlen: int, density: float, seed: int) -> None:
    check_unpad(compiled, np.random.default_rng(seed).random((batch, seqlen)) < density)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, -1, 4, 1, 1), "batch must be at least 0, got -1"),
        ((1, 4, -1, 1, 1), "seqlen must be at least 0, got -1"),
        ((1, 2**40, 2**40, 1, 1), "batch \\* seqlen is too large"),
        ((0, 1, 1, 8, 8), "mask must not be null"),
        ((8, 1, 1, 0, 8), "indices must not be null"),
        ((8, 1, 1, 8, 0), "cu_seqlens must not be null"),
    ],
)
def test_unpad_refuses_bad_arguments(compiled, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled.unpad(*arguments)


def batches_of(compiled, lengths: list[int], max_tokens: int, max_sequences: int = 0) -> list[list[int]]:
    given_lengths = np.array(lengths, dtype=np.int64)
    order = np.full(len(lengths) + 1, -7, dtype=np.int64)
    offsets = np.full(len(lengths) + 2, -7, dtype=np.int64)
    addresses = (address(order), address(offsets))
    n = compiled.token_budget_batches(address(given_lengths), len(lengths), max_tokens, max_sequences, *addresses)
    assert (order[-1], offsets[-1]) == (-7, -7), "more was written than promised"
    assert (offsets[n + 1 :] == -7).all()
    return [order[offsets[i] : offsets[i + 1]].tolist() for i in range(n)]


def expected_batches(lengths: list[int], max_tokens: int, max_sequences: int = 0) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = max_sequences and batches and len(batches[-1]) == max_sequences
        if not batches or full or lengths[index] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= lengths[index]
    return batches


@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    max_tokens=st.integers(1, 100),
    max_sequences=st.integers(0, 9),
)
def test_batches_keep_the_budget(compiled, lengths: list[int], max_tokens: int, max_sequences: int) -> None:
    batches = batches_of(compiled, lengths, max_tokens, max_sequences)
    assert batches == expected_batches(lengths, max_tokens, max_sequences)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= max_tokens
        assert len(batch) <= (max_sequences or len(lengths))


def test_batches_of_edge_cases(compiled) -> None:
    assert batches_of(compiled, [], 10) == []
    assert batches_of(compiled, [0, 0], 1) == [[0, 1]]
    assert batches_of(compiled, [3, 0, 50], 10) == [[2], [0, 1]], "a sequence over the budget is alone"
    assert batches_of(compiled, [5, 5, 5], 10) == [[0, 1], [2]], "the sort is stable and the budget may be met"
    huge = 2**63 - 1
    assert batches_of(compiled, [huge, 1, huge], huge) == [[0], [2], [1]], "sums must not overflow"
    assert batches_of(compiled, [1, huge], 1) == [[1], [0]]


def test_batches_refuse_bad_arguments(compiled) -> None:
    lengths, offsets = np.array([3, -1], dtype=np.int64), np.zeros(3, dtype=np.int64)
    order = np.zeros(2, dtype=np.int64)
    cases = [
        ((address(lengths), 2, 10, 0), r"lengths\[1\] must be at least 0, got -1"),
        ((address(lengths), -1, 10, 0), "n must be at least 0, got -1"),
        ((address(lengths), 1, 0, 0), "max_tokens must be at least 1, got 0"),
        ((address(lengths), 1, 10, -1), "max_sequences must be at least 0, got -1"),
        ((0, 1, 10, 0), "lengths must not be null"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            compiled.token_budget_batches(*arguments, address(order), address(offsets))


def fingerprint(compiled, *buffers: np.ndarray, samples: int = 16) -> int:
    return compiled.fingerprint([address(b) for b in buffers], [b.nbytes for b in buffers], samples)


def sampled_words(nbytes: int, samples: int) -> list[int]:
    """The byte offsets that are promised: evenly spaced words, the last one ending with the buffer."""
    words = -(-nbytes // 8)
    n = min(words, samples)
    return [min((words - 1) * i // (n - 1) * 8, nbytes - 8) for i in range(n)] if n > 1 else [0]


@pytest.mark.parametrize("nbytes", [1, 7, 8, 9, 15, 16, 24, 1000, 4099])
@pytest.mark.parametrize("samples", [2, 3, 16, 4096])
def test_fingerprint_sees_exactly_the_sampled_bytes(compiled, nbytes: int, samples: int) -> None:
    buffer = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    before = fingerprint(compiled, buffer, samples=samples)
    assert before == fingerprint(compiled, buffer.copy(), samples=samples), "it must not depend on the address"
    seen = {at + k for at in sampled_words(nbytes, samples) for k in range(min(8, nbytes))}
    assert {0, nbytes - 1} <= seen
    for at in range(nbytes):
        buffer[at] ^= 1
        assert (fingerprint(compiled, buffer, samples=samples) != before) == (at in seen), f"byte {at}"
        buffer[at] ^= 1


def test_fingerprint_tells_sizes_order_and_number_of_buffers(compiled) -> None:
    zeros, one = np.zeros(8, dtype=np.uint8), np.ones(8, dtype=np.uint8)
    empty = np.zeros(0, dtype=np.uint8)
    inputs = [(), (zeros,), (zeros[:4],), (zeros, zeros), (zeros, one), (one, zeros), (empty,), (empty, zeros)]
    hashes = [fingerprint(compiled, *buffers) for buffers in inputs]
    assert len(set(hashes)) == len(inputs)
    assert all(0 <= value < 2**64 for value in hashes)


def test_fingerprint_refuses_bad_arguments(compiled) -> None:
    cases = [
        (([8], [], 2), "same length, got 1 and 0"),
        (([8], [-1], 2), "nbytes must be at least 0"),
        (([8], [8], 1), "samples must be at least 2"),
        (([8], [8], 2**40), "samples must be below"),
        (([0], [8], 2), "pointers must not be null"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            compiled.fingerprint(*arguments)


def test_cuda_functions_check_before_they_launch(compiled) -> None:
    if not bert_fast.build_info()["cuda"]:
        pytest.skip("the extension has no CUDA code here")
    assert compiled.unpad_cuda_workspace(8, 128) == 0, "one block needs no workspace"
    assert compiled.unpad_cuda_workspace(1024, 512) == 8 * 128
    assert compiled.unpad_cuda_workspace(10**6, 10**6) <= 8 * 4096
    unpad_case = {"mask": 16, "batch": 1024, "seqlen": 512, "indices": 16, "cu_seqlens": 16, "stats": 16}
    unpad_case |= {"workspace": 16, "workspace_bytes": 1024, "device": 0, "stream": 0}
    for change, message in [
        ({"workspace_bytes": 1023}, "workspace_bytes must be at least 1024, got 1023"),
        ({"workspace": 0}, "workspace must not be null"),
        ({"stats": 0}, "stats must not be null"),
        ({"batch": -1}, "batch must be at least 0"),
        ({"device": -1}, "device must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            compiled.unpad_cuda(**(unpad_case | change))
    ids = dict.fromkeys(("input_ids", "token_type_ids", "position_ids"), 16)
    tables = dict.fromkeys(("word", "position", "type", "gamma"), 16)
    inputs = {**ids, **tables, "tokens": 4, "hidden": 8, "vocab": 5, "positions": 5, "types": 2, "dtype": "float32"}
    inputs |= {"seed": 16, "p": 0.1, "site": 3}
    outputs = {"beta": 16, "eps": 1e-12, "out": 16, "mean": 16, "rstd": 16, "bad_id": 16, "device": 0, "stream": 0}

    def embed(**change):
        given = {name: change.get(name, value) for name, value in inputs.items()}
        rest = {name: change.get(name, value) for name, value in outputs.items()}
        return compiled.embedding_layer_norm_cuda(tuple(given.values()), **rest)

    for change, message in [
        ({"tokens": -1}, "tokens must be at least 0"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"hidden": 2**31}, "hidden must be below"),
        ({"vocab": 0}, "vocab must be at least 1"),
        ({"types": 0}, "types must be at least 1"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"eps": float("nan")}, "eps must be at least 0"),
        ({"dtype": "float64"}, "dtype must be float32, float16 or bfloat16, got float64"),
        ({"position_ids": 0}, "position_ids must not be null"),
        ({"mean": 0}, "mean and rstd must both"),
        ({"bad_id": 0}, "bad_id must not be null"),
        ({"word": 0}, "must not be null"),
        ({"device": -1}, "device must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            embed(**change)
    assert embed(tokens=0) is None, "no tokens, no launch"


def test_cuda_functions_of_gathers_check_before_they_launch(compiled) -> None:
    if not bert_fast.build_info()["cuda"]:
        pytest.skip("the extension has no CUDA code here")
    where, row = {"device": 0, "stream": 0}, {"row_bytes": 8}
    assert compiled.embedding_layer_norm_backward_cuda_workspace(10**6, 768) == 4 * 2048 * 768 * 4
    assert compiled.sum_rows_by_id_cuda_workspace(65, 8) == 2 * 2 * 8 * 4
    pool = dict.fromkeys(("x", "cu_seqlens", "out", "places", "scales"), 16)
    pool |= {"tokens": 3, "sequences": 2, "hidden": 8, "mode": 0, "normalize": True, "dtype": "float32", **where}
    sums = dict.fromkeys(("x", "ids", "order", "out", "workspace"), 16)
    sums |= {"tokens": 3, "hidden": 8, "rows": 5, "skip": -1, "dtype": "float32", "workspace_bytes": 64, **where}
    gather = {"from": 16, "places": 4, "indices": 16, "tokens": 3, "to": 16, **row, **where}
    for function, case, change, message in [
        ("pool_cuda", pool, {"mode": 3}, "mode must be 0"),
        ("pool_cuda", pool, {"hidden": 0}, "hidden must be at least 1"),
        ("pool_cuda", pool, {"out": 0}, "out must not be null"),
        ("pool_cuda", pool, {"dtype": "int8"}, "dtype must be float32, float16 or bfloat16"),
        ("sum_rows_by_id_cuda", sums, {"rows": 0}, "rows must be at least 1"),
        ("sum_rows_by_id_cuda", sums, {"workspace_bytes": 63}, "workspace_bytes must be at least 64"),
        ("gather_rows_cuda", gather, {"row_bytes": -1}, "row_bytes must be at least 0"),
        ("gather_rows_cuda", gather, {"indices": 0}, "indices must not be null"),
        ("scatter_rows_cuda", gather, {"tokens": 5}, "tokens must not be more than places"),
        ("scatter_rows_cuda", gather, {"to": 0}, "to must not be null"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(compiled, function)(**(case | change))


def test_without_a_driver_cuda_says_so(compiled) -> None:
    if not bert_fast.build_info()["cuda"]:
        pytest.skip("the extension has no CUDA code here")
    reason = compiled.cuda_status()
    if reason is None:
        pytest.skip("there is a CUDA device here")
    assert re.search("driver|device", reason), reason


def test_build_info_tells_the_facts(compiled) -> None:
    info = bert_fast.build_info()
    assert info["extension"] is True
    assert info["reason"] is None
    assert info["version"] == importlib.metadata.version("bert-fast"), "the extension is of another version: rebuild"
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert f"cpython-{sys.version_info.major}{sys.version_info.minor}" in info["made_for"]
    assert isinstance(info["notes"], list)
    if info["cuda"]:
        assert re.fullmatch(r"\d+\.\d+", info["nvcc"])
        assert all(re.fullmatch(r"\d+[af]?", arch) for arch in info["archs"])
    else:
        assert (info["nvcc"], info["archs"]) == (None, [])


def test_the_interface_number_is_that_of_the_sources() -> None:
    source = (ROOT / "csrc" / "module.cpp").read_text()
    assert int(re.search(r"kInterface = (\d+);", source)[1]) == extension.INTERFACE


def python(code: str, cwd: Path = Path("/"), **environment: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter, with warnings shown."""
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_the_environment_turns_it_off_without_a_warning() -> None:
    code = (
        "from bert_fast import build_info, extension\n"
        "assert extension.module() is None\n"
        "print(extension.unavailable_reason(), build_info()['extension'], build_info()['version'])\n"
        "extension.required()"
    )
    done = python(code, BERT_FAST_EXTENSION="0")
    version = importlib.metadata.version("bert-fast")
    assert done.stdout == f"it is turned off by BERT_FAST_EXTENSION=0 False {version}\n", done.stderr
    assert "Warning" not in done.stderr
    assert "RuntimeError: bert_fast needs its C++ extension here: it is turned off" in done.stderr


def test_import_makes_no_cuda_call_and_loads_no_extension() -> None:
    done = python("import sys, bert_fast; print('bert_fast._C' in sys.modules, 'torch' in sys.modules)")
    assert done.stdout == "False False\n", done.stderr


def copy_with(folder: Path, binary: bytes | None, notes: str | None = None) -> Path:
    """A stand-in package of the real extension.py with another _C beside it."""
    package = folder / "bert_fast"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "extension.py").write_text(Path(extension.__file__).read_text())
    if binary is not None:
        (package / "_C.abi3.so").write_bytes(binary)
    if notes is not None:
        (package / "_build.json").write_text(notes)
    return folder


# Without the finder of an editable install, which would supply the real extension to the stand-in.
ALONE = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]\n"
LOAD = ALONE + "from bert_fast import extension as e\nprint(e.module(), e.module(), e.build_info()['extension'])"


@pytest.mark.parametrize("binary", [b"", b"\x7fELF broken", b"not a library"], ids=["empty", "cut", "text"])
def test_a_broken_library_gives_one_warning_and_the_python_path(tmp_path: Path, binary: bytes) -> None:
    done = python(LOAD, cwd=copy_with(tmp_path, binary))
    assert done.stdout == "None None False\n", done.stderr
    assert done.stderr.count("RuntimeWarning: bert_fast runs without its C++ extension: ") == 1
    assert "bert_fast._C does not load (ImportError: " in done.stderr


def test_what_was_not_built_is_told_with_the_reason_of_the_build(tmp_path: Path) -> None:
    done = python(LOAD, cwd=copy_with(tmp_path, None, '{"notes": ["no C++ compiler found: `apt install g++`"]}'))
    assert done.stdout == "None None False\n", done.stderr
    assert done.stderr.count("no C++ compiler found: `apt install g++`. PyTorch stands in for it") == 1


def test_an_extension_of_other_sources_is_not_called(tmp_path: Path) -> None:
    package = copy_with(tmp_path, None) / "bert_fast"
    (package / "_C.py").write_text("INTERFACE = -5\n")
    done = python(LOAD, cwd=tmp_path)
    assert done.stdout == "None None False\n", done.stderr
    assert f"built from other sources (interface -5, not {extension.INTERFACE}): install again" in done.stderr


def test_the_bare_source_tree_says_that_it_is_not_installed(tmp_path: Path) -> None:
    package = copy_with(tmp_path, None) / "bert_fast"
    (package / "__init__.py").write_text("from bert_fast import extension\nextension.require_installed()\n")
    done = python(ALONE + "import bert_fast", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: bert_fast is not installed: {package} is its source. Run `pip install -e .`")


def test_another_tree_than_the_installed_one_is_not_mixed_with_it(tmp_path: Path) -> None:
    package = copy_with(tmp_path, None) / "bert_fast"
    (package / "__init__.py").write_text("from bert_fast import extension\nextension.require_installed()\n")
    elsewhere = tmp_path / "elsewhere" / "kernels"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").touch()
    finder = (
        "from importlib.machinery import PathFinder\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(elsewhere.parent)!r}])\n"
        "sys.meta_path.append(Finder)\n"
    )
    done = python(ALONE + finder + "import bert_fast", cwd=tmp_path)
    assert done.returncode == 1
    assert f"ImportError: bert_fast is imported from {package}, but another one is installed" in done.stderr
