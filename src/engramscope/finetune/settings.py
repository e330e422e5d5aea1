"""The settings of a fine-tuning: one checked model, presets that are files, and `key=value` beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engramscope.errors import InputError, UnknownNameError
from engramscope.registry import nearest

_FROZEN = ConfigDict(frozen=True, extra="forbid")
#: settings that name what is done once, not what is learned: they may differ when a run goes on
NO_MATTER = frozenset({"device", "keep_checkpoints", "save_minutes", "save_steps", "tokenizer_processes"})
#: settings that are lists of names, given with commas
_LISTS = frozenset({"terms", "only", "targets"})
_Names = tuple[Annotated[str, Field(min_length=1)], ...]


class LoraSettings(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) instead of the weights themselves.

    Attributes:
        rank: of each adapter.
        alpha: the update is scaled by alpha / rank.
        dropout: in front of each adapter while training.
        targets: names of the linear modules that get one; () takes what peft knows for the model type, or all.
    """

    model_config = _FROZEN

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: _Names = ()


class Settings(BaseModel):
    """Everything a fine-tuning can be told; without a preset the values of `clap-1`, in full precision.

    Attributes:
        learning_rate: reached after the warm-up, and constant from then on.
        weight_decay: of AdamW, on matrices only (not on biases and norms).
        train_batch, eval_batch: chunks per process and step; `accumulation` such batches make one optimiser step.
        warmup_steps: optimiser steps over which the rate rises linearly from 0.
        epochs: at most; fewer where validation loss has not fallen for `patience` epochs (0: never stop early).
        precision: fp32, fp16 (mixed, on CUDA only) or bf16 (mixed). Validation is always computed in fp32.
        chunk: tokens; longer documents are cut into several chunks, shorter models get shorter ones.
        pad_to: pad a batch to its longest chunk, or always to `chunk`; the loss is the same.
        validation: share of the documents that is held out.
        seed: of the split, the order of the chunks, dropout and random weights.
        text: what of a document is learned.
        end_of_text: put the tokenizer's end-of-text token after each document.
        max_grad_norm: the gradient is clipped to this norm; 0 never clips.
        terms: key terms by which the split is stratified.
        limit: a random sample of so many documents (None: all).
        only: train only the parameters of these modules; everything else stays as it is.
        lora: adapters instead of weights (None: weights).
        merge: fold the adapters into the weights at the end.
        random_weights: take the configuration and tokenizer of the model, and begin from random weights.
        device: cpu, cuda, or auto.
        processes: that train side by side, one per GPU (or over the CPU's cores).
        tokenizer_processes: that tokenise.
        save_minutes, save_steps: a checkpoint in the middle of an epoch after so much (0: never).
        keep_checkpoints: leave the best and the last checkpoint in the folder.
        deterministic: refuse operations of the GPU that differ between runs.
    """

    model_config = _FROZEN

    preset: str = ""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    train_batch: Annotated[int, Field(ge=1)] = 8
    eval_batch: Annotated[int, Field(ge=1)] = 2
    accumulation: Annotated[int, Field(ge=1)] = 4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    epochs: Annotated[int, Field(ge=1)] = 30
    patience: Annotated[int, Field(ge=0)] = 3
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    chunk: Annotated[int, Field(ge=2)] = 512
    pad_to: Literal["longest", "chunk"] = "longest"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    text: Literal["abstract", "title+abstract"] = "abstract"
    end_of_text: bool = True
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    terms: _Names = ("epilepsy", "EEG", "seizure")
    limit: Annotated[int, Field(ge=2)] | None = None
    only: _Names = ()
    lora: LoraSettings | None = None
    merge: bool = True
    random_weights: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[int, Field(ge=1)] = 1
    tokenizer_processes: Annotated[int, Field(ge=1)] = 4
    save_minutes: Annotated[float, Field(ge=0)] = 10.0
    save_steps: Annotated[int, Field(ge=0)] = 0
    keep_checkpoints: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.lora is not None and self.only:
            raise ValueError("--only and LoRA do not go together; name the modules in lora.targets instead")
        if self.lora is not None and not self.merge and self.random_weights:
            raise ValueError("an adapter that is not merged needs a base that exists; leave --random-weights out")
        return self

    def what_matters(self) -> dict[str, Any]:
        """The settings on which the trained weights depend, as plain values."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in NO_MATTER}


def preset_names() -> tuple[str, ...]:
    """Names of the presets: the files of `presets/`."""
    folder = resources.files("engramscope.finetune").joinpath("presets")
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def preset(name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        UnknownNameError: no such preset; names the nearest one.
    """
    if name not in preset_names():
        raise UnknownNameError(f"unknown preset {name!r}{nearest(name, preset_names())}")
    file = resources.files("engramscope.finetune").joinpath("presets", f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def resolve_settings(preset_name: str = "", sets: Sequence[str] = (), **given: Any) -> Settings:
    """A preset, then what was given by name, then every `key=value`; the later one wins.

    Args:
        preset_name: of `preset_names()`, or "" for the defaults.
        sets: "learning_rate=1e-4", "lora.rank=4"; a value is read as TOML, and as text where it is none.
        **given: fields of `Settings`.

    Raises:
        InputError: every fault at once: unknown preset or setting (with the nearest one), wrong values.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    if preset_name:
        try:
            values = {"preset": preset_name, **preset(preset_name)}
        except UnknownNameError as error:
            faults += error.faults
    values |= given
    for text in sets:
        faults += _set_one(values, text)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        # a value out of the range of a type that also may be absent is said twice
        faults += dict.fromkeys(_sentence(item) for item in error.errors(include_url=False))
        settings = Settings()
    if faults:
        raise InputError(faults)
    return settings


def _set_one(values: dict[str, Any], text: str) -> list[str]:
    """Put one `key=value` into `values`; what is wrong with its form."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        return [f"--set {text!r} is not of the form key=value, for example --set epochs=3."]
    if key == "preset":
        return [f"--set {text!r}: a preset is no single setting; choose it with --preset."]
    head, dot, tail = key.partition(".")
    if not dot:
        values[key] = _value(raw, key)
        return []
    if head != "lora":
        return [f"unknown setting {key!r}{nearest(key, known_keys())}"]
    if values.get("lora") is None:
        return [f"--set {key} is a setting of LoRA; give --lora as well."]
    inner = values["lora"]
    values["lora"] = {**(inner.model_dump() if isinstance(inner, BaseModel) else inner),
                      tail: _value(raw, tail)}  # fmt: skip
    return []


def _value(raw: str, key: str) -> Any:
    if key in _LISTS and not raw.startswith("["):
        return [part.strip() for part in raw.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def known_keys() -> tuple[str, ...]:
    """Every key that `--set` takes."""
    own = [name for name in Settings.model_fields if name not in ("lora", "preset")]
    return tuple(own + [f"lora.{name}" for name in LoraSettings.model_fields])


def _sentence(item: Mapping[str, Any] | Any) -> str:
    place = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
    message = str(item["msg"]).removeprefix("Value error, ")
    if not place:
        return f"{message}."
    if item["type"] == "extra_forbidden":
        return f"unknown setting {place!r}{nearest(place, known_keys())}"
    wanted = message[:1].lower() + message[1:]
    return f"setting {place!r}: {wanted.removeprefix('input ')} (got {item['input']!r})."
