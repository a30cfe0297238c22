"""The house keeps its order: imports go downward, nothing lies around, no machine's paths or secrets in the text."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bert_fast"
# Each may import what stands before it. The demo runs the command line's pieces; the command line runs all.
ORDER = (
    "io",
    "notices",
    "rows",
    "extension",
    "reference",
    "reference_optim",
    "contract",
    "backend",
    "ops",
    "packing",
    "config",
    "tokenizer",
    "checkpoints",
    "derived",
    "layers",
    "explained",
    "explanation",
    "models",
    "warming",
    "integrations",
    "training",
    "encode",
    "doctor",
    "demo",
    "command_options",
    "finetune_commands",
    "pretrain_command",
    "cli",
    "__main__",
)
TOP_LEVEL = {
    "csrc",
    "bert_fast",
    "kernels",
    "tests",
    "benchmarks",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CONTRIBUTING.md",
    "LICENSE",
    ".ci",
    ".gitignore",
}


def sources(folder):
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imported(file, package):
    """The dotted names that ``file`` imports, anywhere in it; relative imports resolved within ``package``."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = [package, *file.relative_to(ROOT / package).with_suffix("").parts][: -node.level]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def part_of(dotted):
    """Which part of the package a dotted name belongs to; None if it is not one of ours."""
    parts = dotted.split(".")
    if parts[0] != "bert_fast" or len(parts) == 1:
        return None
    return parts[1]


def part_of_file(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sources(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_only_downward(file):
    own = part_of_file(file)
    if own == "__init__":
        return  # names everything, lazily
    assert own in ORDER, f"{own} has no place in the order of the house"
    for name, line in imported(file, "bert_fast"):
        part = part_of(name)
        if part is None or part in ("__version__", "_C", own):
            continue
        if part == "kernels":
            assert own == "ops", f"{file.name}:{line} imports {name}: only ops are the door to the kernels"
            continue
        assert part in ORDER, f"{file.name}:{line} imports {name}, which has no place in the order of the house"
        assert ORDER.index(part) < ORDER.index(own), f"{file.name}:{line} imports {name}, which stands above {own}"


def test_the_package_itself_imports_only_the_extension():
    top = ast.parse((PACKAGE / "__init__.py").read_text()).body
    eager = [n for n in top if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in eager for alias in node.names if getattr(node, "module", "") == "bert_fast"}
    assert names == {"extension"}


@pytest.mark.parametrize("file", sources(ROOT / "kernels"), ids=lambda p: p.name)
def test_kernels_import_only_triton_torch_and_each_other(file):
    allowed = {"triton", "torch", *sys.stdlib_module_names}
    for name, line in imported(file, "kernels"):
        root = name.split(".")[0]
        own = root == "kernels" or name.startswith("bert_fast.kernels")
        assert own or root in allowed, f"{file.name}:{line} imports {name}"


@pytest.mark.parametrize("file", sources(PACKAGE / "ops"), ids=lambda p: p.name)
def test_ops_import_kernels_only_inside_functions(file):
    """Triton is imported on first use, never with the package."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            assert not any("kernels" in n or n.split(".")[0] == "triton" for n in names), f"line {node.lineno}"


def test_transformers_is_imported_by_integrations_and_the_demo_alone():
    users = {
        part_of_file(file)
        for file in sources(PACKAGE)
        for name, _ in imported(file, "bert_fast")
        if name.split(".")[0] == "transformers"
    }
    assert users <= {"integrations", "demo"}


def tracked():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of files")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_top_level_holds_nothing_else():
    assert {file.relative_to(ROOT).parts[0] for file in tracked()} <= TOP_LEVEL


def test_tests_mirror_what_they_test():
    """A folder of tests is named after what it tests, or is not there."""
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.rglob("test_*.py"))}
    homes = {"kernels", "csrc", "benchmarks"} | {p.name for p in [*PACKAGE.iterdir(), *(ROOT / "benchmarks").glob("*")]}
    assert folders <= homes


# Pieces are joined here, so that this file does not hold what it looks for. /home/me stands for anybody's.
MACHINE_PATHS = re.compile(r"(?<![\w./<$}{-])/" + r"(?!home/me\b)(?:home|root|Users|work|mnt|workspace)" + r"/[\w.-]+")
SECRETS = re.compile(r"\b(?:hf" + r"_[A-Za-z0-9]{30,}|gh" + r"p_[A-Za-z0-9]{30,}|AKIA" + r"[A-Z0-9]{16})\b")


def test_no_text_names_a_machines_paths_or_a_secret():
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in (MACHINE_PATHS, SECRETS):
            found = pattern.search(text)
            assert not found, f"{file.relative_to(ROOT)} holds {found.group()!r}"


def test_no_file_is_large_or_a_binary():
    for file in tracked():
        assert file.stat().st_size < 500_000, f"{file.relative_to(ROOT)} is large"
        assert file.suffix not in {".so", ".o", ".pyc", ".safetensors", ".bin", ".ckpt", ".npy"}, file


@pytest.mark.parametrize("file", sources(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(file):
    """A module begins with its docstring, and public functions and classes have theirs."""
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} (line {node.lineno}) has no docstring"
