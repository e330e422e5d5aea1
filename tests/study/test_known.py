"""`pairs.known`: what the model does not know is left out of everything, counted, and refused where little is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from engramscope import make_pairs, run_study
from engramscope.errors import InputError
from engramscope.results.read import read_manifest
from tests.tiny_study import write_pairs


def _study(folder: Path, least: int) -> Path:
    pairs = list(make_pairs("clap_epilepsy", 8))
    rows = [
        {
            "id": pair.id, "clean": pair.clean, "corrupted": pair.corrupted, "group": pair.group,
            # the two wrong ones ask for what the model does not say
            "correct": list(pair.correct if number not in (2, 5) else pair.incorrect),
            "incorrect": list(pair.incorrect if number not in (2, 5) else pair.correct),
        }
        for number, pair in enumerate(pairs)
    ]  # fmt: skip
    write_pairs(folder / "pairs.jsonl", rows)
    path = folder / "study.toml"
    path.write_text(
        'schema = 1\nname = "known"\nmodel = { name = "mini" }\nstats = { resamples = 100 }\n'
        f'pairs = {{ file = "pairs.jsonl", known = true, at_least = {least} }}\n'
        '[[sweep]]\nname = "mlp"\nsite = "mlp_out"\n',
        encoding="utf-8",
    )
    return path


def test_pairs_that_the_model_does_not_know_enter_nothing(tmp_path: Path) -> None:
    result = run_study(_study(tmp_path, 6), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["known"] == {"kept": 6, "of": 8}
    left_out = {item["pair"]: item["reason"] for item in manifest["excluded"]}
    names = [pair.id for pair in make_pairs("clap_epilepsy", 8)]
    assert set(left_out) == {names[2], names[5]}
    said = make_pairs("clap_epilepsy", 8).pairs[2].correct[0]
    assert said.strip()[:3] in left_out[names[2]]
    assert set(result.effects()["pair"]) == set(names) - set(left_out)
    assert result.summary()["n"].eq(6).all()
    (found,) = [item for item in manifest["audit"] if item["check"] == "known_facts"]
    assert found["severity"] == "note"
    assert "2 pairs of 8" in found["message"]
    assert not [item for item in manifest["audit"] if item["check"] == "gap" and item["severity"] == "warning"]


def test_too_few_known_pairs_are_refused_with_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run_study(_study(tmp_path, 7), tmp_path / "out")
    text = "\n".join(caught.value.faults)
    assert "6 of the 8 pairs" in text
    assert "at least 7" in text
    assert not (tmp_path / "out").exists()


def test_a_least_number_without_the_filter_is_refused(tmp_path: Path) -> None:
    path = _study(tmp_path, 6)
    path.write_text(path.read_text(encoding="utf-8").replace("known = true, ", ""), encoding="utf-8")
    with pytest.raises(InputError, match="known = true"):
        run_study(path, tmp_path / "out")


def test_a_span_that_no_pair_has_is_said_once_with_counts(tmp_path: Path) -> None:
    path = _study(tmp_path, 6)
    text = path.read_text(encoding="utf-8").replace("[[sweep]]", 'corruption = { method = "gaussian" }\n[[sweep]]')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run_study(path, tmp_path / "out")
    (fault,) = caught.value.faults
    assert "'subject'" in fault
    assert fault.endswith("The same holds for all 8 pairs.")
