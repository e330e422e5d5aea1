"""A replication as data: what was published, which studies measure it again, and when the two agree."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engramscope.errors import StudyError, UnknownNameError
from engramscope.registry import nearest
from engramscope.replications._measures import MEASURES, parse_measure
from engramscope.replications._measures._base import Measure
from engramscope.study_file import StudyFile, parse_study

#: where a published value comes from
Tag = Literal["text", "plot", "derived", "secondhand"]
TAGS: Mapping[str, str] = {
    "text": "read in the text or a table",
    "plot": "read off a plot, about ±5 % of its axis",
    "derived": "follows from what is printed",
    "secondhand": "as others report it; not read in the paper",
}
#: the file that lists figures without an experiment
_WITHOUT = "_no_experiment.toml"
#: what `study_inputs` calls the single layers that it sets beside a sweep of windows
SINGLES = " (single layers)"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Given(_Section):
    """A fact that the published study asks for by name."""

    clean: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    correct: Annotated[list[str], Field(min_length=1)]


class FactsSection(_Section):
    """Facts that are not part of Engramscope and that the published study was made with."""

    #: `files`: the task `factual` draws its couples from them; `pairs`: they are the pairs
    into: Literal["files", "pairs"]
    #: which facts those are, as the end of the sentence "the published study used …"
    what: str = Field(min_length=1)


class QuickSection(_Section):
    """What `--quick` makes of the studies; never more than they have anyway."""

    limit: int = Field(default=16, ge=1)
    draws: int = Field(default=2, ge=1)
    resamples: int = Field(default=200, ge=100)
    check: int = Field(default=4, ge=0)


class RestoreSection(_Section):
    """What a view takes from the clean run."""

    site: Literal["q", "k", "v", "z", "pattern"]
    heads: Annotated[list[str], Field(min_length=1)]


class ViewSection(_Section):
    """Something that is measured on the pairs and the corruption of an arm, besides its sweeps."""

    arm: str
    #: `attention`: where heads look; `restored`: the metrics when heads of several layers are restored jointly
    kind: Literal["attention", "restored"]
    heads: list[str] = []
    targets: list[str] = []
    query: str = "last"
    restore: RestoreSection | None = None


class ValueSection(BaseModel):
    """A published value, and how it is measured again; the measure's own options stand beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(min_length=1)
    measure: str
    #: where in the source it stands
    where: str = Field(min_length=1)
    tag: Tag = "text"
    #: whether it takes part in the verdict on the whole
    counts: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The measure's own options, not yet validated."""
        return dict(self.model_extra or {})


class VerdictSection(_Section):
    """When the whole is reproduced."""

    #: the rule in words
    rule: str = Field(min_length=1)
    #: of the values that are sets or counts, so many must agree exactly; None: no such rule
    exact: int | None = Field(default=None, ge=1)


class ReplicationFile(_Section):
    """One table or figure, as read from a TOML file."""

    schema_: Literal[1] = Field(alias="schema")
    #: what it shows, in one line
    what: str = Field(min_length=1)
    #: the paper
    source: str = Field(min_length=1)
    #: its tables, figures and sections that are covered
    items: Annotated[list[str], Field(min_length=1)]
    #: the model that the values were published for, and other names of it
    model: str = Field(min_length=1)
    aliases: list[str] = []
    #: its number of layers: ranges of layers are scaled by it for other models
    layers: int = Field(ge=1)
    #: why the published model cannot be loaded by its name; then `instead` is taken where none is named
    unavailable: str = ""
    instead: str | None = None
    #: what all arms have in common, and each arm by its name: parts of a study file
    study: dict[str, Any] = {}
    arm: dict[str, dict[str, Any]] = {}
    view: dict[str, ViewSection] = {}
    facts: FactsSection | None = None
    given: list[Given] = []
    quick: QuickSection = QuickSection()
    value: Annotated[list[ValueSection], Field(min_length=1)]
    verdict: VerdictSection
    #: what differs from the published study in any case, and what else a reader should know
    deviations: list[str] = []
    notes: list[str] = []

    def study_of(self, arm: str, model: str) -> dict[str, Any]:
        """The study of an arm as plain data, as declared (not yet adapted to a model)."""
        whole = merged(self.study, self.arm[arm])
        section = {"name": model, **whole.pop("model", {})}
        return {"schema": 1, "name": arm, "seed": whole.pop("seed", 0), "model": section, **whole}


class Replication(BaseModel):
    """A replication file whose measures, arms and views have been checked.

    Attributes:
        name: of the file.
        file: its content.
        measures: one for each value, in order.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    name: str
    file: ReplicationFile
    measures: tuple[Measure, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms whose sweeps some value needs; others are there for their pairs only."""
        wanted = {arm for measure in self.measures for arm in measure.arms()}
        return tuple(name for name in self.file.arm if name in wanted)

    @property
    def views(self) -> tuple[str, ...]:
        """Views that some value needs."""
        wanted = {view for measure in self.measures for view in measure.views()}
        return tuple(name for name in self.file.view if name in wanted)


