"""The build: every way it can go wrong on a user's machine leaves a working library, or one clear error.

Each test builds a copy of the sources, for one architecture, so that nothing is ever left in the source tree.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL_NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on PATH")
needs_nvcc = pytest.mark.skipif(not (REAL_NVCC and HAS_COMPILER), reason="no nvcc, or no C++ compiler, on PATH")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, whose build/objects fills up as tests compile: the tests' copies start from it."""
    tree = tmp_path_factory.mktemp("pristine") / "tree"
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build.json", "*.egg-info", ".*cache", ".hypothesis")
    for name in ("bert_fast", "csrc", "kernels", ".ci"):
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    (tree / "tests").mkdir()
    shutil.copy(__file__, tree / "tests")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    # Only the toolkits that a test offers are found, as on a machine that has no other.
    setup = tree / "setup.py"
    setup.write_text(setup.read_text().replace('"/usr/local/cuda/bin"', '"/nonexistent"'))
    return tree


@pytest.fixture
def tree(pristine: Path, tmp_path: Path):
    copy = tmp_path / "a tree with spaces"
    shutil.copytree(pristine, copy)
    yield copy
    for built in (copy / "build" / "objects").glob("*.o"):  # share what was compiled with the tests after this one
        (pristine / "build" / "objects").mkdir(parents=True, exist_ok=True)
        shutil.copy(built, pristine / "build" / "objects")


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """PATH of a build: the compiler and what a shell script needs, but no nvcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("c++", "g++", "gcc", "cc", "clang++", "as", "ld", "cat", "sh", "bash", "sleep", "env", "dirname"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return folder


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def environment(bin_folder: Path, **changes: str) -> dict[str, str]:
    hidden = re.compile("CUDA_HOME|CUDA_PATH|CXX.*|CC|MAX_JOBS|BERT_FAST.*|PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not hidden.fullmatch(name)}
    quick = {"BERT_FAST_CUDA_ARCHS": "90", "CXXFLAGS": "-O0"}
    return kept | quick | {"PATH": str(bin_folder), "PIP_NO_INDEX": "1"} | changes


def build(tree: Path, env: dict[str, str]) -> tuple[subprocess.CompletedProcess, list[str], list[str]]:
    """Run the build alone, as pip's backend does: its output, the libraries it made and the notes it left."""
    out = tree / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(out)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    record = out / "bert_fast" / "_build.json"
    notes = json.loads(record.read_text())["notes"] if record.exists() else []
    return done, [path.name for path in out.glob("bert_fast/_C*.so")], notes


def build_info(tree: Path) -> dict:
    """What the extension that was just built says of itself."""
    code = "import json, _C; print(json.dumps(_C.build_info()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree / "out" / "bert_fast", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def pip(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", *arguments, "--no-build-isolation", "--no-deps"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


FAKE_NVCC = """
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.0" ;;
  *--list-gpu-arch*) echo compute_80; echo compute_90 ;;
  *) {compile} ;;
esac
"""


def fake_toolkit(folder: Path, compile: str, release: str = "13.0") -> str:
    script(folder / "bin" / "nvcc", FAKE_NVCC.format(release=release, compile=compile))
    return str(folder)


@needs_nvcc
def test_cuda_builds_in_a_path_with_spaces(tree: Path, bin_folder: Path) -> None:
    script(bin_folder / "nvcc", f'exec "{REAL_NVCC}" "$@"\n')
    done, libraries, notes = build(tree, environment(bin_folder, BERT_FAST_CUDA="1"))
    assert (done.returncode, len(libraries), notes) == (0, 1, []), done.stderr
    info = build_info(tree)
    assert (info["cuda"], info["archs"]) == (True, ["90"])


