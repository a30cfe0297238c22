"""What nvcc made of the CUDA sources, read from the extension that is installed: checked without a GPU."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bert_fast import build_info, extension

UNPAD = ("unpad_in_one_block", "count_tiles", "scan_tiles", "pack_tiles", "find_longest")
EMBEDDING = ("embedding_layer_norm", "embedding_backward", "column_sums", "sum_tiles", "join_tiles")
ROWS = ("gather_rows", "scatter_rows", "pool_sequences", "spread_gradient")
OPTIMIZER = ("square_gradients", "finish_norm", "advance_tensors", "apply_updates")
LOSS = ("cross_entropy_rows", "count_labels", "sum_losses")
KERNELS = (*UNPAD, *EMBEDDING, *ROWS, *OPTIMIZER, *LOSS)
# Wide rows of the embedding's backward: a block of 256 threads has a multiprocessor to itself. 1,024 threads of the
# loss share one, as two rows or as one.
MOST_REGISTERS = {"embedding_backward": 224, "cross_entropy_rows": 64}


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    """The command: from the CUDA toolkit, or from Triton, which brings its own."""
    if not build_info()["cuda"]:
        pytest.skip("the extension has no CUDA code here: " + ("; ".join(build_info()["notes"]) or str(build_info())))
    triton = importlib.util.find_spec("triton")
    folders = [str(Path(triton.origin).parent / "backends/nvidia/bin")] if triton and triton.origin else []
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join([*folders, "/usr/local/cuda/bin"]))
    if found is None:
        pytest.skip("cuobjdump is neither in the CUDA toolkit nor in Triton")
    return found


def read(cuobjdump: str, *options: str) -> str:
    command = [cuobjdump, *options, str(extension.module().__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_kernel_spills_registers_on_any_architecture(cuobjdump: str) -> None:
    seen = set()
    # One listing for each architecture and source: `arch = sm_90`, then two lines for every kernel.
    for listing in read(cuobjdump, "-res-usage").split("Fatbin elf code:")[1:]:
        arch = re.search(r"arch = sm_(\w+)", listing)[1]
        for kernel, registers, stack, local in re.findall(
            r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing
        ):
            assert (int(stack), int(local)) == (0, 0), f"sm_{arch} {kernel}: spills"
            most = next((n for part, n in MOST_REGISTERS.items() if part in kernel), 128)
            assert int(registers) <= most, f"sm_{arch} {kernel}: {registers} registers"
            seen |= {(arch, part) for part in KERNELS if part in kernel}
    assert seen == {(arch, part) for arch in build_info()["archs"] for part in KERNELS}


@pytest.fixture(scope="module")
def machine_code(cuobjdump: str) -> dict[str, str]:
    """Kernel -> its instructions, on the newest architecture of the build."""
    functions = read(cuobjdump, "-sass", "-arch", f"sm_{build_info()['archs'][-1]}").split("Function : ")[1:]
    return {code.split()[0]: code for code in functions}


def count(code: str, instruction: str) -> int:
    return len(re.findall(rf"\b{instruction}\b", code))


def test_rows_are_read_and_written_16_bytes_at_a_time(machine_code: dict[str, str]) -> None:
    vectored = {n: code for n, code in machine_code.items() if re.search(r"9CachedRowI\w+Li[48]ELi[48]E", n)}
    assert len(vectored) == 6, "three dtypes, with a warp or a block for each row"
    for name, code in vectored.items():
        steps = 8 if "CachedRowIf" in name else 4
        wide = count(code, r"LDG\.E\.128[.\w]*")
        assert wide == 5 * steps, f"{name}: word, position, type, gamma and beta"
        assert count(code, r"STG\.E\.128") == steps, name
        narrow = count(code, r"LDG[.\w]*") - wide
        assert narrow == 4, f"{name}: the three ids and the seed, and nothing else by less than 16 bytes"


def test_gradients_of_rows_are_read_and_written_16_bytes_at_a_time(machine_code: dict[str, str]) -> None:
    rows = {n: code for n, code in machine_code.items() if re.search(r"CachedGradientRowI\w+Li[48]ELi[124]E", n)}
    assert len(rows) == 6, "three dtypes, narrow and wide"
    for name, code in rows.items():
        steps = int(re.search(r"Li[48]ELi([124])E", name)[1])
        assert count(code, r"LDG\.E\.128[.\w]*") == 6 * steps, f"{name}: word, position, type, dy, and gamma twice"
        assert count(code, r"STG\.E\.128[.\w]*") == steps, name
    sums = {n: code for n, code in machine_code.items() if re.search(r"sum_tilesI\w+Li[48]E", n)}
    assert len(sums) == 3
    for name, code in sums.items():
        assert count(code, r"LDG\.E\.128[.\w]*") == 4, f"{name}: four rows at once"
        assert count(code, r"(LDG|STG)\.E(\.[US](8|16))?(?![.\w])") == 0, f"{name}: part of a row by the element"


def test_padding_and_pooling_move_rows_16_bytes_at_a_time(machine_code: dict[str, str]) -> None:
    for part, loads in (("gather_rowsILi16E", 4), ("scatter_rowsILi16E", 4)):
        code = next(code for name, code in machine_code.items() if part in name)
        assert count(code, r"LDG\.E\.128[.\w]*") == loads, f"{part}: four rows at once"
        assert count(code, r"STG\.E\.128[.\w]*") == 4, part
    for part in ("pool_sequences", "spread_gradient"):
        wide = {n: code for n, code in machine_code.items() if re.search(part + r"I\w+Li[48]E", n)}
        assert len(wide) == 3, part
        for name, code in wide.items():
            moves = r"LDG\.E\.128[.\w]*" if part == "pool_sequences" else r"STG\.E\.128[.\w]*"
            assert count(code, moves) > 0, name
            assert count(code, r"(LDG|STG)\.E\.[US](8|16)[.\w]*") == 0, f"{name}: part of a row by the element"


def test_no_kernel_reads_a_row_by_the_byte(machine_code: dict[str, str]) -> None:
    for name, code in machine_code.items():
        if "embedding_layer_norm" in name:
            assert count(code, r"LDG\.E\.[US]8[.\w]*") == 0, name


def test_masks_are_read_16_bytes_at_a_time(machine_code: dict[str, str]) -> None:
    for part in ("unpad_in_one_block", "count_tiles", "pack_tiles"):
        code = next(code for name, code in machine_code.items() if part in name)
        assert count(code, r"LDG\.E\.128[.\w]*") == 1, part


# Mangled types of parameter and first moment, and their sizes; S2_ is BFloat16 once more.
TYPES = {
    "ff": (4, 4),
    "fNS_8BFloat16E": (4, 2),
    "NS_4HalfEf": (2, 4),
    "NS_4HalfENS_8BFloat16E": (2, 2),
    "NS_8BFloat16Ef": (2, 4),
    "NS_8BFloat16ES2_": (2, 2),
}


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("kernel", ["advance_tensorsILb0E", "advance_tensorsILb1E", "apply_updatesI"])
def test_an_optimizer_moves_four_elements_at_a_time(machine_code: dict[str, str], kernel: str, types: str) -> None:
    """Master, exp_avg_sq and what else is float32 by 16 bytes; parameter, gradient and exp_avg by 8 if of 16 bits."""
    param, moment = TYPES[types]
    advances, applies = "advance" in kernel, "Lb0" not in kernel
    reads = [4, 4, param, moment] + advances * [param]
    writes = advances * [4, moment] + applies * [4, param]
    code = next(code for name, code in machine_code.items() if f"{kernel}{types}E" in name)
    for instruction, sizes in ((r"LDG\.E", reads), (r"STG\.E", writes)):
        for bits, size in (("128", 4), ("64", 2)):
            assert count(code, rf"{instruction}\.{bits}[.\w]*") == sizes.count(size), f"{instruction} {bits}"


def test_no_optimizer_kernel_adds_floats_atomically(machine_code: dict[str, str]) -> None:
    for name, code in machine_code.items():
        if any(part in name for part in OPTIMIZER):
            assert count(code, r"(RED|ATOM|ATOMG|ATOMS)[.\w]*") == 0, name


def test_logits_are_read_once_and_the_gradient_written_once_16_bytes_at_a_time(machine_code: dict[str, str]) -> None:
    """In the kernels that keep a row: as many wide loads as vectors of a lane, and all others are single elements."""
    held = {name: code for name, code in machine_code.items() if re.search(r"BatchI\w+Li[48]ELi\dEEELi\d+ELb1E", name)}
    assert len(held) == 12, "three dtypes, four widths"
    for name, code in held.items():
        steps = int(re.search(r"BatchI\w+Li[48]ELi(\d)EEE", name)[1])
        assert count(code, r"LDG\.E\.128[.\w]*") == steps, name
        # The other wide stores are of zeros, for ignored rows.
        assert count(code, r"STG\.E\.128") >= steps, name
        assert count(code, r"LDG\.E\.CONSTANT[.\w]*|LDG\.E\.128\.CONSTANT") == 0, f"{name}: stale where in place"
