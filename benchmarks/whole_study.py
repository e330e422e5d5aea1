"""What a finished `engramscope clap` found, as Markdown: curves, times, and what they show.

    python -m benchmarks.whole_study scratch/                  # print it
    python -m benchmarks.whole_study scratch/ --write-docs     # put it, and its figures, into docs/full_size.md

Every number is read from the folder, but for the losses of two models that count words (`benchmarks.known_words`),
which are computed from the corpus, and the intervals of shares of couples (Wilson, 95 %). The processor is that of the
machine on which this runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from benchmarks.known_words import counted_losses, sides
from benchmarks.machine import processor
from benchmarks.show import write_into
from engramscope.finetune.history import perplexity
from engramscope.finetune.steps import steps_of
from engramscope.report.words import amount, bare_p, capital, cell_words, interval, number, percent, seconds, whole
from engramscope.results.read import read_manifest, read_summary

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_PAGE = "full_size.md"
#: file of the folder -> its name among the images of the documentation
_FIGURES = {
    "finetune/{best}/figures/loss.svg": "full-size-loss.svg",
    "finetune/{best}/figures/gradient_norm.svg": "full-size-gradient.svg",
}
#: parts of the training for which means are given
_PARTS = 10


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def machine_lines(found: Mapping[str, Any]) -> list[str]:
    """Where and with what, and how long every part took."""
    trained = found["finetune"][found["best"]]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "engramscope"))
    spent = trained["seconds"]
    times = [
        ("training", spent["training"]), ("validation", spent["validation"]),
        *((f"study {name}", study["elapsed_s"]) for name, study in found["studies"].items()),
    ]  # fmt: skip
    return [
        f"{trained['started'][:10]}, {processor()}, {trained['machine']['threads']} threads, {trained['device']}, "
        f"{trained['precision']['used']}, {versions}: {whole(trained['model']['parameters'])} parameters, "
        f"{whole(round(trained['tokens'] / spent['training']))} tokens a second.",
        "",
        *table(["part", "took"], [(name, seconds(took)) for name, took in times]),
    ]


def curve_lines(steps: pd.DataFrame, tokens: float) -> list[str]:
    """Loss and gradient norm in equal parts of the training."""
    parts = [steps.iloc[rows] for rows in np.array_split(np.arange(len(steps)), min(_PARTS, len(steps)))]
    return table(
        ["steps", "tokens read", "training loss, nats per token", "gradient norm, mean (largest)", "learning rate"],
        [
            (
                f"{part['step'].iloc[0]} to {part['step'].iloc[-1]}",
                whole(1000 * round(tokens * part["step"].iloc[-1] / len(steps) / 1000)),
                f"{part['train_loss'].mean():.3f}",
                f"{part['gradient_norm'].mean():.2f} ({part['gradient_norm'].max():.2f})",
                f"{part['learning_rate'].iloc[-1]:.2g}",
            )
            for part in parts
        ],
    )


def loss_lines(corpus: Path, tuned: Path, trained: Mapping[str, Any]) -> list[str]:
    """The held-out loss beside that of models that count."""
    train, held_out, vocabulary = sides(corpus, tuned)
    single, pairs, tokens = counted_losses(train, held_out, vocabulary)
    assert tokens == trained["split"]["validation"]["tokens"], "these are not the abstracts that were held out"
    loss = trained["validation_loss"]
    rows = [
        ("before training", loss["before"]), ("how often a token occurs", single),
        ("how often a token follows another", pairs), ("after training", loss["after"]),
    ]  # fmt: skip
    return [
        f"{whole(tokens)} tokens of {whole(len(held_out))} held-out abstracts:",
        "",
        *table(
            ["model", "loss, nats per token", "perplexity"],
            [(name, f"{value:.3f}", number(perplexity(value))) for name, value in rows],
        ),
    ]


def known_lines(folder: Path) -> list[str]:
    """What each model knows, by kind of question.

    Each couple asks about two subjects with each other's answers. A model that does not look at the subject prefers the
    same answer in both and is right in exactly half of the questions, so the two questions of a couple count together:
    the sum of their logit differences is how far the subject moves the preference, in the right direction above 0.
    """
    pairs = pd.read_parquet(folder / "what-training-moved" / "pairs.parquet")
    kinds = pairs["labels"].map(lambda text: json.loads(text).get("kind", "all"))
    rows = []
    for kind, mine in pairs.groupby(kinds):
        for model, column in (("before training", "corrupted_logit_diff"), ("after training", "clean_logit_diff")):
            couples = mine.groupby("group")[column]
            shifts = couples.sum()[couples.size() == 2]
            moved = int((shifts > 0).sum())
            ends = binomtest(moved, len(shifts)).proportion_ci(0.95, "wilson")
            rows.append((
                kind, model, f"{int((mine[column] > 0).sum())} of {len(mine)}", f"{moved} of {len(shifts)}",
                f"{percent(ends.low)} to {percent(ends.high)}", number(shifts.mean()),
            ))  # fmt: skip
    return table(["questions", "model", "right", "couples moved the right way", "95 % interval", "moved by, logits"],
                 rows)  # fmt: skip


def paper_lines(found: Mapping[str, Any]) -> list[str]:
    """CLAP's tables."""
    return table(
        ["table", "patched", "questions", "pairs", "clean / corrupted / patched", "recovery", "95 % interval", "p"],
        [
            (
                row["table"],
                row["patched_part"] + (" (cut)" if row["cut"] else ""),
                row["kind"],
                f"{row['n_pooled']} of {row['n']}",
                " / ".join(number(row[run]) for run in ("clean", "corrupted", "patched")),
                percent(row["recovery"]),
                interval(row["recovery_low"], row["recovery_high"], "recovery", "denoise"),
                bare_p(None if row["cut"] else row["p"]),
            )
            for row in found["tables"]
        ],
    )


