"""Trace the facts, edit them at every layer, and say whether the one tells about the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from engramscope.errors import InputError, ResultsError, SiteError
from engramscope.locate_edit.analysis import Tables, analyse
from engramscope.locate_edit.edits import Bench, bench_of, cases_of, edit_all
from engramscope.locate_edit.facts import Chosen, Progress, choose_facts, relation_of
from engramscope.locate_edit.page import write_page
from engramscope.locate_edit.settings import Settings
from engramscope.locate_edit.tracing import gaps, places_of, restored, trace
from engramscope.locate_edit.words import sentences
from engramscope.models import Model, load_model
from engramscope.pairs.write import write_jsonl
from engramscope.provenance import machine, model_facts, model_fingerprints, versions
from engramscope.records import Record
from engramscope.results.atomic import disk_sentence, jsonable, remove_temporary_files, write_json, write_table
from engramscope.results.folders import refuse_occupied
from engramscope.results.lock import LOCK_NAME, FolderLock
from engramscope.results.store import differences

RESULT, MANIFEST = "locate_edit.json", "manifest.json"
_KIND = "locate-edit"
_PARTS = ".parts"


@dataclass(frozen=True)
class LocateEdit:
    """A finished comparison on disk.

    Attributes:
        folder: holds `tracing/` (a results folder for each corruption), `pairs.jsonl`, `tracing.parquet`,
            `edits.parquet`, `locate_edit.json`, `locate_edit.html` and `manifest.json`.
    """

    folder: Path

    @property
    def found(self) -> dict[str, Any]:
        """What stands in `locate_edit.json`."""
        return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "locate_edit.html"

    def tracing(self) -> pd.DataFrame:
        """Fraction restored of every fact and layer."""
        return pd.read_parquet(self.folder / "tracing.parquet")

    def edits(self) -> pd.DataFrame:
        """What every edit did."""
        return pd.read_parquet(self.folder / "edits.parquet")

    def sentences(self) -> list[str]:
        """The answer in sentences."""
        return sentences(self.found)


def run_locate_edit(
    records: Sequence[Record],
    model: Model | str,
    out: Path | str,
    settings: Settings | None = None,
    *,
    source: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> LocateEdit:
    """Does the layer that tracing points at edit best?

    Facts that the model states right are traced under noise and under token replacement, edited at every layer by every
    editor, one edit at a time, and the fraction restored is compared with the success of the edit: R² of layer, tracing
    and both, correlations within layers, and success at a random layer, at the best fixed one and at the fact's own
    tracing peak.

    Args:
        records: facts with their paraphrases and neighbours.
        model: a model, or its name.
        out: a new folder, or one to go on in.
        settings: what is traced and edited; the defaults follow the published analysis.
        source: where the records come from, for the manifest.
        resume: go on in a folder where an earlier run stopped, fact by fact.
        progress: called with (what, done, total).

    Raises:
        InputError: the records, the settings, the model or the folder are at fault.
        CheckError: recomputed cells of the tracing differ.

    Source: Hase, Bansal, Kim & Ghandeharioun 2023 (arXiv 2301.04213) and their analysis code.
    """
    asked, folder = settings or Settings(), Path(out)
    refuse_occupied(folder, resume)
    held = load_model(model) if isinstance(model, str) else model
    layers = _layers(held, asked)
    bench = bench_of(asked, layers)
    chosen = choose_facts(held, records, asked.facts, asked.seed, progress)
    cases = cases_of(held, chosen.records, progress)
    with _open(folder, _identity(held, asked, chosen, bench), resume) as manifest:
        manifest |= {"model": model_facts(held), "source": dict(source or {}), "versions": versions(),
                     "machine": machine()}  # fmt: skip
        write_jsonl(chosen.pairs, folder / "pairs.jsonl")
        studies = trace(held, chosen.pairs, asked, folder / "tracing", resume=resume, progress=progress)
        edits = edit_all(held, cases, bench, folder / _PARTS, progress)
        effects = pd.concat([study.effects() for study in studies.values()], ignore_index=True)
        tracing = restored(effects, places_of(asked, held.anatomy.n_layers))
        write_table(folder / "tracing.parquet", pa.Table.from_pandas(tracing, preserve_index=False))
        write_table(folder / "edits.parquet", edits)
        tables = Tables(tracing, edits.to_pandas(), tuple(record.id for record in chosen.records),
                        tuple(relation_of(record) for record in chosen.records), layers,
                        held.anatomy.n_layers)  # fmt: skip
        found = _found(held, asked, chosen, tables, progress)
        write_json(folder / RESULT, found)
        write_page(folder, tables, json.loads((folder / RESULT).read_text(encoding="utf-8")))
        manifest["status"] = "complete"
    return LocateEdit(folder)


def _layers(model: Model, settings: Settings) -> tuple[int, ...]:
    count = model.anatomy.n_layers
    layers = tuple(range(count)) if settings.layers is None else settings.layers
    missing = [str(layer) for layer in layers if layer >= count]
    if missing:
        raise SiteError(f"There is no layer {', '.join(missing)}: {model.name} has {count} layers, 0 to {count - 1}.")
    if len(layers) < 2:
        raise InputError("One layer leaves nothing to compare; give two layers or more.")
    return layers


def _identity(model: Model, settings: Settings, chosen: Chosen, bench: Bench) -> dict[str, Any]:
    """Everything that the numbers depend on: a folder is only gone on in with the same."""
    records = {
        record.id: [record.fact.prompt, record.fact.subject, record.fact.target, record.fact.true, record.paraphrases,
                    [probe.prompt for probe in record.neighbourhood]]
        for record in chosen.records
    }  # fmt: skip
    given = settings.model_dump(mode="json", exclude={"facts", "layers", "options"})
    return jsonable({"settings": given, "layers": bench.layers, "editors": bench.settled(model), "facts": records,
                     "model": model_fingerprints(model), "engramscope": versions()["engramscope"]})  # fmt: skip


@contextmanager
def _open(folder: Path, identity: Mapping[str, Any], resume: bool) -> Iterator[dict[str, Any]]:
    """The manifest of the folder, which is this process's alone meanwhile; written at the beginning and at the end."""
    refuse_occupied(folder, resume)
    try:
        (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    lock = FolderLock(folder)
    try:
        earlier = _earlier(folder, identity)
        for part in (folder, folder / _PARTS):
            remove_temporary_files(part)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest: dict[str, Any] = {"kind": _KIND, "status": "running", "started": earlier.get("started", now),
                                    "identity": dict(identity)}  # fmt: skip
        write_json(folder / MANIFEST, manifest)
        yield manifest
        manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / MANIFEST, manifest)
    finally:
        lock.release()


