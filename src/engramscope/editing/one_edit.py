"""One edit, looked at from all sides: what the model says before and after it, and what else it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engramscope.edit._base import Editor
from engramscope.edit.delta import Delta, LowRank
from engramscope.edit.edit import Edit
from engramscope.edit.storage import export, save_edit
from engramscope.editing.edit_page import write_edit_page
from engramscope.editing.edit_words import edit_sentences, warnings_of
from engramscope.editing.look import Look, look
from engramscope.errors import InputError, ResultsError
from engramscope.evaluate.health import health_of
from engramscope.evaluate.perplexity import perplexity_of
from engramscope.models.model import Model
from engramscope.provenance import machine, model_facts, versions
from engramscope.records.fact import Fact
from engramscope.results.atomic import disk_sentence, write_json
from engramscope.results.folders import refuse_occupied

#: (what, done, total)
Progress = Callable[[str, int, int], None]
EDIT, MANIFEST = "edit.safetensors", "manifest.json"
#: facts that are looked at one by one
_SHOWN = 100


@dataclass(frozen=True)
class EditFolder:
    """An edit on disk.

    Attributes:
        folder: holds `edit.safetensors`, `manifest.json` and `report.html`.
        edit: the edit.
        manifest: what stands in `manifest.json`.
    """

    folder: Path
    edit: Edit
    manifest: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def sentences(self) -> list[str]:
        """What came out, for a person."""
        return [*edit_sentences(self.manifest), *warnings_of(self.manifest)]


def run_edit(
    model: Model, editor: Editor, facts: Sequence[Fact], out: Path | str, *, texts: Sequence[str] = (),
    texts_from: str = "", seed: int = 0, checkpoint: Path | None = None, adapter: Path | None = None,
    progress: Progress | None = None,
) -> EditFolder:  # fmt: skip
    """Compute an edit, look at the model before and with it, and write everything into a folder.

    The model itself is left as it was. Nothing is written before the edit is there.

    Args:
        model: the model.
        editor: the editor.
        facts: what is to be edited.
        out: a new or empty folder.
        texts: held-out texts for the perplexity.
        texts_from: where they came from.
        seed: of the edit.
        checkpoint: a new folder for the whole edited model, as transformers loads it.
        adapter: a new folder for the edit as a LoRA adapter.
        progress: called with (what, done, total).

    Raises:
        InputError: the facts cannot be edited by it in this model, or the edit is no adapter.
        ResultsError: a folder is occupied, or the disk refuses.
    """
    folder = Path(out)
    ensure_free(folder, checkpoint, adapter)
    shown = list(facts[:_SHOWN])
    before = look(model, shown)
    base = perplexity_of(model, texts) if texts else None
    start = time.perf_counter()
    edit = editor.compute(model, facts, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    with edit.applied(model):
        after = look(model, shown)
        then = perplexity_of(model, texts) if texts else None
    health = health_of(model, edit, before=base, after=then)
    manifest: dict[str, Any] = {
        "kind": "edit", "method": edit.method, "settings": dict(edit.settings), "seed": seed,
        "model": model_facts(model), "n": len(facts), "seconds": seconds,
        "facts": [_fact(fact, *looks) for fact, *looks in zip(shown, before, after, strict=True)],
        "health": health.as_dict(), "line": health.line, "texts": len(texts), "texts_from": texts_from,
        "notes": list(edit.notes), "prefixes": list(edit.prefixes), "diagnostics": dict(edit.diagnostics),
        "parameters": {name: {"shape": list(delta.shape), "rank": _rank(delta)} for name, delta in edit.deltas.items()},
        "versions": versions(), "machine": machine(), "checkpoint": None, "adapter": None,
    }  # fmt: skip
    if adapter is not None:
        from engramscope.edit.adapter import export_lora  # here, because it imports peft

        # first, because it refuses an edit that is not of low rank
        export_lora(edit, model, adapter)
    _make(folder)
    save_edit(edit, folder / EDIT)
    if checkpoint is not None:
        manifest["checkpoint"] = {"folder": str(checkpoint), "stored": export(edit, model, checkpoint)}
    if adapter is not None:
        manifest["adapter"] = {"folder": str(adapter)}
    write_edit_page(folder, manifest)
    write_json(folder / MANIFEST, manifest)
    return EditFolder(folder, edit, manifest)


def ensure_free(folder: Path, *others: Path | None) -> None:
    """Refuse occupied folders, and one that is named twice, before anything is computed.

    Raises:
        InputError: folders are the same, or one lies in another.
        ResultsError: a folder is occupied.
    """
    wanted = [folder, *(other for other in others if other is not None)]
    for one in wanted:
        refuse_occupied(one)
    places = [one.resolve() for one in wanted]
    for place in places:
        if places.count(place) > 1:
            raise InputError(f"{place} is named for two things; give each a folder of its own.")
        if any(place in other.parents for other in places):
            inner = next(other for other in places if place in other.parents)
            raise InputError(f"{inner} lies in {place}, which is written by this command, too; put them side by side.")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(disk_sentence(folder, error)) from None


def _fact(fact: Fact, before: Look, after: Look) -> dict[str, Any]:
    return {**asdict(fact), "before": asdict(before), "after": asdict(after)}


def _rank(delta: Delta) -> int | None:
    """How many outer products a delta is the sum of; None where it is a whole tensor."""
    return delta.left.shape[1] if isinstance(delta, LowRank) else None
