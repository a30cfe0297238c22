"""Putting facts and self-tests together: a dictionary for programs, a page for people, and a verdict."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from bert_fast.doctor import facts, selftest

SCHEMA = 1


def examine() -> dict[str, Any]:
    """Everything `bert-fast doctor --json` prints; `problems` lists what should work and does not (empty: all well)."""
    began = time.perf_counter()
    extension = facts.extension_facts()
    results = selftest.run_all(facts.devices())
    problems = [f"{r.op} on {r.device} ({r.dtype}, backend {r.backend}): {r.problem}" for r in results if not r.ok]
    if extension["built"] and not extension["loads"] and not extension["turned_off"]:
        problems.insert(
            0, f"the extension {', '.join(extension['files'])} is built but not in use: {extension['reason']}"
        )
    return {
        "schema": SCHEMA,
        "machine": facts.machine(),
        "versions": facts.versions(),
        "extension": extension,
        "triton": facts.triton_facts(),
        "ops": [{**asdict(r), "ok": r.ok} for r in results],
        "hints": facts.hints(),
        "problems": problems,
        "ok": not problems,
        "seconds": round(time.perf_counter() - began, 2),
    }


def render(found: dict[str, Any]) -> str:
    """The page for people."""
    lines: list[str] = []
    machine, versions = found["machine"], found["versions"]
    _section(lines, "Machine")
    _row(lines, "system", machine["system"])
    _row(lines, "cpu", f"{machine['cpu']}, {machine['cores']} cores, {machine['cpu_capability']}")
    _row(lines, "memory", "unknown" if machine["memory_gib"] is None else f"{machine['memory_gib']} GiB")
    _row(lines, "threads", str(machine["threads"]))
    for gpu in machine["gpus"]:
        _row(lines, f"gpu {gpu['index']}", f"{gpu['name']}, sm {gpu['capability']}, {gpu['memory_gib']} GiB")
    if not machine["gpus"]:
        _row(lines, "gpu", "none that PyTorch can use")
    _section(lines, "Versions")
    for name, version in versions.items():
        _row(lines, name, version or "-")
    _section(lines, "Extension")
    _extension(lines, found["extension"])
    _section(lines, "Triton")
    _row(lines, "installed", versions["triton"] or ("yes" if found["triton"]["installed"] else "no"))
    for device, reasons in found["triton"]["reasons"].items():
        _row(lines, device, "; ".join(reasons) or "can run")
    _section(lines, "Ops (backend, error as a share of what is allowed, time)")
    for result in found["ops"]:
        _op(lines, result)
    lines.append("")
    lines += [f"note: {hint}" for hint in found["hints"]]
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]]
    count = len(found["ops"])
    verdict = "all well" if found["ok"] else f"{len(found['problems'])} problem(s)"
    lines.append(f"{verdict}: {count} self-tests in {found['seconds']} s")
    return "\n".join(lines).lstrip("\n")


def _section(lines: list[str], title: str) -> None:
    lines += ["", title]


def _row(lines: list[str], name: str, value: str) -> None:
    lines.append(f"  {name:<24} {value}")


def _extension(lines: list[str], extension: dict[str, Any]) -> None:
    _row(lines, "built", ", ".join(extension["files"]) or "no")
    _row(lines, "loads", "yes" if extension["loads"] else f"no: {extension['reason']}")
    for name, value in (extension["build"] or {}).items():
        _row(lines, name, " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
    if extension["loads"]:
        cuda = (extension["cuda_reason"] or "usable") if extension["cuda"] else "not built (no nvcc was found)"
        _row(lines, "CUDA functions", cuda)


def _op(lines: list[str], result: dict[str, Any]) -> None:
    mark = "ok" if result["ok"] else "FAILED"
    error = "" if result["error"] is None else f"{result['error']:.2f}"
    where = f"{result['device']} {result['dtype']}"
    timing = f"{result['milliseconds']:.1f} ms"
    lines.append(f"  {result['op']:<24} {where:<18} {result['backend']:<10} {error:>5} {timing:>10}  {mark}")
    for name, reasons in result["reasons"].items():
        lines.append(f"  {'':<24} not {name}: {'; '.join(reasons)}")
