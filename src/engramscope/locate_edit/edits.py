"""Every fact edited at every layer, by every editor: what each edit did, kept fact by fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engramscope.edit._base import Editor
from engramscope.edit.catalogue import make_editor
from engramscope.errors import InputError
from engramscope.locate_edit.facts import Progress, relation_of
from engramscope.locate_edit.outcomes import Probes, judged, probabilities, probes_of
from engramscope.locate_edit.settings import OUTCOMES, Settings
from engramscope.models.model import Model
from engramscope.records import Record
from engramscope.results.atomic import write_table

#: what editors call the layers that they edit
_LAYERS = ("layer", "layers")
#: a row per fact, editor, layer, seed and outcome
EDITS = pa.schema(
    [
        ("fact", pa.string()),
        ("relation", pa.string()),
        ("editor", pa.string()),
        ("layer", pa.int64()),
        ("seed", pa.int64()),
        ("outcome", pa.string()),
        ("value", pa.float64()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("prompts", pa.int64()),
        ("relative_norm", pa.float64()),
        ("status", pa.string()),
    ]
)


@dataclass(frozen=True)
class Bench:
    """What is edited how: every method at every layer.

    Attributes:
        methods: editor -> its options, without the layer.
        layers: that are edited.
        seeds: of the edits of one fact at one layer.
    """

    methods: Mapping[str, Mapping[str, Any]]
    layers: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def places(self) -> list[tuple[str, int]]:
        """(editor, layer), one layer after the other."""
        return [(name, layer) for name in self.methods for layer in self.layers]

    def editor(self, name: str, layer: int) -> Editor:
        """An editor of a layer; it may keep much about it (a factor of its second moment), so let it go afterwards."""
        return make_editor(name, {**self.methods[name], **_at(name, layer)})

    def settled(self, model: Model) -> dict[str, Any]:
        """Every option that the editors use, but for the layer; as it was given where each layer has its own.

        Raises:
            InputError: an editor cannot edit the model.
        """
        found: dict[str, Any] = {}
        for name in self.methods:
            editors = [self.editor(name, layer) for layer in self.layers]
            given = editors[0].options.model_dump(mode="json")
            used = [editor.settled(model).model_dump(mode="json") for editor in editors]
            alike = {key: value for key, value in used[0].items() if all(one[key] == value for one in used)}
            found[name] = {key: alike.get(key, value) for key, value in given.items() if key not in _LAYERS}
        return found


def _at(name: str, layer: int) -> dict[str, Any]:
    """The option that makes an editor edit this layer; an editor of several layers gets one.

    Raises:
        InputError: there is no such editor, or it does not let its layer be chosen.
    """
    known = make_editor(name).Options.model_fields
    if "layer" in known:
        return {"layer": layer}
    if "layers" in known:
        return {"layers": [layer]}
    raise InputError(
        f"The editor {name!r} does not let the layer be chosen that it edits, so layers cannot be compared with it."
    )


def bench_of(settings: Settings, layers: Sequence[int]) -> Bench:
    """The editors of the settings, their options checked.

    Raises:
        InputError: an unknown editor, or options that it does not have or allow, `layer` among them; every fault.
    """
    strange = [name for name in settings.options if name not in settings.methods]
    faults = [f"Options are given for {name!r}, which is not among the methods." for name in strange]
    methods = {name: dict(settings.options.get(name, {})) for name in settings.methods}
    faults += [
        f"{name}.{key} cannot be set: every layer is edited."
        for name in methods
        for key in _LAYERS
        if key in methods[name]
    ]
    seeds = tuple(settings.seed + number for number in range(settings.edit_seeds))
    bench = Bench(methods, tuple(layers), seeds)
    for name in methods:
        try:
            bench.editor(name, layers[0])
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return bench


@dataclass(frozen=True)
class Case:
    """A fact, what it is judged by, and the probabilities of that before any edit."""

    record: Record
    relation: str
    probes: Probes
    before: np.ndarray


def cases_of(model: Model, records: Sequence[Record], progress: Progress | None = None) -> list[Case]:
    """The facts as they stand before any edit.

    Raises:
        InputError: prompts that cannot be encoded; names the record.
    """
    found = []
    for done, record in enumerate(records):
        if progress:
            progress("before the edits", done, len(records))
        probes = probes_of(model, record)
        found.append(Case(record, relation_of(record), probes, probabilities(model, probes.asks)))
    if progress:
        progress("before the edits", len(records), len(records))
    return found


def edit_all(
    model: Model, cases: Sequence[Case], bench: Bench, folder: Path, progress: Progress | None = None
) -> pa.Table:
    """Every fact edited at every layer by every editor, one edit in the model at a time.

    The edits of a layer are kept in a file that is written anew after each fact, so that a run which was stopped goes
    on with the next fact. One editor is alive at a time, so what it knows of a layer takes memory once.

    An edit that fails is a row with its reason, unless nothing by its editor has worked yet: then it would fail for
    every fact.

    Args:
        model: the model, unedited; it is afterwards what it was.
        cases: the facts.
        bench: the editors.
        folder: of the files; those that are there already are gone on with.
        progress: called with (what, done, total).

    Returns:
        Rows of `EDITS`.

    Raises:
        InputError: an editor cannot edit this model.
        ResultsError: the disk refuses.
    """
    rows: list[dict[str, Any]] = []
    worked: set[str] = set()
    done, total = 0, len(bench.places) * len(cases)
    for name, layer in bench.places:
        path = folder / f"{name}-{layer:04d}.parquet"
        here = _stored(path)
        known = {row["fact"] for row in here}
        worked |= {row["editor"] for row in here if row["status"] == "ok"}
        editor = bench.editor(name, layer)
        for case in cases:
            if case.record.id not in known:
                here += _edits(model, case, editor, layer, bench.seeds, worked)
                write_table(path, pa.Table.from_pylist(here, schema=EDITS))
            done += 1
            if progress:
                progress("edits", done, total)
        rows += here
    return pa.Table.from_pylist(rows, schema=EDITS)


def _stored(path: Path) -> list[dict[str, Any]]:
    """The edits of a layer that are there already; none where there is no such file, or a damaged one."""
    if not path.is_file():
        return []
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return []
    return table.to_pylist() if table.schema.equals(EDITS) else []


def _edits(
    model: Model, case: Case, editor: Editor, layer: int, seeds: Sequence[int], worked: set[str]
) -> list[dict[str, Any]]:
    """The edits of one fact at one layer, one for each seed."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        head = {"fact": case.record.id, "relation": case.relation, "editor": editor.name, "layer": layer, "seed": seed}
        try:
            rows += [{**head, **row} for row in _one(model, case, editor, seed)]
            worked.add(editor.name)
        except InputError as error:
            if editor.name not in worked:
                raise
            rows += [{**head, **row} for row in _failed(case.probes, f"failed: {error.faults[0]}")]
    return rows


def _one(model: Model, case: Case, editor: Editor, seed: int) -> Iterator[dict[str, Any]]:
    edit = editor.compute(model, case.record.fact, seed=seed)
    norm = max(edit.norms(model).values(), default=0.0)
    with edit.applied(model):
        after = probabilities(model, case.probes.asks)
    for outcome, (value, pre, post, prompts) in judged(case.probes, case.before, after).items():
        finite = bool(np.isfinite(value))
        yield {
            "outcome": outcome, "value": value if finite else None, "before": pre, "after": post, "prompts": prompts,
            "relative_norm": norm, "status": "ok" if finite else "failed: the probability is no finite number",
        }  # fmt: skip


def _failed(probes: Probes, status: str) -> list[dict[str, Any]]:
    return [{"outcome": outcome, "status": status} for outcome in OUTCOMES if probes.sizes[outcome]]
