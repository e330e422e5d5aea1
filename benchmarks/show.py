"""The table on the terminal, the same table for the documentation, and the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from benchmarks.compare import PEERS, Row
from benchmarks.results import Result

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt

COLUMNS = (
    "case", "cells", "Engramscope", "cells/s", "peak memory", "TransformerLens", "ratio", "nnsight", "ratio",
    "floor", "share", "largest difference", "targets",
)  # fmt: skip
#: part of the processors that others may take before the seconds are called in question
BUSY = 0.05
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def cells_of_row(row: Row) -> list[str]:
    """The texts of one row, one for each of `COLUMNS`."""
    ours = row.results.get("engramscope")
    if ours is None or not ours.ok:
        return [row.case.title, *[""] * (len(COLUMNS) - 2), "ERROR: " + "; ".join(row.errors)]
    floor = ours.details["floor"]
    texts = [
        row.case.title,
        f"{len(row.case.cells):,}",
        _seconds(ours.seconds),
        f"{len(row.case.cells) / ours.seconds:,.0f}",
        _memory(ours),
    ]
    for tool in PEERS:
        result = row.results.get(tool)
        texts += ["", ""] if result is None else [_peer(result), _ratio(row, tool)]
    worst = max((agreement.max_abs_diff for agreement in row.agreements.values()), default=math.nan)
    difference = "" if math.isnan(worst) else f"{worst:.0e}"
    return [
        *texts,
        _seconds(floor["seconds"]),
        f"{floor['share']:.2f} ({floor['share_whole']:.2f})",
        difference,
        _verdict(row),
    ]


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    table = Table(*COLUMNS, show_lines=True)
    for row in rows:
        style = "red" if row.errors else None if all(target.met for target in row.targets) else "yellow"
        table.add_row(*cells_of_row(row), style=style)
    return table


def markdown(rows: Sequence[Row], facts: dict[str, Any], growth: Result | None) -> str:
    """The table, and what it was measured on, for the documentation."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        f"Measured on {facts['when'][:10]}: {facts['processor']}, {facts['threads']} threads, {facts['device']}, "
        f"Python {facts['python']}, {versions}, commit {facts['commit'] or 'unknown'}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells_of_row(row)) + " |" for row in rows),
        "",
        *(f"* {note}" for note in notes(rows)),
    ]
    for more in (growth_lines(growth), profile_lines(rows)):
        lines += ["", *more] if more else []
    return "\n".join(lines) + "\n"


def write_into(page: Path, text: str) -> None:
    """Put the generated text between the two marks of a page.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table: it needs the lines {BEGIN} and {END}.")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def notes(rows: Sequence[Row]) -> list[str]:
    """What stands below the table."""
    lines = [
        "Ratios: how many times longer the library takes than Engramscope; in brackets, if it were asked for the "
        "logits of the last position only, which none of its sweep helpers does.",
    ]
    results = [result for row in rows for result in row.results.values()]
    others = max((result.details.get("other_work") or 0.0 for result in results), default=0.0)
    if others > BUSY:
        lines.append(f"WARNING: other programs took up to {others:.0%} of the processors; these seconds mean little.")
    rates = [
        row.results["engramscope"].details["rate_flops"]
        for row in rows
        if "engramscope" in row.results and row.results["engramscope"].ok
    ]
    if rates:
        low, high = min(rates) / 1e9, max(rates) / 1e9
        lines += [
            f"Floor: at {low:,.0f} to {high:,.0f} GFLOP/s, measured beside each case in the same process.",
            "Share: floor by measured time; in brackets, the same for what the runs take in whole blocks.",
        ]
        ways = {(r.details["kind"], r.details["way"]) for row in rows if (r := row.results["engramscope"]).ok}
        lines.append("Executor: " + "; ".join(f"{kind}, {way}" for kind, way in sorted(ways)) + ".")
    return lines


def growth_lines(growth: Result | None) -> list[str]:
    """The straight lines of the growth of the cost, and how far measurements are from them."""
    if growth is None:
        return []
    return ["Growth of the cost, everything else held fixed:", ""] + [
        f"* {line['variable']} {line['values'][0]} to {line['values'][-1]}: {line['intercept']:.3g} s + "
        f"{line['slope']:.3g} s for each; largest distance from the line {line['residual']:.1%}"
        for line in growth.details["lines"]
    ]


def profile_lines(rows: Sequence[Row]) -> list[str]:
    """Where Engramscope's time goes, case by case."""
    lines = []
    for row in rows:
        found = row.results["engramscope"].details.get("profile")
        if found:
            parts = ", ".join(
                f"{event['operation']} {event['share']:.0%} ({event['calls']:,} calls)" for event in found
            )
            lines.append(f"* time of {row.case.name}: {parts}")
    return ["Where the time goes, under a profiler that itself takes some:", "", *lines] if lines else []