def strongest_lines(folder: Path, study: str) -> list[str]:
    """The strongest cell of every sweep and direction of a study, by its first metric."""
    summary = read_summary(folder / study)
    metric = read_manifest(folder / study)["study"]["metrics"]["names"][0]
    summary = summary[summary["metric"] == metric]
    rows = []
    for (sweep, direction), cells in summary.groupby(["sweep", "direction"], sort=False):
        tested = cells[cells["p_adjusted"].notna() & ~cells["cut"].astype(bool)]
        if not tested.empty:
            cell = tested.loc[tested["effect"].abs().idxmax()]
            rows.append((
                sweep, direction, f"{int(tested['detected'].sum())} of {len(tested)}", capital(cell_words(dict(cell))),
                amount(cell["estimate"], cell["estimate_kind"], metric, direction),
                interval(cell["low"], cell["high"], cell["estimate_kind"], direction), bare_p(cell["p_adjusted"]),
            ))  # fmt: skip
    return table(["sweep", "direction", "detected", "strongest", "recovery, or loss", "95 % interval", "p, adjusted"],
                 rows)  # fmt: skip


def document(folder: Path) -> str:
    """All of it."""
    found = json.loads((folder / "clap.json").read_text(encoding="utf-8"))
    assert found["status"] == "complete", f"{folder} is not finished"
    tuned, trained = folder / "finetune" / found["best"], found["finetune"][found["best"]]
    sections = {
        "Machine and times": machine_lines(found),
        "Curves": [
            *(f"![{name}](images/{name})" for name in _FIGURES.values()), "",
            *curve_lines(steps_of(tuned), trained["tokens"]),
        ],
        "What it learned": loss_lines(folder / found["corpus"]["folder"], tuned, trained),
        "What it answers": known_lines(folder),
        "CLAP's tables": paper_lines(found),
        "By token replacement": strongest_lines(folder, "token-replacement"),
        "What training moved": strongest_lines(folder, "what-training-moved"),
    }  # fmt: skip
    parts = [line for title, lines in sections.items() for line in ("", f"### {title}", "", *lines)]
    return "\n".join(parts) + "\n\n"


def main() -> None:
    """Print it, or put it into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_study")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    text = document(given.folder)
    if given.write_docs:
        best = json.loads((given.folder / "clap.json").read_text(encoding="utf-8"))["best"]
        for source, name in _FIGURES.items():
            shutil.copyfile(given.folder / source.format(best=best), _DOCS / "images" / name)
        write_into(_DOCS / _PAGE, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
