"""Running the cells of a sweep over pairs, a bounded chunk at a time, and scoring them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engramscope.engine.answered import Answered
from engramscope.engine.executor import Executor
from engramscope.engine.plan import BaseRun, DerivedRun, Plan, Readout
from engramscope.locate.cells import Cell
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run
from engramscope.locate.runs import Means, Skipped, ablation_run, swap_run
from engramscope.locate.scoring import Continuation, Scorer, readout_positions


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cell did in one pair under one draw.

    Attributes:
        pair: index of the pair.
        cell: the cell.
        seed: number of the draw.
        scores: the metrics of the patched run; empty where it was skipped.
        status: "ok", "skipped: …" or "failed: …".
    """

    pair: int
    cell: Cell
    seed: int
    scores: Mapping[str, float]
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The unpatched runs of one pair.

    Attributes:
        pair: index of the pair.
        clean: metrics of the clean run.
        corrupted: metrics of each corrupted run, by draw (empty for ablations).
        trouble: a sentence that names the first layer after which a value was not finite; "" for none.
    """

    pair: int
    clean: Mapping[str, float]
    corrupted: Mapping[int, Mapping[str, float]]
    trouble: str = ""


_Key = tuple[int, Cell | None, int | None]


@dataclass
class _Scores:
    """Metrics of runs by (pair, cell, draw), and what was not finite in them."""

    partial: dict[_Key, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    whole: dict[_Key, dict[str, float]] = field(default_factory=dict)
    trouble: dict[_Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What a run was made for."""

    pair: Prepared
    cell: Cell | None
    seed: int | None
    continuation: Continuation


def clean_logits(executor: Executor, pairs: Sequence[Prepared]) -> dict[int, Tensor]:
    """Next-token logits of the clean runs after the prompt, float32 on the model's device, by pair index."""
    runs = {clean_run(pair).id: pair for pair in pairs}
    bases = tuple({run.id: run for run in map(clean_run, pairs)}.values())
    readouts = tuple(Readout(base.id, (len(base.tokens) - 1,)) for base in bases)
    kept: dict[int, Tensor] = {}
    for answered in executor.execute(Plan(bases, (), readouts)):
        for row, run in enumerate(answered.runs):
            kept[runs[run].index] = answered.logits[row, 0].float()
    return kept


def baselines(executor: Executor, pairs: Sequence[Prepared], scorer: Scorer) -> list[Baseline]:
    """Metrics of the clean and the corrupted runs of every pair, in their order."""
    jobs: dict[str, Job] = {}
    bases: dict[str, BaseRun] = {}
    for pair in pairs:
        for continuation in scorer.continuations(pair):
            clean = clean_run(pair, continuation)
            bases[clean.id], jobs[clean.id] = clean, Job(pair, None, None, continuation)
            for draw in pair.draws:
                corrupted = corrupted_run(pair, draw, continuation)
                bases[corrupted.id], jobs[corrupted.id] = corrupted, Job(pair, None, draw.seed, continuation)
    scores = _execute(executor, list(bases.values()), [], jobs, scorer)
    return [
        Baseline(
            pair.index,
            scores.whole[pair.index, None, None],
            {draw.seed: scores.whole[pair.index, None, draw.seed] for draw in pair.draws},
            _first_trouble(pair, scores),
        )
        for pair in pairs
    ]


def _first_trouble(pair: Prepared, scores: _Scores) -> str:
    seeds = (None, *(draw.seed for draw in pair.draws))
    found = (scores.trouble.get((pair.index, None, seed)) for seed in seeds)
    return next((trouble for trouble in found if trouble), "")


