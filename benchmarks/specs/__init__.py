"""One spec per op, shared by gpu_check, pytest and ``bert-fast bench``: inputs, bytes, operations and providers."""

from __future__ import annotations

from benchmarks.context import Context
from benchmarks.specs import attention, memory, optimizer, rows
from benchmarks.specs.spec import Spec

OPS = {**rows.SPECS, **memory.SPECS, **optimizer.SPECS}


def spec_named(name: str, context: Context) -> Spec:
    """The spec of an item of the plan, such as "attention S=128 p=0.1"; H=1024 widens the rows, "bias" adds to scores.

    Raises:
        ValueError: no such spec.
    """
    op, *rest = name.split() or [""]
    facts = dict(part.split("=") for part in rest if "=" in part)
    p = float(facts.get("p", 0))
    if "H" in facts and not context.small:
        context = context.with_hidden(int(facts["H"]))
    if op == "attention":
        return attention.spec(context, int(facts["S"]) if "S" in facts else None, p, bias="bias" in rest)
    if op == "pool":
        return memory.pooling(context, rest[0])
    if op not in OPS:
        raise ValueError(f"an op's name must begin with one of {', '.join(('attention', 'pool', *OPS))}, not {name!r}")
    return OPS[op](context, p)
