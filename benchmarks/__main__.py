"""`python -m benchmarks`: run cases and tools, compare, print a table, save JSON, Markdown and figures."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import machine, show
from benchmarks.cases import CASES, Case, case_named
from benchmarks.compare import Row, compare
from benchmarks.results import Result, Settings

_ROOT = Path(__file__).parents[1]
#: tool -> the module that must be there
TOOLS = {"engramscope": "engramscope", "transformer_lens": "transformer_lens", "nnsight": "nnsight"}
GROWTH = "growth"


def main() -> int:
    """Run the benchmark; 0 unless a row is an error (1). A missed target is reported, and is no error."""
    arguments = _arguments()
    settings = Settings(
        quick=arguments.quick,
        full=arguments.full,
        budget_s=arguments.budget,
        repeats=arguments.repeats,
        device=arguments.device,
        threads=arguments.threads or os.cpu_count() or 1,
        executor=arguments.executor,
        profile=arguments.profile,
    )
    console = Console(width=None if sys.stdout.isatty() else 200)
    facts = machine.facts(settings)
    console.print(f"{facts['processor']}, {settings.threads} threads, {facts['device']}")
    names = arguments.cases or [*(case.name for case in CASES if _fits(case, settings)), GROWTH]
    tools = list(dict.fromkeys(["engramscope", *arguments.tools]))  # nothing can be compared without our numbers
    rows: list[Row] = []
    growth = None
    for name in names:
        if name == GROWTH:
            growth = _run(GROWTH, "engramscope", settings, console)
        else:
            results = {tool: _run(name, tool, settings, console) for tool in tools}
            case, on_cuda = case_named(name, quick=settings.quick), settings.device.startswith("cuda")
            rows.append(compare(case, results, timed=not settings.quick, on_cuda=on_cuda))
        _save(arguments.out, rows, growth, settings, facts)  # after every case: a long run may be interrupted
    console.print(show.terminal_table(rows))
    usable = growth if growth is not None and growth.ok else None
    for line in [*show.notes(rows), *show.growth_lines(usable), *show.profile_lines(rows)]:
        console.print(line, markup=False)
    console.print(f"Saved in {arguments.out}", markup=False)
    if arguments.write_docs:
        show.write_into(_ROOT / "docs" / "benchmarks.md", show.markdown(rows, facts, usable))
    errors = [f"{row.case.name}: {error}" for row in rows for error in row.errors]
    errors += [f"{GROWTH}: {growth.status}"] if growth is not None and not growth.ok else []
    for error in errors:
        console.print(f"ERROR in {error}", style="red", markup=False)
    return int(bool(errors))


def _arguments() -> argparse.Namespace:
    names = [*(case.name for case in CASES), GROWTH]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", type=_choice(names), help="by name, separated by commas: " + ", ".join(names))
    parser.add_argument("--tools", type=_choice(list(TOOLS)), default=list(TOOLS), help="by name, separated by commas")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows only whether everything works")
    parser.add_argument("--full", action="store_true", help="peers run every cell, nothing is extrapolated")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for a peer on one case (default 60)")
    parser.add_argument("--repeats", type=int, default=3, help="how often Engramscope is timed (default 3)")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: all cores)")
    parser.add_argument("--executor", default="traversal", choices=("traversal", "reference"))
    parser.add_argument("--profile", action="store_true", help="say which operations take Engramscope's time")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks" / "results", help="where results are saved")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    if arguments.quick and arguments.write_docs:
        parser.error("--quick measures nothing that belongs into the documentation")
    return arguments


def _choice(known: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def _fits(case: Case, settings: Settings) -> bool:
    return not case.only_cuda or settings.quick or settings.device.startswith("cuda")


def _run(case: str, tool: str, settings: Settings, console: Console) -> Result:
    """One case with one tool, in a new process."""
    if importlib.util.find_spec(TOOLS[tool]) is None:
        return Result(case, tool, status="not installed")
    console.print(f"{case}: {tool} ... ", markup=False, end="")
    threads = {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    request = json.dumps({"case": case, "tool": tool, "settings": asdict(settings)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", request, str(path)],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and path.exists():
            result = Result.load(path)
            console.print("done" if case == GROWTH else f"{result.seconds:.3g} s")
            return result
    console.print(done.stderr[-3000:], markup=False)
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return Result(case, tool, status=f"failed with exit code {done.returncode}: {last[0]}")


def _save(out: Path, rows: list[Row], growth: Result | None, settings: Settings, facts: dict[str, object]) -> None:
    """JSON, the table as Markdown, and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    everything = {
        "schema": 1,
        "machine": facts,
        "settings": asdict(settings),
        "rows": [row.as_json() for row in rows],
        "growth": None if growth is None else growth.as_json(),
    }
    kind = f"{settings.device.split(':')[0]}{'-quick' if settings.quick else ''}"
    (out / f"benchmark-{kind}.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False), encoding="utf-8")
    usable = growth if growth is not None and growth.ok else None
    (out / f"benchmark-{kind}.md").write_text(show.markdown(rows, facts, usable), encoding="utf-8")
    show.draw_times(rows, out / f"times-{kind}.png")
    if usable is not None:
        show.draw_growth(usable, out / f"growth-{kind}.png")


if __name__ == "__main__":
    sys.exit(main())
