"""Severed causal tracing gives what two plain passes give, with one draw of the noise or, as published, with two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from engramscope import patch
from engramscope.errors import InputError
from engramscope.locate.cells import cells_of
from engramscope.locate.experiment import set_up
from engramscope.locate.runs import CellRun, swap_run
from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from engramscope.study_file import SweepSection
from tests.locate.plain_paths import PlainPaths
from tests.tiny_models import tiny_hf
from tests.tiny_study import pair_rows, tokenizer

FAMILIES = ("gpt2", "llama", "gpt_neo", "gemma2", "gpt_neox")
NOISE = {"draws": 3, "sigma": 2.0}


def _model(family: str) -> Model:
    words = tokenizer()
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)).double(), words, name=family)


def _pairs(count: int = 2) -> PairSet:
    keys = ("id", "clean", "corrupted", "correct", "incorrect", "group", "spans", "corrupted_spans")
    rows = [{key: row[key] for key in keys} for row in pair_rows(count)]
    return PairSet(tuple(Pair(**_as_tuples(row)) for row in rows), "rows")


def _as_tuples(row: dict[str, Any]) -> dict[str, Any]:
    spans = {key: {name: tuple(ends) for name, ends in row[key].items()} for key in ("spans", "corrupted_spans")}
    return {**row, **spans, "correct": tuple(row["correct"]), "incorrect": tuple(row["incorrect"])}


def _adding(draw: Any) -> Any:
    def add(value: Tensor) -> Tensor:
        new = value.clone()
        new[:, list(draw.noise.positions)] += draw.noise.values.to(value)
        return new

    return add


@pytest.mark.parametrize("other_draw", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_severing_is_two_plain_passes(family: str, other_draw: bool) -> None:
    model = _model(family)
    corruption_options = {**NOISE, "span": "subject"}
    from engramscope.corruptions import make_corruption

    experiment = set_up(model, _pairs(), make_corruption("gaussian", corruption_options), "gaussian", ["logit_diff"])
    plain = PlainPaths(family, model.hf, model.anatomy)
    pair = experiment.prepared[1]
    tokens, answers = list(pair.tokens.clean.ids), (pair.tokens.correct[0][0], pair.tokens.incorrect[0][0])
    at = list(pair.tokens.clean.spans["subject"][-1:])
    for module in ("mlp_out", "attn_out"):
        sweep = SweepSection(
            name=module, site="resid_post", positions=["subject_last"], severed=module, as_published=other_draw
        )  # type: ignore[arg-type]
        cells = list(cells_of(sweep, model.anatomy, [one.tokens for one in experiment.prepared]))
        (chunk,) = experiment.chunks(cells, "x")
        found = experiment.run(chunk)
        for row, (name, layer, seed) in enumerate(zip(found["pair"], found["layer"], found["seed"], strict=True)):
            if name != pair.id:
                continue
            noise = _adding(pair.draws[seed])
            frozen = _adding(pair.draws[(seed + 1) % 3]) if other_draw else noise
            logits = plain.severed(noise, frozen, tokens, tokens, layer, at, module)[-1]
            wanted = float(logits[answers[0]] - logits[answers[1]])
            assert found["patched"][row] == pytest.approx(wanted, abs=1e-5 if family == "gpt_neo" else 1e-6)
            assert found["cut"][row] is False


def test_severing_changes_the_curve_and_the_top_layer_has_nothing_to_sever() -> None:
    model, pairs = _model("gpt2"), _pairs(4)
    options = {**NOISE, "span": "subject"}

    def curve(severed: Any) -> np.ndarray:
        result = patch(
            model, pairs, "resid_post", positions=["subject_last"], severed=severed, corruption="gaussian",
            options=options, metrics=["logit_diff"], resamples=100,
        )  # fmt: skip
        return result.effects.sort_values(["layer", "pair", "seed"])["patched"].to_numpy().reshape(3, -1)

    plain, mlp, attention = curve(None), curve("mlp_out"), curve("attn_out")
    assert np.abs(plain[:2] - mlp[:2]).max() > 1e-3
    assert np.abs(plain[:2] - attention[:2]).max() > 1e-3
    np.testing.assert_allclose(plain[2], mlp[2], atol=1e-9)
    np.testing.assert_allclose(plain[2], attention[2], atol=1e-9)


def test_windows_of_states_are_severed_above_their_lowest_layer() -> None:
    model = _model("gpt2")
    experiment = set_up(model, _pairs(), "str", "str", ["logit_diff"])
    sweep = SweepSection(
        name="w", site="resid_pre", positions=["subject_last"], severed="mlp_out", window=2, layers=[1]
    )
    (cell,) = cells_of(sweep, model.anatomy, [one.tokens for one in experiment.prepared])
    made = swap_run(cell, experiment.prepared[0], experiment.prepared[0].draws[0], model.anatomy, (), "run")
    assert isinstance(made, CellRun)
    places = [(one.site, one.layer) for one in made.run.patches]
    assert places == [("resid_pre", 0), ("resid_pre", 1), *(("mlp_out", layer) for layer in range(3))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"site": "z", "severed": "mlp_out"}, "severed goes with a state"),
        ({"site": "z", "receivers": ["1.0.x"]}, "'1.0.x' is no receiver"),
        ({"site": "z", "receivers": ["7.0.q"]}, "the model has 3 layers"),
        ({"site": "resid_post", "receivers": ["logits"]}, "the site is the sender"),
        ({"site": "mlp_out", "receivers": ["logits"], "window": 2}, "one sender at a time"),
        ({"site": "z", "receivers": ["logits"], "receiver_positions": ["sbject"]}, "no prompt has a position 'sbject'"),
        ({"site": "resid_pre", "receivers": ["logits"], "severed": "mlp_out"}, "use one of them"),
        ({"site": "z", "receivers": ["logits"], "corruption": "zero", "direction": "noise"}, "need a corrupted run"),
    ],
)
def test_what_cannot_be_cut_is_said(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        patch(_model("gpt2"), _pairs(), resamples=100, **arguments)
    assert words in "\n".join(caught.value.faults)
