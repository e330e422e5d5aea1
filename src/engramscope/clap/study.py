"""The file of a whole study, from corpus to report, as checked data."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engramscope.errors import StudyError
from engramscope.registry import nearest

_Even = Annotated[int, Field(ge=0, multiple_of=2)]
_Names = Annotated[tuple[str, ...], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSection(_Section):
    """Where the abstracts come from: a search of PubMed, or a file or folder that is there already."""

    query: str = ""
    most: Annotated[int, Field(ge=1)] = 10_000
    file: str = ""
    terms: _Names = ("epilepsy", "EEG", "seizure")
    email: str = ""
    endpoint: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSection:
        if not (self.query or self.file):
            raise ValueError('give query = "…" for PubMed, or file = "…"')
        return self


class ModelSection(_Section):
    """The model before training.

    With `random_weights` its configuration and tokenizer are taken, and weights are drawn from the seed.
    """

    name: str = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    random_weights: bool = False


class FinetuneSection(_Section):
    """How it is trained; of several presets the one with the lowest held-out loss is studied."""

    presets: _Names = ("clap-1", "clap-2")
    settings: tuple[str, ...] = ()


class QuestionsSection(_Section):
    """How many questions are proposed from the corpus, or files with questions of one's own."""

    definitional: _Even = 40
    associative: _Even = 40
    min_documents: Annotated[int, Field(ge=1)] = 3
    prompts: str = ""
    answers: str = ""


class StatisticsSection(_Section):
    """Of all studies."""

    resamples: Annotated[int, Field(ge=100)] = 10_000


class QuickSection(_Section):
    """What is taken instead for a try of minutes."""

    model: str = "mini"
    abstracts: Annotated[int, Field(ge=20)] = 300
    presets: _Names = ("clap-2",)
    settings: tuple[str, ...] = ()
    questions: _Even = 24
    min_documents: Annotated[int, Field(ge=1)] = 1
    resamples: Annotated[int, Field(ge=100)] = 2_000


class ClapStudy(_Section):
    """One study from corpus to report."""

    schema_: Literal[1] = Field(alias="schema")
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    corpus: CorpusSection
    model: ModelSection
    finetune: FinetuneSection = FinetuneSection()
    questions: QuestionsSection = QuestionsSection()
    statistics: StatisticsSection = StatisticsSection()
    quick: QuickSection = QuickSection()

    def quickened(self) -> ClapStudy:
        """The same study in minutes: a small model, few abstracts, few epochs."""
        quick = self.quick
        most = min(quick.abstracts, self.corpus.most)
        return self.model_copy(
            update={
                "corpus": self.corpus.model_copy(update={"most": most}),
                "model": self.model.model_copy(update={"name": quick.model, "random_weights": False}),
                "finetune": FinetuneSection(presets=quick.presets, settings=(*quick.settings, f"limit={most}")),
                "questions": self.questions.model_copy(
                    update={
                        "definitional": quick.questions,
                        "associative": quick.questions,
                        "min_documents": quick.min_documents,
                    }
                ),
                "statistics": StatisticsSection(resamples=quick.resamples),
            }
        )

    def identity(self) -> dict[str, Any]:
        """What the results depend on, as plain data."""
        return self.model_dump(
            mode="json", by_alias=True, exclude={"quick": True, "model": {"device"}, "corpus": {"email", "endpoint"}}
        )


def read_clap_study(path: Path) -> ClapStudy:
    """Read and validate the file of a whole study; every fault is named at once.

    Raises:
        StudyError: unreadable, no TOML, unknown keys (with the nearest known one), or values out of range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"There is no study file {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"The study file {str(path)!r} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path.name} is not valid TOML: {error}.") from None
    if "sweep" in raw:
        raise StudyError(f"{path.name} has sweeps, so it is a study of one model: `engramscope run` runs it.")
    try:
        return ClapStudy.model_validate(raw)
    except ValidationError as error:
        raise StudyError([_sentence(item, path.name) for item in error.errors(include_url=False)]) from None


def _sentence(item: Any, where: str) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        sections = {name: info.annotation for name, info in ClapStudy.model_fields.items()}
        section = sections.get(str(parents[0])) if parents else ClapStudy
        fields = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
        known = tuple(info.alias or name for name, info in fields.items())
        return f"{where}: unknown key {place!r}{nearest(str(key), known)}"
    if item["type"] == "missing":
        return f"{where}: {place!r} is missing."
    shown = "" if isinstance(item["input"], dict | list) else f" (got {item['input']!r})"
    return f"{where}: {place or 'the study'}: {item['msg'].removeprefix('Value error, ')}{shown}."
