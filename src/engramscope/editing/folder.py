"""A folder of outcomes: whose settings it was begun with, and one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engramscope.editing.journal import Journal
from engramscope.errors import ResultsError
from engramscope.results.atomic import disk_sentence, jsonable, remove_temporary_files, write_json
from engramscope.results.folders import refuse_occupied
from engramscope.results.lock import FolderLock
from engramscope.results.store import differences

SETTINGS = "settings.json"
_JOURNALS = "outcomes"


@contextmanager
def outcome_folder(
    folder: Path, kind: str, common: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]], *, resume: bool
) -> Iterator[dict[str, Journal]]:
    """Make a folder of outcomes, or go on in one, with the lock of its only writer.

    What all outcomes share must be as it was when the folder was begun, and so must the settings of a method that is
    there already; methods that are not there yet are added.

    Args:
        folder: a new or empty one, or with `resume` one that was begun.
        kind: what the folder holds ("table4").
        common: settings that all outcomes share: model, records, seed, how it is measured.
        methods: name -> settings.
        resume: go on in a folder that was begun.

    Yields:
        name of a method -> its journal, without half-written lines.

    Raises:
        ResultsError: the folder holds something else, was begun with other settings (says which), is being written,
            or the disk refuses.
    """
    folder = Path(folder)
    refuse_occupied(folder, resume)
    if folder.is_dir():
        _begun(folder)  # refused before anything is written
    try:
        (folder / _JOURNALS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None
    lock = FolderLock(folder)
    try:
        remove_temporary_files(folder)
        wanted = {"kind": kind, "common": jsonable(common), "methods": jsonable(methods)}
        begun = _begun(folder)
        if begun is not None:
            _ensure_same(folder, begun, wanted)
            wanted["methods"] = {**begun["methods"], **wanted["methods"]}
        write_json(folder / SETTINGS, wanted)
        journals = {name: Journal(folder / _JOURNALS / f"{name}.jsonl") for name in methods}
        for journal in journals.values():
            journal.mend()
        yield journals
    finally:
        lock.release()


def _begun(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder was begun with; None for one that holds nothing yet."""
    path = folder / SETTINGS
    if not path.exists():
        strange = [item.name for item in folder.iterdir() if item.name not in (_JOURNALS, ".lock")]
        if strange:
            raise ResultsError(f"{folder} holds {strange[0]}, but no {SETTINGS}: it is no folder to go on in.")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} could not be read ({type(error).__name__}); choose another folder.") from None
    if not isinstance(found, dict) or not {"kind", "common", "methods"} <= set(found):
        raise ResultsError(f"{path} was not written by this command; choose another folder.")
    return found


def _ensure_same(folder: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    shared = [name for name in wanted["methods"] if name in begun["methods"]]
    changed = differences(
        {"kind": begun["kind"], **begun["common"], **{name: begun["methods"][name] for name in shared}},
        {"kind": wanted["kind"], **wanted["common"], **{name: wanted["methods"][name] for name in shared}},
    )
    if changed:
        raise ResultsError([
            f"{folder} was begun with other settings, and outcomes of both must not be mixed. Choose another folder, "
            "or repeat the settings of then.",
            *(f"Changed: {item}." for item in changed[:20]),
        ])  # fmt: skip