def run_cells(
    executor: Executor,
    cells: Sequence[Cell],
    pairs: Sequence[Prepared],
    scorer: Scorer,
    everyone: Sequence[Prepared],
    means: Means | None = None,
    self_patch: bool = False,
) -> list[Outcome]:
    """Patch every cell in every pair and score it.

    Args:
        executor: runs them on its model.
        cells: what to patch.
        pairs: in which pairs.
        scorer: the metrics.
        everyone: all prepared pairs, for donors.
        means: reference means, for mean ablation.
        self_patch: patch every run with its own values: the noise floor.

    Returns:
        Outcomes in the order pairs, cells, draws.
    """
    jobs: dict[str, Job] = {}
    bases: dict[str, BaseRun] = {}
    derived: list[DerivedRun] = []
    skipped: dict[tuple[int, Cell, int], str] = {}
    keys: list[tuple[int, Cell, int]] = []
    for pair in pairs:
        for cell in cells:
            if cell.position is not None and cell.position >= len(pair.tokens.clean):
                continue  # a shorter prompt has no such cell: no row, rather than a skipped one
            for number, seed in enumerate(pair.seeds):
                key = (pair.index, cell, seed)
                keys.append(key)
                for continuation in scorer.continuations(pair):
                    run_id = f"{len(jobs)}"
                    made = (
                        ablation_run(cell, pair, number, everyone, means or {}, continuation, run_id, self_patch)
                        if pair.ablations
                        else swap_run(cell, pair, pair.draws[number], continuation, run_id, self_patch)
                    )
                    if isinstance(made, Skipped):
                        skipped[key] = made.reason
                        continue
                    bases.update({base.id: base for base in made.bases})
                    derived.append(made.run)
                    jobs[made.run.id] = Job(pair, cell, seed, continuation)
    scores = _execute(executor, list(bases.values()), derived, jobs, scorer, skip_identities=not self_patch)
    return [_outcome(key, scores, skipped) for key in keys]


def _outcome(key: tuple[int, Cell, int], scores: _Scores, skipped: Mapping[tuple[int, Cell, int], str]) -> Outcome:
    pair, cell, seed = key
    if key in skipped:
        return Outcome(pair, cell, seed, {}, f"skipped: {skipped[key]}")
    if key in scores.trouble:
        return Outcome(pair, cell, seed, scores.whole[key], f"failed: {scores.trouble[key]}")
    bad = [name for name, value in scores.whole[key].items() if not math.isfinite(value)]
    status = f"failed: {', '.join(bad)} is not a finite number" if bad else "ok"
    return Outcome(pair, cell, seed, scores.whole[key], status)


def _execute(
    executor: Executor,
    bases: Sequence[BaseRun],
    derived: Sequence[DerivedRun],
    jobs: Mapping[str, Job],
    scorer: Scorer,
    *,
    skip_identities: bool = True,
) -> _Scores:
    """Run a plan and score every run that has a job."""
    readouts = tuple(
        Readout(run.id, readout_positions(len(tokens) - len(jobs[run.id].continuation), jobs[run.id].continuation))
        for run, tokens in _with_tokens(bases, derived)
        if run.id in jobs
    )
    distinct = {job.pair.index: job.pair for job in jobs.values()}
    clean = clean_logits(executor, list(distinct.values())) if scorer.needs_clean else {}
    columns = None if scorer.needs_vocabulary else {run: scorer.tokens_read(job.pair) for run, job in jobs.items()}
    found = _Scores()
    plan = Plan(tuple(bases), tuple(derived), readouts)
    for answered in executor.execute(plan, columns, skip_identities=skip_identities):
        asked = [jobs[run] for run in answered.runs]
        for job, run, scores in zip(asked, answered.runs, _scored(answered, asked, scorer, clean), strict=True):
            key = (job.pair.index, job.cell, job.seed)
            found.partial[key].update(scores)
            if run in answered.trouble:
                found.trouble[key] = answered.trouble[run]
    found.whole = {key: scorer.combined(scores) for key, scores in found.partial.items()}
    return found


def _scored(
    answered: Answered, asked: Sequence[Job], scorer: Scorer, clean: Mapping[int, Tensor]
) -> list[dict[str, float]]:
    wanted = [(job.pair, job.continuation) for job in asked]
    same = answered.logits.stride(0) == 0 and all(pair is wanted[0][0] for pair, _ in wanted)
    if same and len({continuation for _, continuation in wanted}) == 1:
        # runs that do not differ from their base: one row, shown many times
        return scorer.score(answered.logits[:1], wanted[:1], clean, answered.columns) * len(wanted)
    return scorer.score(answered.logits, wanted, clean, answered.columns)


def _with_tokens(
    bases: Sequence[BaseRun], derived: Sequence[DerivedRun]
) -> Iterator[tuple[BaseRun | DerivedRun, tuple[int, ...]]]:
    tokens = {base.id: base.tokens for base in bases}
    for base in bases:
        yield base, base.tokens
    for run in derived:
        yield run, tokens[run.base]