def _earlier(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier run of the same comparison; empty where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        strange = sorted(item.name for item in folder.iterdir() if item.name not in (_PARTS, LOCK_NAME))
        if strange:
            raise ResultsError(f"{folder} holds {strange[0]}, but no comparison to go on with; give a new folder.")
        return {}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} could not be read ({type(error).__name__}); give a new folder.") from None
    if not isinstance(earlier, dict) or earlier.get("kind") != _KIND:
        raise ResultsError(f"{folder} holds something else than a comparison of tracing and editing; give a new one.")
    changed = differences(earlier.get("identity") or {}, identity)
    if changed:
        raise ResultsError([
            f"{folder} belongs to another comparison, so it cannot be gone on with; give a new folder.",
            *(f"Changed: {item}." for item in changed[:20]),
        ])  # fmt: skip
    return earlier


def _found(
    model: Model, settings: Settings, chosen: Chosen, tables: Tables, progress: Progress | None
) -> dict[str, Any]:
    edits: Any = tables.edits
    failed = edits[edits["status"] != "ok"]
    reasons = failed.drop_duplicates(["fact", "editor", "layer", "seed"]).groupby(["editor", "status"]).size()
    return {
        "model": {"name": model.name or "the model", "n_layers": model.anatomy.n_layers},
        "settings": settings.model_dump(mode="json"),
        "layers": list(tables.layers),
        "places": [{"site": site, "window": window} for site, window in places_of(settings, model.anatomy.n_layers)],
        "facts": {
            "chosen": len(chosen.records), "looked_at": chosen.looked_at, "left_out": chosen.left_out,
            "relations": len(set(tables.relations)),
        },
        "gaps": gaps(tables.tracing),
        "edits": len(edits.drop_duplicates(["fact", "editor", "layer", "seed"])),
        "failed": [{"editor": editor, "status": status, "edits": int(count)}
                   for (editor, status), count in reasons.items()],
        **analyse(tables, settings, progress),
    }  # fmt: skip
