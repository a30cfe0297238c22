"""The checked-in table of launch parameters, as text: one kernel's entry for one GPU replaced, the rest untouched."""

from __future__ import annotations

import ast
from pathlib import Path

from benchmarks.gpu.report import atomic_write

Rule = tuple[dict[str, int], dict[str, int]]
_WIDTH = 120


def read(text: str) -> dict[str, dict[int, list[Rule]]]:
    """The value of ``TABLE`` in the source ``text``, without running it."""
    return ast.literal_eval(_table(text))


def with_entry(text: str, kernel: str, capability: int, rules: list[Rule]) -> str:
    """The source with ``TABLE[kernel][capability]`` set to ``rules``.

    Raises:
        KeyError: the table has no such kernel.
        ValueError: the new source does not say what it should (nothing is written then).
    """
    node = _entry(_table(text), kernel)
    entries = {ast.literal_eval(key): _source(text, value) for key, value in zip(node.keys, node.values, strict=True)}
    entries[capability] = _rules(rules)
    order = [key for key in entries if key == 0] + sorted(key for key in entries if key != 0)
    body = "".join(f"        {key}: {entries[key]},\n" for key in order)
    start, end = _span(text, node)
    changed = text[:start] + "{\n" + body + "    }" + text[end:]
    expected = read(text)
    expected[kernel][capability] = rules
    if read(changed) != expected:
        raise ValueError(f"the table's text cannot be changed as it stands: rewriting {kernel} for {capability} failed")
    return changed


def write(path: Path, changes: dict[str, list[Rule]], capability: int) -> None:
    """Rewrite the table in ``path``: the entries of several kernels for one GPU, all or none of them."""
    text = path.read_text(encoding="utf-8")
    for kernel, rules in changes.items():
        text = with_entry(text, kernel, capability, rules)
    atomic_write(path, text.encode())


def _table(text: str) -> ast.Dict:
    for node in ast.parse(text).body:
        named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TABLE"
        if named and isinstance(node.value, ast.Dict):
            return node.value
    raise ValueError("there is no dictionary TABLE in the source")


def _entry(table: ast.Dict, kernel: str) -> ast.Dict:
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == kernel and isinstance(value, ast.Dict):
            return value
    raise KeyError(f"the table has no kernel {kernel!r}")


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """Offsets of a node in the text; the table is ASCII, so that the parser's bytes are characters."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    if node.end_lineno is None or node.end_col_offset is None:
        raise ValueError("the parser gave no positions")
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset


def _source(text: str, node: ast.expr) -> str:
    start, end = _span(text, node)
    return text[start:end]


def _rules(rules: list[Rule]) -> str:
    """A list of rules as ruff formats it, at the depth it has in the table."""
    lines = []
    for limits, chosen in rules:
        line = f"            ({_dict(limits)}, {_dict(chosen)}),"
        if len(line) > _WIDTH:
            parts = "".join(f"                {_wrapped(values)},\n" for values in (limits, chosen))
            line = f"            (\n{parts}            ),"
        lines.append(line)
    return "[\n" + "\n".join(lines) + "\n        ]"


def _dict(values: dict[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"


def _wrapped(values: dict[str, int]) -> str:
    """A dictionary that stands 16 columns in and has a comma after it; one item a line if it is too long for that."""
    if len(_dict(values)) + 17 <= _WIDTH:
        return _dict(values)
    items = "".join(f'                    "{name}": {value},\n' for name, value in values.items())
    return "{\n" + items + "                }"