def test_a_rebuild_compiles_only_what_changed(tree: Path, bin_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    compile = f'for last; do :; done; echo "$@" >> "{log}"; : > "$last"'
    home = fake_toolkit(tmp_path / "cuda", compile)
    compiler = script(tmp_path / "c++", f'case "$*" in *--version*) ;; *) {compile} ;; esac\n')
    env = environment(bin_folder, BERT_FAST_CUDA="1", CUDA_HOME=home, CXX=str(compiler))

    def compiled() -> list[str]:
        log.write_text("")
        done, libraries, notes = build(tree, env)
        assert (done.returncode, len(libraries), notes) == (0, 1, []), done.stderr
        return sorted(re.findall(r"-c csrc/(\S+)", log.read_text()))

    sources = [*tree.glob("csrc/cuda/*.cu"), *tree.glob("csrc/host/*.cpp"), tree / "csrc" / "module.cpp"]
    every = sorted(source.relative_to(tree / "csrc").as_posix() for source in sources)
    assert compiled() == every
    assert compiled() == [], "nothing changed"
    for name in ("cuda/runtime.cu", "host/packing.cpp"):
        touched = tree / "csrc" / name
        touched.write_text(touched.read_text() + "\n// touched\n")
        assert compiled() == [name]
    os.utime(tree / "csrc" / "cuda" / "unpad.cu")
    assert compiled() == [], "a new date is not a change"
    env["BERT_FAST_CUDA_ARCHS"] = "80"
    assert compiled() == [name for name in every if name.endswith(".cu") or name == "module.cpp"]
    header = tree / "csrc" / "cuda" / "launch.h"
    header.write_text(header.read_text() + "\n// touched\n")
    assert compiled() == every, "any source may include any header"


@needs_compiler
def test_a_failing_nvcc_leaves_the_host_extension_and_one_warning(
    tree: Path, bin_folder: Path, tmp_path: Path
) -> None:
    home = fake_toolkit(tmp_path / "cuda", compile="echo 'fatal: unsupported GNU version' >&2; exit 1")
    done, libraries, notes = build(tree, environment(bin_folder, CUDA_HOME=home))
    assert (done.returncode, len(libraries), len(notes)) == (0, 1, 1), done.stderr
    assert done.stderr.count("bert_fast: WARNING: ") == 1
    assert "fatal: unsupported GNU version" in notes[0]
    assert notes[0] in done.stderr
    info = build_info(tree)
    assert (info["cuda"], info["nvcc"], info["archs"]) == (False, None, [])


@needs_compiler
@pytest.mark.parametrize(
    ("toolkit", "cause"),
    [
        (None, "nvcc was not found: set CUDA_HOME=/path/to/cuda or `apt install nvidia-cuda-toolkit`"),
        ({"compile": "exit 1", "release": "10.2"}, "(release 10.2) is too old: set CUDA_HOME to CUDA 11.8 or newer"),
        ({"compile": "echo 'fatal: boom'; exit 1"}, "fatal: boom"),
    ],
    ids=["absent", "too old", "failing"],
)
def test_cuda_that_was_asked_for_and_cannot_be_built_is_an_error(
    tree: Path, bin_folder: Path, tmp_path: Path, toolkit: dict[str, str] | None, cause: str
) -> None:
    changes = {"CUDA_HOME": fake_toolkit(tmp_path / "cuda", **toolkit)} if toolkit else {}
    done, libraries, _ = build(tree, environment(bin_folder, BERT_FAST_CUDA="1", **changes))
    assert (done.returncode, libraries) == (1, []), done.stderr
    assert "bert_fast: BERT_FAST_CUDA=1, but " in done.stderr
    assert cause in done.stderr
    assert "Traceback" not in done.stderr


@needs_compiler
def test_cuda_can_be_left_out(tree: Path, bin_folder: Path, tmp_path: Path) -> None:
    home = fake_toolkit(tmp_path / "cuda", compile="echo 'nvcc was called' >&2; exit 1")
    done, libraries, notes = build(tree, environment(bin_folder, CUDA_HOME=home, BERT_FAST_CUDA="0"))
    assert (done.returncode, len(libraries), notes) == (0, 1, []), done.stderr
    assert "WARNING" not in done.stderr


def test_no_compiler_leaves_a_pure_python_install_and_one_warning(
    tree: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    wheels = tmp_path / "wheels"
    done = pip("wheel", "-v", "-w", str(wheels), str(tree), env=environment(empty))
    text = done.stdout + done.stderr
    assert text.count("bert_fast: WARNING: ") == 1, text
    assert "bert_fast: WARNING: no C++ compiler found: `apt install g++`" in text
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        notes = json.loads(wheel.read("bert_fast/_build.json"))["notes"]
    assert not [name for name in names if "_C" in name]
    assert len(notes) == 1
    assert notes[0].startswith("no C++ compiler found")


def test_a_failing_compiler_leaves_a_pure_python_install_and_one_warning(
    tree: Path, bin_folder: Path, tmp_path: Path
) -> None:
    broken = script(tmp_path / "c++", 'case "$*" in *--version*) ;; *) echo "internal error" >&2; exit 4 ;; esac\n')
    done, libraries, notes = build(tree, environment(bin_folder, CXX=str(broken), BERT_FAST_CUDA="0"))
    assert (done.returncode, libraries, len(notes)) == (0, [], 1), done.stderr
    assert done.stderr.count("bert_fast: WARNING: ") == 1
    assert "internal error" in notes[0]


def test_a_failed_rebuild_in_place_leaves_no_older_library(tree: Path, bin_folder: Path, tmp_path: Path) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    older = tree / "bert_fast" / f"_C{suffix}"
    older.touch()
    broken = script(tmp_path / "c++", "exit 4\n")
    env = environment(bin_folder, CXX=str(broken), BERT_FAST_CUDA="0")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not older.exists()
    assert "failed" in json.loads((tree / "bert_fast" / "_build.json").read_text())["notes"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BERT_FAST_CUDA": "yes"}, "BERT_FAST_CUDA must be 0, 1 or auto, got 'yes'"),
        ({"BERT_FAST_CUDA_ARCHS": "sm_80;35 8.6"}, "BERT_FAST_CUDA_ARCHS names ['35', '86'], but "),
        ({"MAX_JOBS": "0"}, "MAX_JOBS must be a positive number, got '0'"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive number, got 'many'"),
    ],
    ids=str,
)
@needs_compiler
def test_a_bad_setting_is_an_error(
    tree: Path, bin_folder: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    home = fake_toolkit(tmp_path / "cuda", compile="exit 1")
    done, libraries, _ = build(tree, environment(bin_folder, CUDA_HOME=home, **changes))
    assert (done.returncode, libraries) == (1, [])
    assert f"bert_fast: {message}" in done.stderr


@needs_compiler
@pytest.mark.parametrize("jobs", [1, 3])
def test_max_jobs_is_how_many_compilers_run_at_once(tree: Path, bin_folder: Path, tmp_path: Path, jobs: int) -> None:
    log = tmp_path / "log"
    log.touch()
    # Each fake compilation writes one line when it starts and one when it ends; then the link fails.
    compile = f'for last; do :; done; echo start >> "{log}"; sleep 0.5; echo end >> "{log}"; : > "$last"'
    home = fake_toolkit(tmp_path / "cuda", compile=f'case "$*" in *" -c "*) {compile} ;; *) exit 1 ;; esac')
    build(tree, environment(bin_folder, CUDA_HOME=home, MAX_JOBS=str(jobs)))
    running = peak = 0
    for line in log.read_text().split():
        running += 1 if line == "start" else -1
        peak = max(peak, running)
    assert running == 0
    assert peak == jobs, log.read_text()


@needs_compiler
def test_the_sdist_holds_everything_and_installs(tree: Path, bin_folder: Path, tmp_path: Path) -> None:
    (tree / "bert_fast" / "_C.stale.so").touch()
    (tree / "bert_fast" / "_build.json").write_text("{}")
    env = environment(bin_folder, BERT_FAST_CUDA="0")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    archive = next(tmp_path.glob("bert_fast-*.tar.gz"))
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("bert_fast", "csrc", "kernels"):
        sources = [path for path in (tree / folder).rglob("*") if path.suffix in (".py", ".cpp", ".cu", ".h")]
        assert sources
        assert {path.relative_to(tree).as_posix() for path in sources} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"} <= names
    assert {".ci/run", "tests/test_build.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build.json")) or name.startswith("build")]

    site = tmp_path / "site"
    pip("install", "--target", str(site), str(archive), env=env)
    installed = {path.relative_to(site).parts[0] for path in site.iterdir()}
    assert "kernels" not in installed, "only bert_fast.kernels may be importable"
    code = (
        "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import bert_fast, bert_fast.kernels\n"
        "print(bert_fast.build_info()['extension'], bert_fast.__file__, bert_fast.kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    package = site / "bert_fast"
    assert done.stdout == f"True {package / '__init__.py'} {package / 'kernels' / '__init__.py'}\n", done.stderr


@needs_compiler
def test_a_read_only_tree_builds(tree: Path, bin_folder: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not on PATH: no read-only mount can be made")
    namespace = [unshare, "--mount"] if os.geteuid() == 0 else [unshare, "--mount", "--map-root-user"]
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
    if subprocess.run([*namespace, "sh", "-c", mount, str(tree)], capture_output=True).returncode:
        pytest.skip("a read-only mount is not permitted here")
    wheels = tmp_path / "wheels"
    wheel_command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(wheels)]
    shell = f'{mount} && ! touch "$0/x" 2>/dev/null && exec "$@"'
    command = [*namespace, "sh", "-c", shell, str(tree), *wheel_command, str(tree)]
    env = environment(bin_folder, PATH=os.environ["PATH"], BERT_FAST_CUDA="0")
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        assert [name for name in wheel.namelist() if name.startswith("bert_fast/_C")]


def test_the_kernels_are_not_importable_by_their_bare_name(tmp_path: Path) -> None:
    code = (
        "import importlib.util, bert_fast.kernels\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "print(spec and spec.origin, bert_fast.kernels.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    found, _, name = done.stdout.strip().partition(" ")
    assert name == "bert_fast.kernels", done.stderr
    assert not found.startswith(str(ROOT)), "an install must not expose the folder kernels/ as a top-level package"


@pytest.fixture(scope="session")
def oldest_setuptools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """setuptools 65.5, the oldest that pyproject.toml allows, which Pythons before 3.12 carry for ensurepip."""
    import ensurepip

    bundled = list(Path(ensurepip.__file__).parent.glob("_bundled/setuptools-65.5.*.whl"))
    if not bundled:
        pytest.skip("this Python carries no setuptools 65.5")
    folder = tmp_path_factory.mktemp("setuptools")
    with zipfile.ZipFile(bundled[0]) as wheel:
        wheel.extractall(folder)
    return folder


def with_oldest(folder: Path, tree: Path, *command: str) -> subprocess.CompletedProcess:
    """setup.py with that setuptools and no other package: neither wheel nor pybind11."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-S", "setup.py", "-q", *command], cwd=tree, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("which", ["oldest", "installed"])
def test_the_metadata_is_the_same_whatever_the_setuptools(
    tree: Path, which: str, request: pytest.FixtureRequest
) -> None:
    command = ("egg_info", "--egg-base", ".")
    if which == "oldest":
        done = with_oldest(request.getfixturevalue("oldest_setuptools"), tree, *command)
    else:
        done = subprocess.run([sys.executable, "setup.py", "-q", *command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info = tree / "bert_fast.egg-info"
    found = HeaderParser().parsestr((info / "PKG-INFO").read_text())
    written = (tree / "pyproject.toml").read_text()
    assert (found["Name"], found["Version"]) == ("bert-fast", re.search('^version = "(.*)"', written, re.M)[1])
    assert (found["License"], found["License-File"]) == ("Apache-2.0", "LICENSE")
    assert found["Requires-Python"] == ">=3.10"
    extras = re.search(r"^\[project.optional-dependencies\]$(.*?)^\[", written, re.M | re.S)[1]
    assert sorted(found.get_all("Provides-Extra")) == sorted(re.findall("^([a-z]+) = ", extras, re.M))
    needed = (info / "requires.txt").read_text().split("\n\n[")[0].split()
    assert sorted(needed) == sorted(re.findall('"(.*?)"', re.search("^dependencies = (.*)$", written, re.M)[1]))
    scripts = (info / "entry_points.txt").read_text()
    assert "bert-fast = bert_fast.cli:main" in scripts


@pytest.mark.parametrize("command", ["bdist_wheel", "dist_info", "editable_wheel"])
def test_an_old_setuptools_without_wheel_is_told_what_helps(
    tree: Path, oldest_setuptools: Path, command: str
) -> None:
    done = with_oldest(oldest_setuptools, tree, command)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "bert_fast: setuptools below 70.1 needs wheel: `pip install wheel`, or leave out --no-build-isolation"
    )


def test_setup_stays_short_and_free_of_torch() -> None:
    text = (ROOT / "setup.py").read_text()
    assert len(text.splitlines()) <= 155
    assert "import torch" not in text
    for source in (ROOT / "csrc").rglob("*"):
        if source.is_file():
            assert not re.search(r"#include <(torch|ATen|c10|cub|thrust)/", source.read_text()), source
