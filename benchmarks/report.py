"""Results to `results.json` and to a table for people, row by row dated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.measure import Row

_INTRODUCTION: Final = """\
# Benchmarks

Written by `make bench`; the numbers behind every row are in `benchmarks/results.json`. A figure is
the median over rounds, with the lowest and the highest. Where there is a ceiling, it was taken in
the same run, in turn with what is measured, and the ratio is taken round by round: the machines
that these run on are shared, and an absolute time says little.

"""


def merge(path: Path, machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Replace the groups that were measured now; rows of another machine go."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        old = orjson.loads(path.read_bytes())
        if old.get("machine") == machine:
            now = {row["group"] for row in rows}
            kept = [row for row in old["rows"] if row["group"] not in now]
    return {"machine": machine, "rows": [*kept, *rows]}


def dated(rows: Iterable[Row], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as JSON types, each with when and on what it was measured."""
    return [{**asdict(row), **facts} for row in rows]


def in_order(results: dict[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Put rows in the order of the groups."""
    rows = sorted(results["rows"], key=lambda row: groups.index(row["group"]))
    return {**results, "rows": rows}


def write(results: dict[str, Any], json_path: Path, table_path: Path) -> None:
    """Write both files."""
    for path in (json_path, table_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    table_path.write_text(document(results), encoding="utf-8")


def document(results: dict[str, Any]) -> str:
    """Return the whole page."""
    return (
        _INTRODUCTION
        + _machine(results["machine"])
        + _table(results["rows"])
        + _conditions(results["rows"])
    )


def _machine(machine: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"{machine['cpu']}; {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['kernel']}, Python {machine['python']}, {libraries}.\n\n"
    )


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| what | measured | ceiling in the same run | ratio | target | met | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["ratio"]
        cells = (
            row["what"],
            row["measured"],
            row["ceiling"] or "-",
            "-"
            if ratio is None
            else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            row["target"] or "-",
            {True: "yes", False: "**no**", None: "-"}[row["met"]],
            row["date"][:10],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    """Say what was run and how quiet the machine was, once for the rows of one run."""
    lines = ["## Conditions", ""]
    seen: dict[str, list[str]] = {}
    for row in rows:
        model, quiet = row["workload"], row["quiet"]
        text = (
            f"{model['members']} times {model['features']} features - {model['hidden']} - "
            f"{model['latent']} - "
            f"{model['hidden']} - {model['features']}, then {model['latent']} - "
            f"{model['stage2_latent']} - {model['latent']}: {model['multiply_adds']:,} "
            f"multiply-adds a row; threshold at quantile {model['quantile']}; tape of "
            f"{model['tape_ticks']:,} ticks of {model['instruments']:,} synthetic instruments, "
            f"{model['normaliser_rows'] - 1:,} of them normalised by moments of their own. "
            f"{quiet['stolen_share']:.1%} of the CPU time was stolen by the host."
        )
        groups = seen.setdefault(f"{row['date']}: {text}", [])
        if row["group"] not in groups:
            groups.append(row["group"])
    lines += [f"- {', '.join(groups)}, {text}" for text, groups in seen.items()]
    return "\n".join(lines) + "\n"
