"""The page of a whole study: CLAP's tables and figures in our numbers, and the way to every stage's own page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from engramscope.clap.studies import STUDIES
from engramscope.clap.words import sentences
from engramscope.finetune.page import gradient_figure, loss_figure
from engramscope.finetune.steps import steps_of
from engramscope.finetune.words import WARM_UP, trained_parts, warm_up
from engramscope.report.small_page import embedded_figure, embedded_file, render_page
from engramscope.report.words import bare_p, capital, counted, number, percent, seconds, whole
from engramscope.results.atomic import write_text

#: what the paper prints of its corpus: mentions in so many abstracts
PRINTED_ABSTRACTS = 9_958
PRINTED_MENTIONS = {"epilepsy": 20_595, "EEG": 11_674, "seizure": 13_921}
#: rows of CLAP's tables of settings, and what they are called here
SETTINGS: Mapping[str, str] = {
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "train_batch": "Batch, training",
    "eval_batch": "Batch, validation",
    "accumulation": "Gradient accumulation",
    "warmup_steps": "Warm-up steps",
    "epochs": "Epochs at most",
    "patience": "Early stopping patience",
    "precision": "Precision",
    "chunk": "Chunk, tokens",
    "validation": "Held-out share",
    "seed": "Seed",
}
#: figures of a study that stand on this page, at most, and which come first
_FIGURES = 6
_FIRST = ("layers", "profile", "heads", "mlps", "mlp", "residual")


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Write `report.html` into the folder of a whole study.

    Raises:
        ResultsError: the disk refuses.
    """
    text = render_page(
        "engramscope.clap",
        "clap.html.j2",
        found=found,
        sentences=sentences(found),
        mentions=_mentions(found),
        printed_abstracts=PRINTED_ABSTRACTS,
        sampled=_sampled(found),
        corpus_figures=_figures(_corpus_folder(folder, found) / "figures", 3),
        settings=_settings(found),
        curves=[
            _curves(name, manifest, steps_of(folder / "finetune" / name))
            for name, manifest in found["finetune"].items()
        ],
        tables=[_table(row) for row in found["tables"]],
        studies=[_study(folder, name, title, found["studies"][name]) for name, title in STUDIES.items()],
        whole=whole,
        counted=counted,
        capital=capital,
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def _corpus_folder(folder: Path, found: Mapping[str, Any]) -> Path:
    return folder / str(found["corpus"]["folder"])


def _sampled(found: Mapping[str, Any]) -> int | None:
    """How many abstracts were drawn; None where all of them were taken."""
    taken = int(found["finetune"][found["best"]]["corpus"]["documents"])
    return taken if taken < int(found["corpus"]["manifest"]["counts"]["rows"]) else None


def _mentions(found: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = found["corpus"]["terms"]
    return [
        {
            "term": str(row["term"]),
            "mentions": whole(int(row["mentions"])),
            "parts": whole(int(row["substring_mentions"])),
            "documents": whole(int(row["documents"])),
            "printed": whole(PRINTED_MENTIONS[row["term"]]) if row["term"] in PRINTED_MENTIONS else "–",
        }
        for row in rows
    ]


def _settings(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    manifests = found["finetune"].values()
    return [(words, [str(one["settings"][key]) for one in manifests]) for key, words in SETTINGS.items()]


def _curves(name: str, manifest: Mapping[str, Any], steps: pd.DataFrame) -> dict[str, Any]:
    rows = manifest["history"]
    best = next(row for row in rows if row["epoch"] == manifest["best_epoch"])
    turned, late = manifest["overfitting_epoch"], warm_up(manifest)
    return {
        "name": name,
        "loss": embedded_figure(loss_figure(manifest, steps)),
        "gradient": embedded_figure(gradient_figure(manifest, steps)),
        "before": number(rows[0]["validation_perplexity"]),
        "after": number(best["validation_perplexity"]),
        "epoch": manifest["best_epoch"],
        "epochs": manifest["epochs"],
        "turned": "not reached" if turned is None else f"epoch {turned}",
        "took": seconds(sum(row["seconds"] for row in rows)),
        "late": late,
        "notes": [
            *filter(None, [trained_parts(manifest)]),
            *(note for note in manifest.get("notes") or [] if not (late and note.startswith(WARM_UP))),
        ],
    }


def _table(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row["recovery_low"], row["recovery_high"]
    printed = row["printed"]
    return {
        **{key: row[key] for key in ("table", "patched_part", "kind", "about", "cut")},
        "n": f"{row['n_pooled']} of {row['n']}",
        **{run: number(row[run]) for run in ("clean", "corrupted", "patched")},
        "recovery": percent(row["recovery"]),
        "interval": "" if low is None or high is None else f"{percent(low)} to {percent(high)}",
        "p": bare_p(row["p"]),
        "printed": f"{number(printed['clean'])} / {number(printed['corrupted'])} / {number(printed['patched'])}",
        "printed_recovery": percent(printed["recovery"]),
        "by_definition": percent(row["printed_by_definition"]),
    }


def _study(folder: Path, name: str, title: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": title, **said, "figures": _figures(folder / name / "figures", _FIGURES, _FIRST)}


def _figures(folder: Path, most: int, first: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Figures of a folder: those whose names begin with `first`, in that order, then others."""

    def place(file: Path) -> tuple[int, str]:
        return next((at for at, start in enumerate(first) if file.stem.startswith(start)), len(first)), file.stem

    chosen = sorted(folder.glob("*.svg"), key=place)[:most]
    return [{"name": file.stem.replace("-", " ").replace("_", " "), "source": embedded_file(file)} for file in chosen]
