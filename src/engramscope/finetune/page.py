"""The page and the figures of a fine-tuning, from the rows of its history and its steps, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engramscope.finetune.history import COLUMNS
from engramscope.finetune.words import WARM_UP, sentences, warm_up
from engramscope.report.small_page import embedded_file, render_page
from engramscope.report.words import number, seconds, whole
from engramscope.results.atomic import atomic_file, write_text

_TRAIN, _VALIDATION, _MARK = "#b8762a", "#2166ac", "#5d594f"
FIGURES = {
    "loss": "Loss by epoch, on the training and the held-out side",
    "gradient_norm": "Gradient norm by epoch, before clipping",
}
#: points that a figure's width can show; of more steps, means of neighbours are drawn
_POINTS = 1500


def write_page(folder: Path, manifest: Mapping[str, Any], steps: pd.DataFrame | None = None) -> Path:
    """Write `figures/*.svg` and `report.html`.

    Args:
        folder: of the fine-tuning.
        manifest: what stands in `training.json`.
        steps: see `steps_table`; without them the figures show epochs only.

    Raises:
        ResultsError: the disk refuses.
    """
    drawn = {"loss": loss_figure(manifest, steps), "gradient_norm": gradient_figure(manifest, steps)}
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        _save(figure, folder / "figures" / f"{name}.svg")
    late = warm_up(manifest)
    text = render_page(
        "engramscope.finetune",
        "report.html.j2",
        # what was foretold is said as what happened
        manifest={**manifest, "notes": [note for note in manifest["notes"] if not (late and note.startswith(WARM_UP))]},
        name=Path(manifest["model"]["name"]).name,
        sentences=[sentence for sentence in sentences(manifest) if sentence != late],
        late=late,
        figures=[
            {"title": FIGURES[name], "source": embedded_file(folder / "figures" / f"{name}.svg")} for name in drawn
        ],
        rows=[_row(row) for row in manifest["history"]],
        settings=[(key, _plain(value)) for key, value in manifest["settings"].items()],
        columns=COLUMNS,
        whole=whole,
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def loss_figure(manifest: Mapping[str, Any], steps: pd.DataFrame | None = None) -> Figure:
    """Training and validation loss by epoch, and the training loss of each step behind them.

    The best epoch and the overfitting point are marked.
    """
    figure, axes = _figure("Loss (nats per token)")
    rows = manifest["history"]
    trained = [row for row in rows if row["epoch"] > 0]
    _steps(axes, steps, "train_loss")
    _line(axes, trained, "train_loss", _TRAIN, "training")
    _line(axes, rows, "validation_loss", _VALIDATION, "validation")
    best = next(row for row in rows if row["epoch"] == manifest["best_epoch"])
    axes.scatter([best["epoch"]], [best["validation_loss"]], s=90, facecolors="none", edgecolors=_VALIDATION,
                 linewidths=1.4, zorder=4, label=f"best: epoch {best['epoch']}")  # fmt: skip
    if manifest["overfitting_epoch"] is not None:
        axes.axvline(manifest["overfitting_epoch"], color=_MARK, linewidth=0.8, linestyle="--",
                     label="overfitting point")  # fmt: skip
    _finish(axes, rows)
    return figure


def gradient_figure(manifest: Mapping[str, Any], steps: pd.DataFrame | None = None) -> Figure:
    """Mean and largest gradient norm of each epoch's steps, and the norm of each step behind them."""
    figure, axes = _figure("Gradient norm")
    trained = [row for row in manifest["history"] if row["gradient_norm_mean"] is not None]
    _steps(axes, steps, "gradient_norm")
    _line(axes, trained, "gradient_norm_mean", _TRAIN, "mean of the epoch")
    _line(axes, trained, "gradient_norm_max", _MARK, "largest of the epoch", style=":")
    limit = manifest["settings"]["max_grad_norm"]
    if limit:
        axes.axhline(limit, color=_MARK, linewidth=0.7, label=f"clipped to {limit:g}")
    axes.set_ylim(bottom=0)
    _finish(axes, trained)
    return figure


def _finish(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The legend above the picture, where it hides nothing; whole epochs on the axis, also where there is only one."""
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, borderaxespad=0.2)
    if rows:
        # steps begin behind epoch 0
        left = rows[0]["epoch"] - 0.5
        drawn = (np.asarray(line.get_xdata(), dtype=float) for line in axes.lines if line.get_gid())
        axes.set_xlim(min(float(places.min(initial=left)) for places in drawn), rows[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str, style: str = "-") -> None:
    # a single epoch makes no line: its point has to be seen
    size = 7.0 if len(rows) == 1 else 3.5
    axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], color=colour, linewidth=1.5, marker="o",
              markersize=size, linestyle=style, label=label, gid=key)  # fmt: skip


def _steps(axes: Axes, steps: pd.DataFrame | None, key: str) -> None:
    """The values of single steps as a thin line behind the epochs; of very many, means of neighbours."""
    if steps is None or len(steps) < 2:
        return
    values = steps[["epoch", key]].dropna().to_numpy(dtype=float)
    count = min(_POINTS, len(values))
    means = np.array([part.mean(axis=0) for part in np.array_split(values, count)]) if count else values
    each = round(len(values) / max(count, 1))
    label = "single steps" if each == 1 else f"means of {each} steps"
    axes.plot(means[:, 0], means[:, 1], color=_TRAIN, linewidth=0.8, alpha=0.7, zorder=1, label=label,
              gid=f"steps_{key}")  # fmt: skip


def _figure(ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("Epoch", fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "engramscope"}), atomic_file(path) as handle:
        figure.savefig(handle, format="svg", metadata={"Date": None}, facecolor="white")


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the history as it is shown."""
    losses = {key: "–" if row[key] is None else f"{row[key]:.4f}" for key in ("train_loss", "validation_loss")}
    return {
        "epoch": str(row["epoch"]),
        "step": whole(row["step"]),
        **losses,
        "perplexity": number(row["validation_perplexity"]),
        "norm": _number(row["gradient_norm_mean"]),
        "norm_max": _number(row["gradient_norm_max"]),
        "rate": _number(row["learning_rate"]),
        "skipped": whole(row["skipped_steps"]),
        "seconds": seconds(row["seconds"]) if row["epoch"] else "–",
        "speed": "–" if row["tokens_per_second"] is None else whole(round(row["tokens_per_second"])),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