def draw_growth(growth: Result, path: Path) -> None:
    """Seconds against each variable: measured, the line that fits best, and the floor."""
    lines = growth.details["lines"]
    figure, axes = plt.subplots(1, len(lines), figsize=(3.4 * len(lines), 3.2), layout="constrained")
    for axis, line in zip(axes, lines, strict=True):
        ends = [0, max(line["values"])]
        axis.plot(line["values"], line["seconds"], "o", color="#1f4e79", label="measured")
        axis.plot(ends, [line["intercept"] + line["slope"] * end for end in ends], color="#1f4e79", label="best line")
        axis.plot(line["values"], line["floor_seconds"], "--", color="#8a8a8a", label="floor")
        axis.set(xlabel=line["variable"], title=f"off the line by {line['residual']:.1%} at most", ylim=(0, None))
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_times(rows: Sequence[Row], path: Path) -> None:
    """Seconds of every tool on every case, and the floor, on a logarithmic axis."""
    shown = [row for row in rows if row.results.get("engramscope") is not None and row.results["engramscope"].ok]
    if not shown:
        return
    figure, axis = plt.subplots(figsize=(8, 0.9 * len(shown) + 1.2), layout="constrained")
    colours = {"engramscope": "#1f4e79", "transformer_lens": "#c55a11", "nnsight": "#7f7f7f"}
    for place, (tool, colour) in enumerate(colours.items()):
        bars = [(at, row.results[tool].seconds) for at, row in enumerate(shown) if tool in row.results]
        bars = [(at, seconds) for at, seconds in bars if math.isfinite(seconds)]
        at = [position + 0.26 * (place - 1) for position, _ in bars]
        axis.barh(at, [seconds for _, seconds in bars], 0.24, color=colour, label=tool)
    for at, row in enumerate(shown):
        floor = row.results["engramscope"].details["floor"]["seconds"]
        axis.plot([floor, floor], [at - 0.4, at - 0.12], color="black", label="floor" if at == 0 else None)
    axis.set_yticks(range(len(shown)), [row.case.name for row in shown])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="seconds")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def _memory(result: Result) -> str:
    used = result.host_bytes if result.cuda_bytes is None else result.cuda_bytes
    return f"{used / 2**20:,.0f} MiB"


def _peer(result: Result) -> str:
    if not result.ok:
        return result.status if result.status == "not installed" else "ERROR"
    part = "" if result.cells_run == result.cells else f" (from {result.cells_run} cells)"
    return f"{_seconds(result.seconds)}{part}, {_memory(result)}"


def _ratio(row: Row, tool: str) -> str:
    if tool not in row.ratios:
        return ""
    return f"{row.ratios[tool]:.1f} × ({row.ratios_only_last[tool]:.1f} ×)"


def _verdict(row: Row) -> str:
    if row.errors:
        return "ERROR: " + "; ".join(row.errors)
    shown = [
        f"{'met' if target.met else 'MISSED'}: {target.reached:.3g} {target.what} (to reach {target.wanted:g})"
        for target in row.targets
    ]
    return "; ".join(shown)
