"""Random sweeps, as a study file declares them: every score is the same with both executors."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from engramscope.corruptions import make_corruption
from engramscope.engine.executor import make_executor
from engramscope.engine.plan import Plan
from engramscope.locate.cells import Cell, cells_of
from engramscope.locate.means import reference_means
from engramscope.locate.prepare import Prepared, prepare
from engramscope.locate.scoring import Scorer
from engramscope.locate.sweep import Outcome, run_cells
from engramscope.models import Model
from engramscope.models.site import GLOBAL_SITES, HEAD_SITES, KV_SITES
from engramscope.pairs import Pair, PairSet
from engramscope.study_file import SweepSection
from tests.engine.comparing import quickest_executor
from tests.engine.plans import Choices, Drawn, chance, pick, some
from tests.tiny_models import tiny_hf
from tests.tiny_study import NAMES, pair_rows, tokenizer

FAMILIES = ("gpt2", "llama", "gemma3", "gptj", "bloom", "gpt_oss")
#: corruption -> its options, and metrics that suit it
CORRUPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "str": ({}, ("logit_diff", "prob", "kl")),
    "gaussian": ({"draws": 3, "sigma": 1.5}, ("logit_diff", "log_prob")),
    "zero": ({}, ("logit_diff", "prob")),
    "mean": ({"positions": "each"}, ("logit_diff",)),
    "resample": ({"draws": 2}, ("logit_diff", "kl")),
    "answer": ({}, ("mean_logit_diff", "answer_log_prob")),
}
MOST_CELLS = 40
ROLES = ("before", "subject", "subject_first", "subject_last", "after_subject", "further", "last")


@cache
def model_of(family: str) -> Model:
    words = tokenizer(bos=family != "gpt2")
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)), words, name=family)


@cache
def prepared_for(family: str, method: str) -> tuple[Prepared, ...]:
    """Five pairs of three lengths; subjects of one token and of two; answers of one token and of several."""
    rows = [
        {**row, "correct": tuple(row["correct"]), "incorrect": tuple(row["incorrect"]), "corrupted_spans": {}}
        for row in pair_rows(5, sentences=3)
    ]
    for row, other in zip(rows[:3], NAMES[5:], strict=False):
        if method in ("gaussian", "mean", "zero"):  # the subject has two tokens in some of the prompts
            start, end = row["spans"]["subject"]
            row["clean"] = f"{row['clean'][:end]} {other}{row['clean'][end:]}"
            row["spans"] = {"subject": [start, end + 1 + len(other)]}
        if method == "answer":
            row["correct"], row["incorrect"] = (f" big red{row['correct'][0]}", " drum"), (" the child", " boat")
    if method in ("gaussian", "mean", "zero", "answer"):
        rows = [{**row, "corrupted": None} for row in rows]
    pairs = PairSet(tuple(Pair(**row) for row in rows))
    prepared, _ = prepare(model_of(family), pairs, make_corruption(method, CORRUPTIONS[method][0]))
    return tuple(prepared)


def random_sweep(c: Choices, model: Model, *, ablation: bool) -> SweepSection:
    paths = [path.replace(".1.", ".{layer}.") for path in model.module_paths if ".1." in path]
    site = pick(c, [*model.sites, *model.sites, *paths, model.module_paths[0], model.anatomy.head])
    declared: dict[str, Any] = {"name": "random", "site": site}
    if site not in GLOBAL_SITES and (site in model.sites or "{layer}" in site):
        declared["window"] = c.integer(1, 3)
        if chance(c, 40):
            declared["layers"] = some(c, range(model.anatomy.n_layers), c.integer(1, 2))
    if site in HEAD_SITES:
        count = model.anatomy.n_kv_heads if site in KV_SITES else model.anatomy.n_heads
        declared["heads"] = pick(c, ["each", "all", list(some(c, range(count), c.integer(1, count)))])
    declared["positions"] = pick(
        c, ["each", "each", "all", "last", list(some(c, ROLES, 2)), list(some(c, range(7), c.integer(1, 3)))]
    )
    declared["direction"] = "noise" if ablation else pick(c, ["denoise", "noise", "both"])
    return SweepSection.model_validate(declared)


def random_cells(c: Choices, model: Model, pairs: tuple[Prepared, ...]) -> list[Cell]:
    ablation = not any(pair.draws for pair in pairs)
    tokens = [pair.tokens for pair in pairs]
    cells = [
        cell
        for _ in range(c.integer(1, 3))
        for cell in cells_of(random_sweep(c, model, ablation=ablation), model.anatomy, tokens)
    ]
    cells = list(dict.fromkeys(cells))
    return list(some(c, cells, MOST_CELLS)) if len(cells) > MOST_CELLS else cells


def same_outcomes(ours: list[Outcome], theirs: list[Outcome], what: str) -> int:
    """Hold two lists of outcomes to each other; returns how many scores were compared."""
    assert [(o.pair, o.cell, o.seed, o.status) for o in ours] == [(o.pair, o.cell, o.seed, o.status) for o in theirs]
    compared = 0
    for one, other in zip(ours, theirs, strict=True):
        assert set(one.scores) == set(other.scores)
        for name, value in one.scores.items():
            difference = abs(value - other.scores[name])
            assert difference <= 1e-4, f"{what}: {name} of pair {one.pair} differs by {difference:g} in {one.cell}"
            compared += 1
    return compared


@cache
def executors(family: str, memory_gb: float = 4.0) -> tuple[Any, Any]:
    model = model_of(family)
    return quickest_executor(model, memory_gb), make_executor(model, kind="reference")


@pytest.mark.parametrize("method", CORRUPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_sweeps_give_the_same_scores(family: str, method: str) -> None:
    model, pairs = model_of(family), prepared_for(family, method)
    scorer = Scorer(CORRUPTIONS[method][1])
    assert len({len(pair.tokens.clean) for pair in pairs}) > 1, "pairs of one length would not test much"
    compared = 0

    @seed(zlib.crc32(f"{family} {method}".encode()))
    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal compared
        cells = random_cells(Drawn(data.draw), model, pairs)
        means = reference_means(model, cells, pairs)
        ours, theirs = (run_cells(executor, cells, pairs, scorer, pairs, means) for executor in executors(family))
        compared += same_outcomes(ours, theirs, f"{family} {method}")

    run()
    assert compared > 0


@pytest.mark.parametrize("family", ["gpt2", "gptj", "bloom"])
def test_little_memory_gives_the_same_scores(family: str) -> None:
    pairs, scorer = prepared_for(family, "str"), Scorer(("logit_diff", "kl"))
    model = model_of(family)
    sweep = SweepSection(name="r", site="resid_post", positions="each", direction="both")
    cells = list(cells_of(sweep, model.anatomy, [pair.tokens for pair in pairs]))
    ours, theirs = (run_cells(executor, cells, pairs, scorer, pairs) for executor in executors(family, 1e-4))
    assert same_outcomes(ours, theirs, family) > 100


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("method", ["str", "gaussian", "resample"])
def test_a_run_patched_with_its_own_values_is_the_same_with_both(family: str, method: str) -> None:
    pairs, scorer = prepared_for(family, method), Scorer(("logit_diff",))
    model = model_of(family)
    direction = "noise" if method == "resample" else "both"
    cells = [
        cell
        for site in ("z", "mlp_out", "resid_pre")
        for cell in cells_of(
            SweepSection(name=site, site=site, positions="each", direction=direction),
            model.anatomy,
            [pair.tokens for pair in pairs],
        )
    ]
    ours, theirs = (run_cells(executor, cells, pairs, scorer, pairs, self_patch=True) for executor in executors(family))
    assert same_outcomes(ours, theirs, f"{family} {method}") > 50


def test_scores_that_differ_are_noticed() -> None:
    pairs, scorer = prepared_for("gpt2", "str"), Scorer(("logit_diff",))
    model = model_of("gpt2")
    one, other = (
        run_cells(
            executors("gpt2")[1],
            list(cells_of(SweepSection(name="r", site="mlp_out", layers=[layer]), model.anatomy, ())),
            pairs,
            scorer,
            pairs,
        )
        for layer in (0, 1)
    )
    moved = [Outcome(o.pair, other[0].cell, o.seed, o.scores, o.status) for o in one]
    with pytest.raises(AssertionError, match="differs by"):
        same_outcomes(moved, other, "gpt2")


def runs_of(
    family: str, pairs: tuple[Prepared, ...], cells: list[Cell], metric: str, **options: Any
) -> tuple[list[Outcome], int]:
    """Outcomes by the traversal, and how many patched runs it was asked for."""
    executor, asked = executors(family)[0], 0

    class Counting:
        way, model = executor.way, executor.model

        def execute(self, plan: Plan, *args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += len(plan.derived)
            return executor.execute(plan, *args, **kwargs)

    outcomes = run_cells(Counting(), cells, pairs, Scorer((metric,)), pairs, **options)  # type: ignore[arg-type]
    return outcomes, asked


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
@pytest.mark.parametrize("method", ["str", "gaussian"])
def test_patches_that_change_nothing_share_one_run(method: str, direction: str) -> None:
    """Everything before the first difference is one run for each pair, draw and direction."""
    pairs, model = prepared_for("gpt2", method), model_of("gpt2")
    tokens = [pair.tokens for pair in pairs]
    sweep = SweepSection(name="r", site="mlp_out", positions="each", direction=direction)  # type: ignore[arg-type]
    cells = list(cells_of(sweep, model.anatomy, tokens))
    ours, asked = runs_of("gpt2", pairs, cells, "logit_diff")
    theirs = run_cells(executors("gpt2")[1], cells, pairs, Scorer(("logit_diff",)), pairs)
    assert same_outcomes(ours, theirs, method) == len(ours)
    effective, idle = 0, set()
    for outcome in ours:
        pair = pairs[outcome.pair]
        clean, corrupted = pair.tokens.clean.ids, pair.tokens.corrupted.ids
        assert len(clean) == len(corrupted)
        draw = pair.draws[outcome.seed]
        noised = draw.noise.positions if draw.noise else ()
        position = outcome.cell.position
        assert position is not None
        differs = any(clean[at] != corrupted[at] or at in noised for at in range(position + 1))
        effective += differs
        if not differs:
            idle.add((outcome.pair, outcome.seed, outcome.cell.direction))
    assert asked == effective + len(idle) < len(ours)
    # the noise floor is about these very runs: it makes every one of them
    assert runs_of("gpt2", pairs, cells, "logit_diff", self_patch=True)[1] == len(ours)


def test_prompts_of_unlike_lengths_share_no_run_by_their_beginning() -> None:
    """What stands at another distance from what comes after it is left to the executor."""
    model = model_of("gpt2")
    pairs = tuple(
        pair for pair in prepared_for("gpt2", "answer") if len(pair.tokens.clean) != len(pair.tokens.corrupted)
    )
    assert pairs
    sweep = SweepSection(name="r", site="z", heads="each", positions="each")
    cells = list(cells_of(sweep, model.anatomy, [pair.tokens for pair in pairs]))
    ours, asked = runs_of("gpt2", pairs, cells, "mean_logit_diff")
    theirs = run_cells(executors("gpt2")[1], cells, pairs, Scorer(("mean_logit_diff",)), pairs)
    assert same_outcomes(ours, theirs, "unlike lengths") == asked > 20
