"""The study file: what one experiment is, as the user declares it. A contract; see `docs/study.md`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engramscope.errors import StudyError
from engramscope.registry import nearest

Each = Literal["each"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model, and how it is held."""

    name: str = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    resident_gb: float | None = Field(default=None, gt=0)


class PairsSection(BaseModel):
    """Which pairs: a task, whose own options stand beside its name, or a file."""

    model_config = ConfigDict(extra="allow", frozen=True)
    task: str | None = None
    file: str | None = None
    format: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    #: only pairs whose clean prompt the model continues by a correct answer
    known: bool = False
    #: with `known`: fewer pairs than this are refused
    at_least: int = Field(default=20, ge=1)

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options, not yet validated."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one_source(self) -> PairsSection:
        if (self.task is None) == (self.file is None):
            raise ValueError('give exactly one of task = "…" and file = "…"')
        if "at_least" in self.model_fields_set and not self.known:
            raise ValueError("at_least counts the pairs that the model knows; it goes with known = true")
        if self.file is not None and self.options:
            unknown = next(iter(self.options))
            raise ValueError(f"unknown key {unknown!r}{nearest(unknown, tuple(type(self).model_fields))}")
        return self


class CorruptionSection(BaseModel):
    """How the corrupted run is made; the method's own options stand beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str = "str"

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, not yet validated."""
        return dict(self.model_extra or {})


class SweepSection(_Section):
    """A family of patches."""

    name: str = Field(min_length=1)
    site: str = Field(min_length=1)
    layers: Each | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = "each"
    heads: Literal["each", "all"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = "all"
    #: indices of the clean prompt, or roles and spans by name; not both in one sweep
    positions: (
        Literal["each", "all", "last"]
        | Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(strict=True)]], Field(min_length=1)]
    ) = "all"
    window: int = Field(default=1, ge=1)
    direction: Literal["denoise", "noise", "both"] = "denoise"
    #: causal tracing: what these modules add at the patched positions stays as it is in the unpatched run
    severed: Literal["mlp_out", "attn_out"] | None = None
    #: of two ways where the original's is a defect, the original's: severed values come from another draw
    as_published: bool = False
    #: path patching: the sweep's cells are senders, and only these see what they send ("9.6.q", "mlp.5", "logits")
    receivers: list[str] = []
    receiver_positions: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "all"
    mlps: Literal["live", "frozen"] = "live"

    @field_validator("receivers")
    @classmethod
    def _somebody_receives(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("nobody receives; name a receiver, or leave receivers out for an ordinary patch")
        return names


class MetricsSection(_Section):
    """What is measured."""

    names: Annotated[list[str], Field(min_length=1)] = ["logit_diff"]

    @field_validator("names")
    @classmethod
    def _no_repetition(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a metric is named twice")
        return names


class StatsSection(_Section):
    """How sure we are to be."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    #: chance allowed of any false detection in the whole study
    family_error: float = Field(default=0.01, gt=0.0, lt=0.5)
    resamples: int = Field(default=10_000, ge=100)
    cluster: str = "group"
    contrast: str | None = None
    interval: Literal["percentile", "bca"] = "bca"
    min_gap: float = Field(default=0.0, ge=0.0)


class RunSection(_Section):
    """How it is computed."""

    #: `traversal` passes through the model once for many runs, `reference` gives every run a forward of its own
    executor: Literal["traversal", "reference"] = "traversal"
    check: int = Field(default=16, ge=0)
    memory_gb: float = Field(default=4.0, gt=0)
    tf32: bool = False


class StudyFile(_Section):
    """One declared experiment, as read from a TOML file."""

    schema_: Literal[1] = Field(alias="schema")
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")
    seed: int = Field(default=0, ge=0)
    model: ModelSection
    pairs: PairsSection
    corruption: CorruptionSection = CorruptionSection()
    sweep: Annotated[list[SweepSection], Field(min_length=1)]
    metrics: MetricsSection = MetricsSection()
    stats: StatsSection = StatsSection()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _sweep_names_differ(self) -> StudyFile:
        names = [sweep.name for sweep in self.sweep]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two sweeps are called {', '.join(doubled)}; give each its own name")
        return self


def read_study(path: Path) -> StudyFile:
    """Read and validate a study file; every fault is named at once.

    Raises:
        StudyError: unreadable, no TOML, unknown keys (with the nearest known one), or values out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"There is no study file {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"The study file {str(path)!r} cannot be read: {error}.") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path.name} is not valid TOML: {error}.") from None
    return parse_study(raw, path.name)


def parse_study(raw: dict[str, Any], where: str = "study") -> StudyFile:
    """Validate an already parsed study; every fault is named at once.

    Raises:
        StudyError: one sentence per fault.
    """
    try:
        return StudyFile.model_validate(raw)
    except ValidationError as error:
        raise StudyError([_sentence(item, where) for item in _distinct(error)]) from None


def study_toml(raw: Mapping[str, Any]) -> str:
    """A study given as plain data, as the text of a study file: sections, lists of sections, and values.

    Raises:
        TypeError: a value that has no place in TOML (an error of the caller).
    """
    lines, sections = [], []
    for key, value in raw.items():
        if isinstance(value, Mapping):
            sections.append("\n".join([f"[{key}]", *_toml_lines(value)]))
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            sections += ["\n".join([f"[[{key}]]", *_toml_lines(item)]) for item in value]
        else:
            lines += _toml_lines({key: value})
    return "\n\n".join(["\n".join(lines), *sections]) + "\n"


def _toml_lines(section: Mapping[str, Any]) -> list[str]:
    # strings, numbers, booleans and lists of them are written alike in JSON and TOML
    # … but for one control character that TOML wants escaped
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        for key, value in section.items()
        if value is not None
    ]


def _distinct(error: ValidationError) -> list[Any]:
    # a union reports one error per branch; the first of a place is enough, and what lies deeper says it better
    seen: dict[tuple[Any, ...], Any] = {}
    for item in error.errors(include_url=False):
        place = tuple(part for part in item["loc"] if not _is_branch(part))
        seen.setdefault(place, {**item, "loc": place})
    return [
        item
        for place, item in seen.items()
        if not any(other[: len(place)] == place and len(other) > len(place) for other in seen)
    ]


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and ("[" in part or part in {"literal", "int", "str", "constrained-int"})


def _sentence(item: Any, where: str) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"{where}: unknown key {place!r}{nearest(str(key), _known_keys(parents))}"
    if item["type"] == "missing":
        return f"{where}: {place!r} is missing."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error" and item["loc"][-1] in ("layers", "heads", "positions"):
        message += ", or a list that is not empty"
    shown = (
        "" if isinstance(item["input"], dict | list) and len(str(item["input"])) > 60 else f" (got {item['input']!r})"
    )
    return f"{where}: {place or 'the study'}: {message}{shown}."


def _known_keys(parents: list[int | str]) -> tuple[str, ...]:
    sections: dict[str, type[BaseModel]] = {
        "model": ModelSection, "pairs": PairsSection, "sweep": SweepSection, "metrics": MetricsSection,
        "stats": StatsSection, "run": RunSection,
    }  # fmt: skip
    section = sections.get(str(parents[0]), StudyFile) if parents else StudyFile
    return tuple(field.alias or name for name, field in section.model_fields.items())
