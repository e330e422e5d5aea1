"""Acceptance check B1: the planted circuit is found, head by head, with the numbers that follow from its construction.

What the model answers is known from what the heads of layer 1 write at the last position, `out` [vocab]: there the
residual stream holds one-hot vectors and their mirrors, so that the final LayerNorm multiplies by
`sqrt(d / (2 (n + |out|^2)))` with n one-hot vectors besides (the token, its position, the token before it), and the
logits are that times `UNEMBEDDING * out`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from engramscope.engine.executor import Kind
from engramscope.engine.plan import DerivedRun
from engramscope.locate.cells import Cell
from engramscope.locate.experiment import Experiment
from engramscope.locate.prepare import Prepared
from engramscope.models import Model
from engramscope.pairs import PairSet
from engramscope.results.schema import Frame
from engramscope.stats.two_sd import two_sd
from tests.acceptance.basis import rotated, rotation
from tests.acceptance.setting import (
    Setting,
    each_executor,
    effects_of,
    experiment_of,
    identical,
    numbers,
    places_of,
    setting_on,
    sweep,
    sweep_cells,
    taken,
    values_of,
)
from tests.planted import (
    GAIN,
    OUTPUT,
    UNEMBEDDING,
    VOCAB,
    WIDTH,
    key_pairs,
    planted_hf,
    planted_model,
    planted_tokenizer,
    value_pairs,
)
from tests.tiny_models import tiny_hf

METRICS = ("logit_diff", "prob")
#: gains of the heads of layer 1
GAINS: Mapping[int, float] = {0: 1.0, 1: GAIN}
EVERY_HEAD = [(0, 0), (0, 1), (1, 0), (1, 1)]


# --------------------------------------------------------------------------------------------- what must come out


def copied(pair: Prepared, prompt: str) -> Tensor:
    """What a head of layer 1 with gain 1 writes at the last position of a prompt: [vocab].

    The token behind the first occurrence of the last one; the mean of all tokens where there is none.
    """
    tokens = (pair.tokens.clean if prompt == "clean" else pair.tokens.corrupted).ids
    places = [at for at in range(1, len(tokens)) if tokens[at - 1] == tokens[-1]] or range(len(tokens))
    one_hot = nn.functional.one_hot(torch.tensor(tokens), VOCAB).double()
    return one_hot[list(places)].mean(0)


def scores(pair: Prepared, out: Tensor, extra: int = 0) -> dict[str, float]:
    """The metrics of a run in which the heads of layer 1 write `out`, with `extra` one-hot vectors of no use."""
    width = WIDTH + 2 * VOCAB * extra
    logits = UNEMBEDDING * math.sqrt(width) * out / math.sqrt(2 * (3 + extra + float(out @ out)))
    ((correct,),), ((incorrect,),) = pair.tokens.correct, pair.tokens.incorrect
    return {"logit_diff": float(logits[correct] - logits[incorrect]), "prob": float(logits.softmax(0)[correct])}


def expected_effects(
    experiment: Experiment, heads: Sequence[int], gains: Mapping[int, float] = GAINS, extra: int = 0
) -> dict[str, Tensor]:
    """Denoising these heads of layer 1 jointly: metric -> effect [pairs]."""
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for pair in experiment.prepared:
        clean, corrupted = copied(pair, "clean"), copied(pair, "corrupted")
        unpatched = scores(pair, sum(gains.values()) * corrupted, extra)
        restored = sum(gains[head] for head in heads)
        patched = scores(pair, restored * clean + (sum(gains.values()) - restored) * corrupted, extra)
        for metric in METRICS:
            found[metric].append(patched[metric] - unpatched[metric])
    return {metric: torch.tensor(values, dtype=torch.float64) for metric, values in found.items()}


def effects_by_head(table: Frame, metric: str, column: str = "effect") -> dict[tuple[int, int], Tensor]:
    rows = table[table["metric"] == metric].groupby(["layer", "head"], sort=False)
    return {(int(layer), int(head)): numbers(part, column) for (layer, head), part in rows}


# --------------------------------------------------------------------------------- which token decides which heads


@each_executor
@pytest.mark.parametrize("pairs", [value_pairs(6), key_pairs(6)], ids=["value", "key"])
def test_b1_the_planted_circuit_solves_the_task(pairs: PairSet, kind: Kind) -> None:
    """B1: planted induction circuit solved: clean and corrupted runs answer as the construction says."""
    experiment = experiment_of(planted_model(torch.float64), pairs, kind, METRICS)
    for pair in experiment.prepared:
        base = experiment.base[pair.index]
        for name, found in (("clean", base.clean), ("corrupted", base.corrupted[0])):
            assert dict(found) == pytest.approx(scores(pair, (1 + GAIN) * copied(pair, name)), abs=1e-7)
        assert base.clean["prob"] > 0.99
        assert base.corrupted[0]["prob"] < 0.2  # without a match the answer is one of nine tokens


@each_executor
def test_b1_corrupting_the_value_shows_the_copying_heads_and_not_the_one_that_finds_the_place(kind: Kind) -> None:
    """B1: value-token corruption -> {L1H0 > 0, L1H1 < 0}, others exactly 0."""
    experiment = experiment_of(planted_model(torch.float64), value_pairs(6), kind, METRICS)
    table = sweep(experiment, "z", heads="each")
    for metric in METRICS:
        found = effects_by_head(table, metric)
        assert list(found) == EVERY_HEAD
        for head in (0, 1):
            identical(found[0, head], 0.0)
            identical(found[1, head], expected_effects(experiment, [head])[metric], 1e-7)
    shown = effects_by_head(table, "logit_diff")
    assert (shown[1, 0] > 1).all()
    assert (shown[1, 1] < -1).all()


@each_executor
def test_b1_corrupting_the_key_shows_the_head_that_finds_the_place(kind: Kind) -> None:
    """B1: key-token corruption gives L0H0 exactly 1, and the negative head a negative effect again."""
    experiment = experiment_of(planted_model(torch.float64), key_pairs(6), kind, METRICS)
    table = sweep(experiment, "z", heads="each")
    for metric in METRICS:
        identical(effects_by_head(table, metric, "recovery")[0, 0], 1.0)
        found = effects_by_head(table, metric)
        identical(found[0, 1], 0.0)
        for head in (0, 1):
            identical(found[1, head], expected_effects(experiment, [head])[metric], 1e-7)
    assert (effects_by_head(table, "logit_diff")[1, 1] < -1).all()


@each_executor
def test_b1_every_effect_is_at_the_position_where_the_circuit_has_it(kind: Kind) -> None:
    """B1: L0H0 works where the value stands, the heads of layer 1 at the end; everywhere else the effect is 0."""
    experiment = experiment_of(planted_model(torch.float64), key_pairs(4), kind, METRICS)
    last = len(experiment.prepared[0].tokens.clean) - 1
    whole = effects_by_head(sweep(experiment, "z", heads="each"), "logit_diff")
    each = sweep(experiment, "z", heads="each", positions="each")
    for (head, position), rows in each[each["metric"] == "logit_diff"].groupby(["layer", "position"], sort=False):
        layer, at = int(head), int(position)
        for number, found in effects_by_head(rows, "logit_diff").items():
            works = at == (2 if layer == 0 else last)
            identical(found, whole[number] if works else 0.0)


def test_b1_the_published_rule_marks_exactly_these_cells_with_their_signs() -> None:
    """B1: circuit found, negative head sign correct, by the 2-SD rule over (head, position)."""
    experiment = experiment_of(planted_model(torch.float64), value_pairs(6), "traversal")
    table = sweep(experiment, "z", heads="each", positions="each")
    means = table.groupby(["layer", "head", "position"], sort=False)["effect"].mean()
    marks = two_sd(means.to_numpy()).detected
    last = len(experiment.prepared[0].tokens.clean) - 1
    assert [tuple(map(int, cell)) for cell in means.index[marks]] == [(1, 0, last), (1, 1, last)]
    assert [bool(mean > 0) for mean in means[marks]] == [True, False]


# ------------------------------------------------------------------------------------- probability hides negatives


@each_executor
def test_b1_a_probability_cannot_show_the_negative_head(kind: Kind) -> None:
    """Probability hides negatives: an effect is at least -P_*(r), which is nothing; the logit difference shows it."""
    experiment = experiment_of(planted_model(torch.float64), value_pairs(6), kind, METRICS)
    table = sweep(experiment, "z", heads="each")
    prob, floor = effects_by_head(table, "prob"), -effects_by_head(table, "prob", "corrupted")[1, 1]
    assert (floor > -1e-6).all()
    for found in prob.values():
        assert (found >= floor).all()
    assert (prob[1, 1] < 0).all(), "the sign is right, the size is lost"
    assert (effects_by_head(table, "logit_diff")[1, 1] < -1).all()
    # noising starts where the probability is not at its floor but at its ceiling, which hides the head as well
    noised = effects_by_head(sweep(experiment, "z", heads="each", direction="noise"), "prob")
    assert noised[1, 1].abs().max() < 1e-6
    assert (noised[1, 0] < -0.99).all()


# ---------------------------------------------------------------------------------------------- a backup head


BACKUP = {0: 1.0, 1: GAIN, 2: 1.0}


@each_executor
def test_b1_a_duplicate_head_has_the_effect_of_its_original(kind: Kind) -> None:
    """Redundancy: L1H2 does what L1H0 does; each has the effect that follows, and both jointly more than their sum."""
    experiment = experiment_of(planted_model(torch.float64, backup=1.0), value_pairs(6), kind, METRICS)
    table = sweep(experiment, "z", heads="each")
    both = effects_of(experiment, [_jointly(experiment, (0, 2))])
    for metric in METRICS:
        found = effects_by_head(table, metric)
        for head in BACKUP:
            identical(found[1, head], expected_effects(experiment, [head], BACKUP)[metric], 1e-7)
        identical(found[1, 2], found[1, 0])
        identical(found[1, 3], 0.0)
        jointly = numbers(both[both["metric"] == metric], "effect")
        identical(jointly, expected_effects(experiment, [0, 2], BACKUP)[metric], 1e-7)
    assert (effects_by_head(table, "logit_diff")[1, 0] > 1).all()


@each_executor
def test_b1_ablating_one_of_two_redundant_heads_is_not_seen_and_both_is(kind: Kind) -> None:
    """Redundancy: parts of which one is enough (OR) are invisible to single noising in a probability."""
    model = planted_model(torch.float64, backup=1.0)
    experiment = experiment_of(model, value_pairs(6), kind, METRICS, "zero")
    single = sweep(experiment, "z", heads="each", direction="noise")
    both = effects_of(experiment, [replace(_jointly(experiment, (0, 2)), direction="noise")])
    for head in (0, 2):
        assert effects_by_head(single, "prob")[1, head].abs().max() < 1e-6
        assert (effects_by_head(single, "logit_diff")[1, head] < -1).all()
    prob = both[both["metric"] == "prob"]
    # what is left is the negative head, and with it no probability at all
    identical(numbers(prob, "effect"), -numbers(prob, "clean"), 1e-6)
    alone = experiment_of(planted_model(torch.float64), value_pairs(6), kind, METRICS, "zero")
    without = effects_by_head(sweep(alone, "z", heads="each", direction="noise"), "prob")
    assert (without[1, 0] < -0.99).all(), "without a backup one head is enough"


def _jointly(experiment: Experiment, heads: tuple[int, ...]) -> Cell:
    """The cell of these heads of layer 1 together."""
    (first, *_) = sweep_cells(experiment, "z", layers=[1], heads=[heads[0]])
    return replace(first, heads=heads)


# ----------------------------------------------------------------------------------------------- a noise head


@each_executor
@pytest.mark.parametrize(("pairs", "changed"), [(value_pairs(5), 2), (key_pairs(5), 1)], ids=["value", "key"])
def test_b1_a_head_that_writes_where_nobody_reads_scores_0(pairs: PairSet, changed: int, kind: Kind) -> None:
    """A noise head outside the read subspaces must score exactly 0, however much its own value differs."""
    model = planted_model(torch.float64, noise_at=changed)
    experiment = experiment_of(model, pairs, kind, METRICS)
    table = sweep(experiment, "z", heads="each")
    for metric in METRICS:
        found = effects_by_head(table, metric)
        identical(found[0, 2], 0.0, 1e-12)
        for head in (0, 1):  # and the others have the effects that they have without it
            identical(found[1, head], expected_effects(experiment, [head], extra=1)[metric], 1e-7)
    # it copies the token that was changed, to every position behind it
    width = model.anatomy.d_head
    for pair in experiment.prepared:
        z = _values(model, pair, ("z", 0))
        difference = (z["clean"] - z["corrupted"])[:, 2 * width : 3 * width]
        assert difference[changed:].abs().amax(1).min() > 0.9


@each_executor
def test_b1_the_same_head_has_an_effect_where_somebody_reads(kind: Kind) -> None:
    """Otherwise the noise head would show nothing: into the output slot it writes an answer of its own."""
    model = planted_model(torch.float64, noise_at=2, noise_into=OUTPUT)
    experiment = experiment_of(model, value_pairs(5), kind)
    found = effects_by_head(sweep(experiment, "z", heads="each"), "logit_diff")
    assert (found[0, 2] > 1).all()


def _values(model: Model, pair: Prepared, place: tuple[str, int | None]) -> dict[str, Tensor]:
    prompts = {"clean": pair.tokens.clean.ids, "corrupted": pair.tokens.corrupted.ids}
    return values_of(model, place, prompts)


# ---------------------------------------------------------------------------------------------- another basis


def random_gpt2() -> Any:
    """A random GPT-2 in float64 whose LayerNorms only normalise."""
    hf = tiny_hf("gpt2", tie_word_embeddings=False).double()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".ln_" in name:
                parameter.fill_(float(name.endswith("weight")))
    return hf


def every_patched_run(setting: Setting) -> dict[str, Tensor]:
    """Logits of a patch at every site, of all heads and of each."""
    return setting.run(
        DerivedRun(f"{site} {layer} {heads}", "corrupted", (taken("clean", site, layer, (2, 4), heads),))
        for site, layer, heads in places_of(setting.model)
    )


def same_runs(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for run, logits in wanted.items():
        torch.testing.assert_close(found[run], logits, rtol=0, atol=1e-9, msg=lambda text, run=run: f"{run}: {text}")


@each_executor
def test_b1_a_change_of_basis_that_fixes_the_ones_changes_no_node(kind: Kind) -> None:
    """A random orthogonal change of basis that fixes the all-ones vector leaves all node results as they are."""
    plain = every_patched_run(setting_on(Model.from_parts(random_gpt2()), kind))
    for seed in (0, 1):
        turn = rotation(32, seed)
        identical(turn @ turn.T, torch.eye(32, dtype=torch.float64), 1e-12)
        other = setting_on(Model.from_parts(rotated(random_gpt2(), turn)), kind)
        same_runs(every_patched_run(other), plain)
    effects = [(logits - plain["corrupted"]).abs().max() for run, logits in plain.items() if run != "corrupted"]
    assert sum(effect > 1e-3 for effect in effects) > 60


@each_executor
def test_b1_any_other_change_of_basis_is_another_model(kind: Kind) -> None:
    """LayerNorm commutes with the rotations that fix the all-ones vector, and with no others."""
    plain = every_patched_run(setting_on(Model.from_parts(random_gpt2()), kind))
    turned = Model.from_parts(rotated(random_gpt2(), rotation(32, 0, fixes_ones=False)))
    other = every_patched_run(setting_on(turned, kind))
    assert (other["clean"] - plain["clean"]).abs().max() > 1e-2
    with pytest.raises(AssertionError):
        same_runs(other, plain)


@each_executor
@pytest.mark.parametrize("pairs", [value_pairs(4), key_pairs(4)], ids=["value", "key"])
def test_b1_the_planted_circuit_is_found_in_any_basis(pairs: PairSet, kind: Kind) -> None:
    """The planted circuit in a random basis: nothing is one-hot any more, and every number is the same."""
    aligned, mixed = (planted_hf(torch.float64, backup=0.5, noise_at=1) for _ in range(2))
    rotated(mixed, rotation(mixed.config.n_embd, 3))
    # a token is one place and its mirror, and then it is everywhere
    assert int((aligned.transformer.wte.weight[0] != 0).sum()) == 2
    assert int((mixed.transformer.wte.weight[0] != 0).sum()) == mixed.config.n_embd
    tables = []
    for hf in (aligned, mixed):
        experiment = experiment_of(Model.from_parts(hf, planted_tokenizer(), name="planted"), pairs, kind)
        heads = sweep(experiment, "z", heads="each", positions="each")
        states = sweep(experiment, "resid_post", positions="each")
        tables.append(pd.concat([heads, states, sweep(experiment, "attn_out", positions="last")]))
    for column in ("clean", "corrupted", "patched"):
        identical(numbers(tables[1], column), numbers(tables[0], column))
    assert int((numbers(tables[0], "effect").abs() > 1).sum()) >= 4 * 6
