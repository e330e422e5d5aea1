"""Train an editor into a folder: what goes in, what is written, and what can be gone on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from engramscope.edit._base import Editor, Progress
from engramscope.edit.catalogue import editor_names
from engramscope.edit.edit import identity
from engramscope.edit.hyper.editor import TrainedEditor
from engramscope.edit.hyper.examples import Example, from_records, from_texts, split
from engramscope.edit.hyper.files import (
    BEST,
    CHECKPOINT,
    WEIGHTS,
    load_checkpoint,
    said_of,
    save_checkpoint,
    save_network,
    to_device,
)
from engramscope.edit.hyper.maps import edited_maps
from engramscope.edit.hyper.network import seeded
from engramscope.edit.hyper.settings import Corpus, TrainingSettings, resolved
from engramscope.edit.hyper.training import COLUMNS, Training
from engramscope.edit.matrices import LinearMap
from engramscope.errors import InputError, ResultsError
from engramscope.models.model import Model
from engramscope.records.record import Record
from engramscope.registry import Registry
from engramscope.results.atomic import disk_sentence, jsonable, remove_temporary_files, write_json, write_text
from engramscope.results.folders import refuse_occupied
from engramscope.results.lock import FolderLock
from engramscope.results.store import differences

MANIFEST, CURVE = "manifest.json", "curve.csv"
#: a checkpoint at least so often, also where the held-out examples are looked at more seldom
_CHECKPOINT_SECONDS = 300.0
#: keys of the manifest that must be the same where a training goes on
_SAME = ("editor", "on", "model", "training", "network", "data")


@dataclass(frozen=True, slots=True)
class TrainedFolder:
    """A training that is finished.

    Attributes:
        folder: holds `editor.safetensors`, `manifest.json` and `curve.csv`.
        manifest: what stands in `manifest.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def sentences(self) -> list[str]:
        """What came out, for a person."""
        best, first = self.manifest["best"], self.manifest["first"]
        data = self.manifest["data"]
        return [
            f"{self.manifest['editor']} for {self.manifest['model']['name']}, trained on {data['train']:,} edits "
            f"({data['source']}) in {self.manifest['seconds']:.0f} s; the best network is that of step "
            f"{best['step']:,} of {self.manifest['steps']:,}.",
            f"On {data['held']} held-out edits: target stated {_percent(best['efficacy'])} (untrained "
            f"{_percent(first['efficacy'])}), after another prompt {_percent(best['paraphrase'])}, most probable token "
            f"of other texts kept {_percent(best['kept'])}.",
        ]


def trained_editor(name: str) -> type[TrainedEditor]:
    """The class of an editor that has to be trained.

    Raises:
        UnknownNameError: no such editor; names the nearest one.
        InputError: it needs no training; names those that do.
    """
    registry = Registry("engramscope.edit.editors", Editor, "editor")
    kind = registry.get(name)
    if not issubclass(kind, TrainedEditor):
        others = [other for other in editor_names() if registry.get(other).trained]
        raise InputError(f"The editor {name!r} needs no training; those that do: {', '.join(others)}.")
    return kind


def train_editor(
    name: str, model: Model, out: Path | str, *, on: Corpus, records: Sequence[Record] = (), texts: Sequence[str] = (),
    source: str = "", sets: Sequence[str] = (), settings: Mapping[str, Any] | None = None, resume: bool = False,
    provenance: Mapping[str, Any] | None = None, progress: Progress | None = None,
) -> TrainedFolder:  # fmt: skip
    """Train an editor for a model, and write it into a folder.

    The folder gets `editor.safetensors` when training has ended; before that it holds a checkpoint from which the same
    call with `resume` goes on, with the same outcome as if it had not been stopped.

    Args:
        name: "mend" or "ke".
        model: the model, without edits in it.
        out: a new or empty folder, or with `resume` one that was begun.
        on: "counterfact" trains on `records`, "text" on `texts`.
        records: with paraphrases and, for the locality, neighbourhood prompts.
        texts: passages.
        source: where they came from, for the manifest.
        sets: "key=value": settings of the training and of the network.
        settings: the same as values; `sets` wins.
        resume: go on with what is in the folder; a finished training is returned as it is.
        provenance: goes into the manifest as it is.
        progress: called with (what, done, total).

    Raises:
        InputError: no such editor or one that needs no training, unknown settings, no records or too few, a model that
            has edits in it, or training diverged.
        ResultsError: the folder is occupied, was begun with other settings or data, or the disk refuses.
    """
    folder, kind = Path(out), trained_editor(name)
    if identity(model)["edited"]:
        raise InputError(f"{model.name} has edits in it; an editor is trained on the model without them.")
    training, network = resolved(name, kind.Network, kind.training_defaults(model), sets, settings or {})
    refuse_occupied(folder, resume)
    maps = edited_maps(model, training.blocks)
    examples, held = split(_examples(model, on, records, texts, training), training.validation, training.seed)
    manifest = {
        "kind": "editor", "editor": name, "on": on, "model": identity(model), "training": training.model_dump(),
        "network": network.model_dump(), "matrices": [linear.name for linear in maps],
        "data": {"source": source, "train": len(examples), "held": min(len(held), training.validation_most),
                 "sha256": _data_hash(examples, held)},
        **(provenance or {}),
    }  # fmt: skip
    lock = _opened(folder)
    try:
        begun = _begun(folder, manifest)
        if begun is not None and begun.get("finished") and (folder / WEIGHTS).is_file():
            return TrainedFolder(folder, begun)
        built = to_device(seeded(lambda: kind.build(network, model, maps), training.seed), model)
        work = Training(model, maps, built, examples, held, training)
        return _run(folder, work, manifest, begun, network, maps, progress)
    finally:
        lock.release()


def _run(
    folder: Path, work: Training, manifest: dict[str, Any], begun: Mapping[str, Any] | None, network: BaseModel,
    maps: list[LinearMap], progress: Progress | None,
) -> TrainedFolder:  # fmt: skip
    manifest = jsonable(manifest) | {"started": _now(), "seconds": 0.0, "finished": None}
    if begun is not None and (folder / CHECKPOINT).is_file():
        load_checkpoint(work, folder / CHECKPOINT)
        manifest |= {key: begun[key] for key in ("started", "seconds")}
    else:
        work.show_some()
        work.look()
    write_json(folder / MANIFEST, manifest)
    clock = saved = time.monotonic()
    before = float(manifest["seconds"])

    def keep() -> None:
        nonlocal saved
        saved = time.monotonic()
        save_checkpoint(work, folder / CHECKPOINT)
        write_text(folder / CURVE, pd.DataFrame(work.course.rows, columns=list(COLUMNS)).to_csv(index=False))
        write_json(folder / MANIFEST, manifest | {"seconds": before + saved - clock, "steps": work.course.step})

    def on_look(best: bool) -> None:
        if best:
            said = said_of(manifest["editor"], work.model, maps, network.model_dump(), _trained(manifest, work))
            save_network(work.network, said, folder / BEST)
        keep()

    def on_step(step: int) -> None:
        if progress:
            progress("training", step, work.settings.steps)
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
            keep()

    work.run(on_look, on_step)
    keep()
    seconds = before + time.monotonic() - clock
    done = manifest | {"seconds": seconds, "steps": work.course.step, "finished": _now(), "first": work.course.rows[0],
                       "best": work.course.best}  # fmt: skip
    _finish(folder, done)
    return TrainedFolder(folder, jsonable(done))


def _finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Give the best network its name, and remove what was needed to go on."""
    try:
        if (folder / BEST).is_file():  # it has its name already where a kill came between these lines
            (folder / BEST).replace(folder / WEIGHTS)
        write_json(folder / MANIFEST, manifest)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None


def _trained(manifest: Mapping[str, Any], work: Training) -> dict[str, Any]:
    return {"on": manifest["on"], "data": manifest["data"], "settings": manifest["training"], "held": work.course.best}


def _examples(
    model: Model, on: Corpus, records: Sequence[Record], texts: Sequence[str], settings: TrainingSettings
) -> list[Example]:
    if on == "text":
        if not texts:
            raise InputError("There are no passages of text to train on; give some (--texts), or 'bundled'.")
        return from_texts(model, texts, settings.tokens, settings.continuation, settings.longest, settings.seed)
    if not records:
        raise InputError("There are no records to train on; give a file of them (--records), or 'bundled'.")
    return from_records(model, records, settings.locality, settings.seed)


def _data_hash(examples: Sequence[Example], held: Sequence[Example]) -> str:
    """SHA-256 over all tokens that are learned from and looked at."""
    return hashlib.sha256(repr((list(examples), list(held))).encode()).hexdigest()


def _opened(folder: Path) -> FolderLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    lock = FolderLock(folder)
    remove_temporary_files(folder)
    return lock


def _begun(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a training that was begun in a folder with the same settings; None where there is none.

    Raises:
        ResultsError: the folder holds something else, or a training with other settings.
    """
    path = folder / MANIFEST
    if not path.is_file():
        strange = [item.name for item in folder.iterdir() if not item.name.startswith(".")]
        if strange:
            raise ResultsError(f"{folder} holds {strange[0]}, but no {MANIFEST}: there is no training to go on with.")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} could not be read ({type(error).__name__}); choose another folder.") from None
    if not isinstance(found, dict) or found.get("kind") != "editor":
        raise ResultsError(f"{path} was not written by train-editor; choose another folder.")
    changed = differences({key: found.get(key) for key in _SAME}, jsonable({key: wanted[key] for key in _SAME}))
    if changed:
        raise ResultsError([
            f"The training in {folder} was begun with other settings. Choose another folder, or repeat those of then.",
            *(f"Changed: {item}." for item in changed[:20]),
        ])  # fmt: skip
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
