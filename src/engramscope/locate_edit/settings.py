"""What is traced and edited, and how; checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engramscope.errors import InputError

Site = Literal["mlp_out", "resid_post"]
Corruption = Literal["gaussian", "str"]

#: both metrics are read from the same runs
METRICS = ("prob", "logit_diff")
#: the tokens over which the largest effect of a layer is taken
TOKENS = ("any", "subject_last")
OUTCOMES = ("rewrite", "paraphrase", "neighbourhood")


class Settings(BaseModel):
    """The settings of a comparison of tracing and editing.

    Attributes:
        facts: at most so many facts that the model states right.
        methods: editors by name, each used at every layer.
        layers: layers that are edited; None for each.
        options: options of single editors, {"ft": {"steps": 10}}; `layer` is set here.
        sites: what tracing restores: "mlp_out" in windows of layers, "resid_post" (the residual stream) layer by layer.
        windows: widths of the windows of MLP layers; 5 as in the published analysis, and single layers beside it,
            because windows inflate effects.
        corruptions: how the corrupted run is made.
        sigma: factor of the noise, in standard deviations of the subjects' embeddings.
        draws: noise draws of each fact; the analysis uses their mean, and is repeated for each.
        edit_seeds: edits of each fact and layer, with the seeds seed, seed + 1, …; the analysis uses their mean.
        cluster: what makes facts dependent: each stands for itself, or those of one relation belong together.
        confidence: of all intervals.
        resamples: of bootstrap and permutation; more where there are many analyses to correct for.
        seed: of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: Annotated[int, Field(ge=3)] = 40
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("rome", "ft")
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    options: Mapping[str, Mapping[str, Any]] = {}
    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = ("mlp_out",)
    windows: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (5, 1)
    corruptions: Annotated[tuple[Corruption, ...], Field(min_length=1)] = ("gaussian", "str")
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    draws: Annotated[int, Field(ge=1)] = 3
    edit_seeds: Annotated[int, Field(ge=1)] = 1
    cluster: Literal["fact", "relation"] = "fact"
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 2000
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("methods", "layers", "sites", "windows", "corruptions")
    @classmethod
    def _no_repetition(cls, given: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if given is not None and len(set(given)) < len(given):
            raise ValueError("something is named twice")
        return given


def settings_of(**given: Any) -> Settings:
    """Settings from plain values.

    Raises:
        InputError: a sentence for each value that cannot be.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InputError([_sentence(item) for item in error.errors(include_url=False)]) from None


def _sentence(item: Any) -> str:
    where = str(item["loc"][0]) if item["loc"] else "settings"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]} (got {item['input']!r})."
