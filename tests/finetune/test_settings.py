"""Presets, `--set`, and what is said when they are wrong."""

from __future__ import annotations

import pytest

from engramscope.errors import InputError
from engramscope.finetune import preset_names, resolve_settings

#: the tables of the paper, typed from it
CLAP_1 = {
    "learning_rate": 5e-5, "weight_decay": 0.01, "train_batch": 8, "eval_batch": 2, "accumulation": 4,
    "warmup_steps": 500, "epochs": 30, "patience": 3, "precision": "fp16", "chunk": 512, "validation": 0.2, "seed": 42,
}  # fmt: skip
CLAP_2 = {**CLAP_1, "learning_rate": 2e-5, "weight_decay": 0.1, "epochs": 10, "patience": 5, "precision": "fp32"}


@pytest.mark.parametrize(("name", "values"), [("clap-1", CLAP_1), ("clap-2", CLAP_2)])
def test_presets_resolve_to_the_values_of_the_paper(name: str, values: dict[str, object]) -> None:
    found = resolve_settings(name).model_dump()
    assert {key: found[key] for key in values} == values
    assert found["preset"] == name


@pytest.mark.parametrize("text", ["preset=clap-2", "preset = nonsense"])
def test_a_preset_is_no_single_setting(text: str) -> None:
    with pytest.raises(InputError, match="choose it with --preset"):
        resolve_settings("clap-1", [text])


def test_a_preset_is_a_file() -> None:
    assert preset_names() == ("clap-1", "clap-2")


def test_the_later_value_wins() -> None:
    found = resolve_settings("clap-1", ["learning_rate=1e-4", "epochs = 3", "epochs=4", "precision=bf16"], limit=9)
    assert (found.learning_rate, found.epochs, found.precision, found.limit) == (1e-4, 4, "bf16", 9)
    assert found.weight_decay == 0.01


def test_names_booleans_and_lora() -> None:
    sets = ["lora.targets=c_attn, c_proj", "lora.rank=4", "terms=EEG,status epilepticus", "keep_checkpoints=true"]
    found = resolve_settings("", sets, lora={})
    assert found.lora is not None
    assert (found.lora.targets, found.lora.rank, found.lora.alpha) == (("c_attn", "c_proj"), 4, 16.0)
    assert found.terms == ("EEG", "status epilepticus")
    assert found.keep_checkpoints is True


def test_every_fault_is_said_at_once() -> None:
    sets = ["learning_rat=1", "epochs=0", "precision=int8", "chunk", "lora.rank=2", "model.x=1"]
    with pytest.raises(InputError) as caught:
        resolve_settings("clap-3", sets)
    said = "\n".join(caught.value.faults)
    for part in (
        "unknown preset 'clap-3'; did you mean 'clap-",
        "unknown setting 'learning_rat'; did you mean 'learning_rate'?",
        "setting 'epochs'",
        "(got 0)",
        "setting 'precision'",
        "(got 'int8')",
        "'chunk' is not of the form key=value",
        "give --lora as well",
        "unknown setting 'model.x'",
    ):
        assert part in said, part
    assert len(caught.value.faults) == 7


def test_what_does_not_go_together() -> None:
    with pytest.raises(InputError, match="do not go together"):
        resolve_settings("", only=["a"], lora={})
    with pytest.raises(InputError, match="needs a base that exists"):
        resolve_settings("", lora={}, merge=False, random_weights=True)
    with pytest.raises(InputError, match=r"lora\.rank"):
        resolve_settings("", ["lora.rank=0"], lora={})
    with pytest.raises(InputError, match=r"unknown setting 'lora\.ranks'; did you mean 'lora\.rank'"):
        resolve_settings("", ["lora.ranks=2"], lora={})
