"""The defaults for the bundled models: new facts are stated, in other wordings too, and neighbours keep theirs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from engramscope.edit.catalogue import make_editor
from engramscope.edit.storage import load_edit, save_edit
from engramscope.edit.tokens import batches, encode, logits_of, rows_of, target_nll
from engramscope.models.load import load_model
from engramscope.models.model import Model
from engramscope.records.bundled import bundled_records
from engramscope.records.record import Record

MODELS = ("mini", "mini-llama")


@cache
def bundled(name: str) -> Model:
    return load_model(name, device="cpu", check=False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@torch.no_grad()
def nlls(model: Model, prompts: list[str], targets: list[str]) -> list[float]:
    asks = encode(model, prompts, targets)
    found = [0.0] * len(asks)
    for chosen in batches(asks, 8192):
        rows = rows_of([asks[index] for index in chosen], model.device)
        for index, value in zip(chosen, target_nll(logits_of(model, rows), rows).tolist(), strict=True):
            found[index] = value
    return found


def shares(model: Model, record: Record) -> tuple[float, float, float]:
    """Efficacy, paraphrase and neighbourhood success of one record, 0 to 1."""
    fact = record.fact
    assert fact.true is not None
    prompts = [fact.prompt, *record.paraphrases]
    new, old = nlls(model, prompts, [fact.target] * len(prompts)), nlls(model, prompts, [fact.true] * len(prompts))
    said = [a < b for a, b in zip(new, old, strict=True)]
    near = [probe.prompt for probe in record.neighbourhood]
    true = nlls(model, near, [probe.true for probe in record.neighbourhood])
    other = nlls(model, near, [probe.new for probe in record.neighbourhood])
    stay = [a < b for a, b in zip(true, other, strict=True)]
    return float(said[0]), sum(said[1:]) / len(said[1:]), sum(stay) / len(stay)


def means(model: Model, method: str, records: tuple[Record, ...], cache: Path) -> tuple[float, float, float]:
    """One edit for each record, each on the unedited model, in percent."""
    editor, found = make_editor(method, {"cache": cache}), []
    for record in records:
        with editor.compute(model, record.fact).applied(model):
            found.append(shares(model, record))
    efficacy, paraphrase, neighbourhood = zip(*found, strict=True)
    return tuple(100 * sum(values) / len(values) for values in (efficacy, paraphrase, neighbourhood))  # type: ignore[return-value]


@pytest.mark.parametrize("name", MODELS)
def test_a_few_facts_are_rewritten_and_their_neighbours_stay(name: str, kept: Path, tmp_path: Path) -> None:
    model, records = bundled(name), bundled_records("train").records[:3]
    efficacy, paraphrase, neighbourhood = means(model, "rome", records, kept)
    assert efficacy == 100.0
    assert paraphrase >= 60.0
    assert neighbourhood >= 80.0
    edit = make_editor("rome", {"cache": kept}).compute(model, records[0].fact)
    assert (edit.settings["layer"], edit.settings["token"]) == (0, "last")
    assert all(entry["stated"] for entry in edit.diagnostics["facts"])
    save_edit(edit, tmp_path / "edit.safetensors")
    again = load_edit(tmp_path / "edit.safetensors")
    with again.applied(model):
        assert shares(model, records[0])[0] == 1.0
    assert shares(model, records[0])[0] == 0.0


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_ten_facts_at_once(method: str, kept: Path) -> None:
    model, records = bundled("mini"), bundled_records("train").records[:10]
    edit = make_editor(method, {"cache": kept}).compute(model, [record.fact for record in records])
    assert all(entry["stated"] for entry in edit.diagnostics["facts"])
    with edit.applied(model):
        found = [shares(model, record) for record in records]
    assert [one[0] for one in found] == [1.0] * 10
    assert sum(one[1] for one in found) >= 7.0
    assert sum(one[2] for one in found) >= 8.5


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_hundred_records_as_the_defaults_were_chosen_for(name: str, kept: Path) -> None:
    model, records = bundled(name), bundled_records("test").records[:200]
    before = [shares(model, record)[2] for record in records]
    efficacy, paraphrase, neighbourhood = means(model, "rome", records, kept)
    assert efficacy >= 99.0
    assert paraphrase >= 85.0
    assert 100 * sum(before) / len(before) - neighbourhood <= 10.0
