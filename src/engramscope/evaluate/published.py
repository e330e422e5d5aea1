"""The published table, to set beside ours where the model is one of its."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

SOURCE = "Meng et al. 2022 (arXiv 2202.05262), Table 4"


@dataclass(frozen=True, slots=True)
class Figure:
    """A published value, and half of its 95 % interval; None where there is none (S)."""

    value: float
    half_width: float | None


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """The part of the table that is about one model.

    Attributes:
        title: the model as the paper calls it.
        names: last parts of the model's names on the hub, in lower case.
        n: records that were evaluated.
        editors: editor -> measure -> figure; "none" is the model without an edit.
    """

    title: str
    names: tuple[str, ...]
    n: int
    editors: Mapping[str, Mapping[str, Figure]]


def published_tables() -> dict[str, PublishedTable]:
    """Both models of the published table."""
    text = resources.files("engramscope.evaluate").joinpath("published.toml").read_text(encoding="utf-8")
    found = {}
    for key, entry in tomllib.loads(text).items():
        editors = {
            editor: {
                measure: Figure(figure[0], figure[1] if len(figure) > 1 else None) for measure, figure in row.items()
            }
            for editor, row in entry["editors"].items()
        }
        found[key] = PublishedTable(entry["title"], tuple(entry["names"]), entry["n"], editors)
    return found


def published_for(model: str) -> PublishedTable | None:
    """The published figures of a model, by its name on the hub or the name of its folder; None for other models."""
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return next((table for table in published_tables().values() if name in table.names), None)
