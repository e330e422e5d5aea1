"""Everything that a study needs before a model runs, with every fault of it named at once."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engramscope import bundled
from engramscope.corruptions import corruption_names, make_corruption
from engramscope.corruptions._base import Corruption
from engramscope.errors import InputError, SiteError, StudyError, shortened
from engramscope.locate.cells import Cell, cells_of
from engramscope.locate.runs import places_touched
from engramscope.metrics import check_targets, get_metric, metric_names
from engramscope.metrics._base import Target
from engramscope.models.anatomy import Anatomy
from engramscope.models.load import load_tokenizer
from engramscope.models.site import is_module_path
from engramscope.pairs import Pair, PairSet, TokenizedPair, read_pairs
from engramscope.registry import nearest
from engramscope.results.schema import SINGLES
from engramscope.study_file import StudyFile, SweepSection, read_study
from engramscope.sweep_faults import Sizes, role_faults, site_faults, size_faults_of, tracing_faults
from engramscope.tasks import TASKS, make_pairs, task_names


@dataclass(frozen=True)
class Inputs:
    """A study as declared, with its pairs and its corruption.

    Attributes:
        study: the validated study.
        text: the study file, word for word.
        pairs: the pairs, limited as the study says.
        corruption: made with its options.
        sweeps: the declared sweeps, and for windows the single layers beside them.
        folder: where relative paths of the study start; that of its file.
    """

    study: StudyFile
    text: str
    pairs: PairSet
    corruption: Corruption
    sweeps: tuple[SweepSection, ...]
    folder: Path = Path()

    @property
    def model_name(self) -> str:
        """The study's model as `load_model` takes it."""
        return located(self.study.model.name, self.folder)

    @property
    def base_name(self) -> str:
        """The same of the model before training; "" where the study compares with none."""
        name, _ = base_of(self.corruption)
        return located(name, self.folder) if name else ""

    @property
    def singles(self) -> dict[str, str]:
        """For each sweep of windows the sweep that patches its layers one by one, in every other way alike."""
        found = {}
        for sweep in self.study.sweep:
            wanted = sweep.model_copy(update={"name": "", "window": 1, "layers": "each"})
            alike = [one.name for one in self.sweeps if one.model_copy(update={"name": ""}) == wanted]
            if sweep.window > 1 and alike:
                found[sweep.name] = alike[0]
        return found

    @property
    def resolved(self) -> dict[str, Any]:
        """The study with every default filled in, as plain data."""
        return self.study.model_dump(mode="json", by_alias=True)

    def fingerprints(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """What the results depend on, part by part: the study, the pairs, the model and the program.

        Args:
            model: `provenance.model_fingerprints`.
        """
        # how fast it is computed, and how much of it is checked, does not change what is found
        study = {key: value for key, value in self.resolved.items() if key != "run"}
        return {
            "study": study,
            "pairs": {pair.id: _hash(_plain(pair))[:16] for pair in self.pairs},
            **model,
            "engramscope": version("engramscope"),
        }

    def digest(self, model: Mapping[str, Any]) -> str:
        """Hash of everything that the results depend on; `model` as for `fingerprints`."""
        prints = self.fingerprints(model)
        # a mapping would hide the order of the pairs, and the order decides which rows come first
        return _hash([*prints.items(), list(prints["pairs"])])


def _plain(pair: Pair) -> list[Any]:
    spans = [sorted(dict(named).items()) for named in (pair.spans, pair.corrupted_spans, pair.labels)]
    return [pair.id, pair.clean, pair.corrupted, pair.correct, pair.incorrect, pair.group, *spans]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_inputs(path: Path) -> Inputs:
    """Read a study file and its pairs, and check every name in it.

    Raises:
        InputError: all faults that can be found without a model.
    """
    try:
        study = read_study(path)
    except StudyError as error:
        raise InputError([*error.faults, *_names_at_fault(path)]) from None
    return inputs_of(study, path.read_text(encoding="utf-8"), path.parent)


def _names_at_fault(path: Path) -> list[str]:
    """Names that nothing has, in a study that is at fault in other ways as well."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return []  # already said
    faults: list[str] = []
    for kind, known, name in _named(raw):
        if name not in known:
            faults.append(f"unknown {kind} {name!r}{nearest(name, known)}")
    for sweep in raw.get("sweep", []) if isinstance(raw.get("sweep"), list) else []:
        with suppress(ValueError):  # a sweep that is at fault in another way has been named
            faults += site_faults(SweepSection.model_validate(sweep))
    return list(dict.fromkeys(faults))


def _named(raw: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(kind, known names, name) of every name in an unchecked study."""
    sections = {key: raw[key] if isinstance(raw.get(key), dict) else {} for key in ("corruption", "pairs", "metrics")}
    names = sections["metrics"].get("names")
    found = [
        ("corruption", corruption_names(), sections["corruption"].get("method")),
        ("task", task_names(), sections["pairs"].get("task")),
        *(("metric", metric_names(), name) for name in (names if isinstance(names, list) else [])),
    ]
    yield from ((kind, known, name) for kind, known, name in found if isinstance(name, str))


def inputs_of(study: StudyFile, text: str, folder: Path, given: PairSet | None = None) -> Inputs:
    """The same for a study that is already parsed.

    Args:
        study: the study.
        text: its file, word for word.
        folder: where relative paths start.
        given: pairs to use instead of those that the study names.
    """
    faults: list[str] = []
    corruption = _collect(faults, lambda: make_corruption(study.corruption.method, study.corruption.options))
    for name in study.metrics.names:
        _collect(faults, lambda name=name: get_metric(name))
    faults += [fault for sweep in study.sweep for fault in site_faults(sweep)]
    if corruption is not None and corruption.level == "activation":
        faults += [
            f"Sweep {sweep.name!r}: direction {sweep.direction!r} needs a corrupted run, and corruption "
            f"{study.corruption.method!r} makes none: it writes values into the clean run. Use direction = \"noise\"."
            for sweep in study.sweep
            if sweep.direction != "noise"
        ]  # fmt: skip
    faults += [fault for sweep in study.sweep if corruption is not None for fault in tracing_faults(sweep, corruption)]
    if corruption is not None and corruption.level == "weights" and given is None and not base_of(corruption)[0]:
        faults.append('corruption: the method base_model needs the model before training: base = "gpt2".')
    pairs = given if given is not None else _collect(faults, lambda: _pairs(study, folder))
    if pairs is not None and not len(pairs):
        faults.append("There are no pairs: nothing could be patched.")
    faults += [] if not pairs else _label_faults(study, pairs)
    if faults or corruption is None or pairs is None:
        raise InputError(faults)
    return Inputs(study, text, pairs, corruption, _with_singles(study.sweep), folder)


def located(name: str, folder: Path) -> str:
    """The name of a model as `load_model` takes it: a model folder beside the study file comes first.

    A study and the models that it names can then be moved together. A bundled name stays what it is, and what is no
    model folder there is looked for in the working directory and on the hub.
    """
    beside = folder / name
    return str(beside) if name not in bundled.names() and (beside / "config.json").is_file() else name


def base_of(corruption: Corruption) -> tuple[str, str | None]:
    """Name and revision of the model before training that a corruption asks for; "" where it asks for none."""
    options = corruption.options.model_dump()
    return str(options.get("base") or ""), options.get("revision") or None


def check_against_model(
    inputs: Inputs,
    tokens: Sequence[TokenizedPair],
    anatomy: Anatomy,
    tokenizer: Any,
    site: Callable[[str, int | None], object] | None = None,
) -> None:
    """Layers, heads, positions, modules and answers that only a tokenizer and a model can judge.

    Args:
        inputs: the study.
        tokens: its pairs in tokens.
        anatomy: the model's sizes.
        tokenizer: for the messages.
        site: `Model.offers`, which knows what the model does not offer; without it that is not asked.

    Raises:
        InputError: all faults at once.
    """
    faults = [fault for sweep in inputs.study.sweep for fault in size_faults_of(sweep, anatomy)]
    faults += token_faults(inputs, tokens, tokenizer)
    if site is not None and not faults:
        faults += _unoffered(inputs.sweeps, anatomy, site)
    if faults:
        raise InputError(shortened(list(dict.fromkeys(faults))))


def token_faults(inputs: Inputs, tokens: Sequence[TokenizedPair], tokenizer: Any) -> list[str]:
    """Positions that no prompt has, and answers that a metric cannot score."""
    faults = [fault for sweep in inputs.study.sweep for fault in role_faults(sweep, tokens)]
    for name in inputs.study.metrics.names:
        metric = get_metric(name)
        for pair in tokens:
            faults += check_targets(metric, Target(pair.correct, pair.incorrect), pair.pair.id, tokenizer.decode)
    return faults


def size_faults(inputs: Inputs, sizes: Sizes, modules: Sequence[str] = ()) -> list[str]:
    """Layers, heads and modules that the model does not have, told from its configuration.

    Args:
        inputs: the study.
        sizes: number of layers and heads.
        modules: dotted paths of all modules; none where they are not known.
    """
    faults = [fault for sweep in inputs.study.sweep for fault in size_faults_of(sweep, sizes)]
    for sweep in inputs.study.sweep:
        path = sweep.site.replace("{layer}", "0")
        if modules and is_module_path(sweep.site) and path not in modules:
            hint = nearest(path, tuple(modules)).split(" Known:")[0]
            faults.append(f"Sweep {sweep.name!r}: the model has no module {path}{hint if hint != '.' else '.'}")
    return list(dict.fromkeys(faults))


def _unoffered(
    sweeps: Sequence[SweepSection], anatomy: Anatomy, site: Callable[[str, int | None], object]
) -> list[str]:
    """Sites and modules that this model does not offer, asked of the model itself."""
    faults = []
    for sweep in sweeps:
        try:
            for cell in cells_of(sweep.model_copy(update={"positions": "last"}), anatomy, ()):
                for place in places_touched(cell, anatomy.n_layers):
                    site(*place)
        except SiteError as error:
            faults += [f"Sweep {sweep.name!r}: {fault}" for fault in error.faults]
    return faults


def all_cells(inputs: Inputs, anatomy: Anatomy, tokens: Sequence[TokenizedPair]) -> dict[str, list[Cell]]:
    """The cells of every sweep, by the name of the sweep."""
    return {sweep.name: list(cells_of(sweep, anatomy, tokens)) for sweep in inputs.sweeps}


def _label_faults(study: StudyFile, pairs: PairSet) -> list[str]:
    """Labels that no pair has, and a contrast of other than two values."""
    labels = tuple(sorted({label for pair in pairs for label in pair.labels}))
    by, contrast, faults = study.stats.cluster, study.stats.contrast, []
    if by not in ("group", "pair", *labels):
        faults.append(f"stats.cluster: no pair has a label {by!r}{nearest(by, ('group', 'pair', *labels))}")
    if contrast is not None and contrast not in labels:
        hint = nearest(contrast, labels) if labels else "; no pair has any label."
        faults.append(f"stats.contrast: no pair has a label {contrast!r}{hint}")
    elif contrast is not None:
        values = sorted({pair.labels[contrast] for pair in pairs if contrast in pair.labels})
        if len(values) != 2:
            shown = ", ".join(map(repr, values[:10])) + (" and more" if len(values) > 10 else "")
            faults.append(
                f"stats.contrast: two kinds of pairs are compared, but the label {contrast!r} has "
                f"{len(values)} value{'s' if len(values) > 1 else ''} ({shown}); give it two."
            )
    return faults


def _pairs(study: StudyFile, folder: Path) -> PairSet:
    section = study.pairs
    if section.task is not None:
        task = TASKS.get(section.task)
        known = (*task.Options.model_fields, *type(section).model_fields)
        unknown = [name for name in section.options if name not in known]
        if unknown:
            where = f"pairs: the task {section.task!r} has no option"
            raise StudyError([f"{where} {name!r}{nearest(name, known)}" for name in unknown])
        model = study.model
        name = located(model.name, folder)
        tokenizer = (
            load_tokenizer(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
            if task.needs_tokenizer
            else None
        )
        return make_pairs(section.task, section.limit, study.seed, tokenizer, folder, **section.options)
    assert section.file is not None
    return read_pairs(folder / section.file, section.format).limit(section.limit)


def _collect(faults: list[str], make: Any) -> Any:
    try:
        return make()
    except InputError as error:
        faults.extend(error.faults)
        return None


def _with_singles(sweeps: Sequence[SweepSection]) -> tuple[SweepSection, ...]:
    """Windows inflate effects: beside each sweep of windows its single layers are run as well."""
    added: list[SweepSection] = []
    for sweep in sweeps:
        name = sweep.name + SINGLES
        while name in {other.name for other in (*sweeps, *added)}:
            name += "'"  # the user's own sweep of that name is another one
        single = sweep.model_copy(update={"name": name, "window": 1, "layers": "each"})
        alike = [s for s in sweeps if s.model_copy(update={"name": single.name}) == single]
        if sweep.window > 1 and not alike:
            added.append(single)
    return (*sweeps, *added)