class WithoutExperiment(_Section):
    """A figure that shows no measurement."""

    item: str
    source: str
    reason: str


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`; tables are merged key by key, everything else is replaced."""
    whole = deepcopy(dict(base))
    for key, value in over.items():
        known = whole.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        whole[key] = merged(known, value) if both else deepcopy(value)  # pyright: ignore[reportArgumentType]
    return whole


def replication_names() -> tuple[str, ...]:
    """The names of all replications, sorted."""
    return tuple(sorted(name.removesuffix(".toml") for name in _texts() if not name.startswith("_")))


def without_experiment() -> tuple[WithoutExperiment, ...]:
    """Tables and figures of the covered papers that there is nothing to measure for, with the reason."""
    raw = tomllib.loads(_texts()[_WITHOUT])
    return tuple(WithoutExperiment.model_validate(item) for item in raw["no_experiment"])


def read_replication(name: str) -> Replication:
    """One replication by its name.

    Raises:
        UnknownNameError: no replication has this name; names the nearest ones.
        StudyError: the file is at fault; every fault of it.
    """
    if name not in replication_names():
        raise UnknownNameError(f"unknown replication {name!r}{nearest(name, replication_names())}")
    return parse_replication(tomllib.loads(_texts()[f"{name}.toml"]), name)


def parse_replication(raw: dict[str, Any], name: str) -> Replication:
    """Validate an already parsed replication: its keys, its studies, its measures and what they point at.

    Raises:
        StudyError: one sentence per fault.
    """
    try:
        file = ReplicationFile.model_validate(raw)
    except ValidationError as error:
        found = [_sentence(item, name) for item in error.errors(include_url=False)]
        raise StudyError(list(dict.fromkeys(found))) from None
    faults: list[str] = []
    studies: dict[str, StudyFile] = {}
    for arm in file.arm:
        try:
            studies[arm] = parse_study(file.study_of(arm, file.model), f"{name}, arm {arm!r}")
        except StudyError as error:
            faults += error.faults
    measures: list[Measure] = []
    for value in file.value:
        try:
            measures.append(parse_measure(value.measure, value.options, f"{name}, value {value.name!r}"))
        except (StudyError, UnknownNameError) as error:
            faults += [fault if fault.startswith(name) else f"{name}: {fault}" for fault in error.faults]
            continue
        faults += [f"{name}, value {value.name!r}: {fault}" for fault in _dangling(measures[-1], file, studies)]
    faults += [
        f"{name}, view {view!r}: there is no arm {section.arm!r}{nearest(section.arm, tuple(file.arm))}"
        for view, section in file.view.items()
        if section.arm not in file.arm
    ]
    if faults:
        raise StudyError(faults)
    return Replication(name=name, file=file, measures=tuple(measures))


def _dangling(measure: Measure, file: ReplicationFile, studies: Mapping[str, StudyFile]) -> Iterator[str]:
    """Arms, sweeps, metrics and views that a value points at and that are not there."""
    for view in measure.views():
        if view not in file.view:
            yield f"there is no view {view!r}{nearest(view, tuple(file.view))}"
    for arm, sweep, metric in measure.reads():
        if arm not in file.arm:
            yield f"there is no arm {arm!r}{nearest(arm, tuple(file.arm))}"
            continue
        study = studies.get(arm)
        if study is None:
            continue  # said already
        sweeps = tuple(one.name for one in study.sweep)
        known = (*sweeps, *(one.name + SINGLES for one in study.sweep if one.window > 1))
        if sweep and sweep not in known:
            yield f"arm {arm!r} has no sweep {sweep!r}{nearest(sweep, known)}"
        if sweep is None and len(sweeps) > 1:
            yield f"arm {arm!r} has several sweeps; name one with sweep = … ({', '.join(sweeps)})."
        if metric and metric not in study.metrics.names:
            yield f"arm {arm!r} does not measure {metric!r}{nearest(metric, tuple(study.metrics.names))}"


def _texts() -> dict[str, str]:
    """The TOML files of this package, by file name."""
    folder = files("engramscope.replications")
    return {item.name: item.read_text(encoding="utf-8") for item in folder.iterdir() if item.name.endswith(".toml")}


def _sentence(item: Any, where: str) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"{where}: unknown key {place!r}{nearest(str(key), _known_keys(parents))}"
    if item["type"] == "missing":
        return f"{where}: {place!r} is missing."
    shown = "" if isinstance(item["input"], dict | list) else f" (got {item['input']!r})"
    return f"{where}: {place or 'the file'}: {item['msg'].removeprefix('Value error, ')}{shown}."


def _known_keys(parents: list[int | str]) -> tuple[str, ...]:
    sections: dict[str, type[BaseModel]] = {
        "facts": FactsSection, "given": Given, "quick": QuickSection, "view": ViewSection, "value": ValueSection,
        "verdict": VerdictSection, "restore": RestoreSection,
    }  # fmt: skip
    section: type[BaseModel] = ReplicationFile
    for parent in parents:
        section = sections.get(str(parent), section)
    return tuple(field.alias or name for name, field in section.model_fields.items())


__all__ = [
    "MEASURES", "TAGS", "Replication", "ReplicationFile", "parse_replication", "read_replication",
    "replication_names", "without_experiment",
]  # fmt: skip
