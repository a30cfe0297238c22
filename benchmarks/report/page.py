"""One HTML page with everything in it: tables, plots, environment. No scripts, nothing fetched."""

from __future__ import annotations

import base64
import html
import json
from typing import Any

from benchmarks.report.canvas import machine
from benchmarks.report.tables import Table, tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem }
.facts { color: #57606a; margin: 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 3px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #eaeef2 }
th { border-bottom: 2px solid #d0d7de; font-weight: 600 } .name { text-align: left }
tr.ours td { background: #fdf2f3; font-weight: 600 } tr.wrong td { color: #b42318 }
.note { color: #57606a; font-size: 12.5px; margin: .3rem 0 } img { max-width: 100%; height: auto; margin: .5rem 0 }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 12px }
"""
_CAPTIONS = {
    "peers": "Encoders side by side", "padding": "What padding costs", "latency": "Latency of one text",
    "scaling": "How cost grows", "scenario": "Server with Poisson arrivals", "roofline": "Roofline",
    "share_of_roof": "Share of the roof",
}  # fmt: skip


def page(facts: dict[str, Any], plots: dict[str, bytes]) -> str:
    """The page of a run."""
    env, settings = facts["environment"], facts["settings"]
    encoders = set(facts["sections"]) - {"kernels"}
    what = f"{settings['model']} on {machine(facts)}" if encoders else machine(facts)
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    tiny = "<p><strong>A rehearsal with tiny sizes: no measurement.</strong></p>" if settings.get("tiny") else ""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>bert_fast benchmarks: {_safe(machine(facts))}</title><style>{_STYLE}</style>",
        f"<h1>bert_fast benchmarks</h1><p class='facts'>{_safe(what)}; "
        f"{_safe(facts['started'])}; revision {_safe(str(facts['revision']))}</p>",
        f"<p class='facts'>{_safe(versions)}</p>{tiny}",
    ]
    for name in (name for name in _CAPTIONS if name in plots):
        data = base64.b64encode(plots[name]).decode()
        caption = _CAPTIONS[name]
        parts.append(f"<h2>{caption}</h2><img alt='{caption}' src='data:image/png;base64,{data}'>")
    parts += [_table(table) for table in tables(facts)]
    whole = json.dumps({"environment": env, "settings": settings}, indent=1, default=str)
    parts.append(f"<h2>Environment and settings</h2><pre>{_safe(whole)}</pre></html>")
    return "\n".join(parts) + "\n"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _cells(cells: tuple[str, ...], named: int, tag: str) -> str:
    return "".join(
        f"<{tag} class='name'>{_safe(c)}</{tag}>" if i < named else f"<{tag}>{_safe(c)}</{tag}>"
        for i, c in enumerate(cells)
    )


def _table(table: Table) -> str:
    lines = []
    for row in table.rows:
        kind = "ours" if "bert_fast" in row[: table.named] else "wrong" if any("WRONG" in c for c in row) else ""
        lines.append(f"<tr class='{kind}'>{_cells(row, table.named, 'td')}</tr>")
    note = f"<p class='note'>{_safe(table.note)}</p>" if table.note else ""
    return (
        f"<h2>{_safe(table.title)}</h2><div class='wide'><table><thead><tr>{_cells(table.head, table.named, 'th')}"
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{note}"
    )
