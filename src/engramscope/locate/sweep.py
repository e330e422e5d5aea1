"""Running the cells of a sweep over pairs, a bounded chunk at a time, and scoring them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engramscope.engine.answered import Answered
from engramscope.engine.executor import Executor
from engramscope.engine.plan import BaseRun, DerivedRun, Plan, Readout
from engramscope.locate.cells import Cell
from engramscope.locate.prepare import Prepared, clean_run, corrupted_run
from engramscope.locate.runs import Means, Skipped, ablation_run, changes_nothing, swap_run
from engramscope.locate.scoring import Continuation, Scorer, readout_positions
from engramscope.models.anatomy import Anatomy

Settled = Callable[[Prepared, Cell, int], Mapping[str, float] | None]


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


@dataclass
class _Scores:
    """Metrics of runs by what their jobs are for, and what was not finite in them."""

    partial: dict[Hashable, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    whole: dict[Hashable, dict[str, float]] = field(default_factory=dict)
    trouble: dict[Hashable, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What a run was made for: `key` is shared by the runs whose scores are combined."""

    pair: Prepared
    key: Hashable
    continuation: Continuation


def clean_logits(executor: Executor, pairs: Sequence[Prepared]) -> dict[int, Tensor]:
    """Next-token logits of the clean runs after the prompt, by pair index; 16-bit ones widened to float32."""
    runs = {clean_run(pair).id: pair for pair in pairs}
    bases = tuple({run.id: run for run in map(clean_run, pairs)}.values())
    readouts = tuple(Readout(base.id, (len(base.tokens) - 1,)) for base in bases)
    kept: dict[int, Tensor] = {}
    for answered in executor.execute(Plan(bases, (), readouts)):
        for row, run in enumerate(answered.runs):
            logits = answered.logits[row, 0]
            kept[runs[run].index] = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return kept


def baselines(executor: Executor, pairs: Sequence[Prepared], scorer: Scorer) -> list[Baseline]:
    """Metrics of the clean and the corrupted runs of every pair, in their order."""
    jobs: dict[str, Job] = {}
    bases: dict[str, BaseRun] = {}
    for pair in pairs:
        for continuation in scorer.continuations(pair):
            clean = clean_run(pair, continuation)
            bases[clean.id], jobs[clean.id] = clean, Job(pair, (pair.index, None), continuation)
            for draw in pair.draws:
                corrupted = corrupted_run(pair, draw, continuation)
                bases[corrupted.id], jobs[corrupted.id] = corrupted, Job(pair, (pair.index, draw.seed), continuation)
    scores = _execute(executor, list(bases.values()), [], jobs, scorer)
    return [
        Baseline(
            pair.index,
            scores.whole[pair.index, None],
            {draw.seed: scores.whole[pair.index, draw.seed] for draw in pair.draws},
            _first_trouble(pair, scores),
        )
        for pair in pairs
    ]


def _first_trouble(pair: Prepared, scores: _Scores) -> str:
    seeds = (None, *(draw.seed for draw in pair.draws))
    found = (scores.trouble.get((pair.index, seed)) for seed in seeds)
    return next((trouble for trouble in found if trouble), "")


def run_cells(
    executor: Executor,
    cells: Sequence[Cell],
    pairs: Sequence[Prepared],
    scorer: Scorer,
    everyone: Sequence[Prepared],
    means: Means | None = None,
    self_patch: bool = False,
    settled: Settled | None = None,
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
        settled: (pair, cell, draw) -> scores that are known without a run; None where they are not.

    Returns:
        Outcomes in the order pairs, cells, draws.
    """
    work = _Work(executor.model.anatomy, scorer, everyone, means or {}, self_patch)
    # patches that leave a run as it is: one run for all of them, but for the executor that all others are checked by
    shares = not self_patch and executor.way != "reference"
    for pair in pairs:
        shared = [pair.shared(draw) if shares else 0 for draw in pair.draws]
        unchanged: dict[tuple[int, str], int] = {}
        for cell in cells:
            if cell.position is not None and cell.position >= len(pair.tokens.clean):
                continue  # a shorter prompt has no such cell: no row, rather than a skipped one
            for number, seed in enumerate(pair.seeds):
                here = len(work.keys)
                work.keys.append((pair.index, cell, seed))
                if settled is not None and (scores := settled(pair, cell, seed)) is not None:
                    work.known[here] = scores
                    work.same.append(here)
                    continue
                if shares and pair.draws and changes_nothing(cell, pair, shared[number]):
                    work.same.append(unchanged.setdefault((number, cell.direction), here))
                else:
                    work.same.append(here)
                if work.same[here] == here:
                    work.add(pair, cell, number, here)
    bases, derived = list(work.bases.values()), work.derived
    scores = _execute(executor, bases, derived, work.jobs, scorer, skip_identities=not self_patch)
    return [work.outcome(here, scores) for here in range(len(work.keys))]


@dataclass
class _Work:
    """The runs of a chunk as they are put together.

    Attributes:
        keys: pair, cell and draw of every outcome, in order.
        same: for each of them the number of the one whose runs are its runs, too; mostly its own.
        skipped: number -> why there is no run.
        known: number -> scores for which no run is needed.
    """

    anatomy: Anatomy
    scorer: Scorer
    everyone: Sequence[Prepared]
    means: Means
    self_patch: bool
    keys: list[tuple[int, Cell, int]] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    bases: dict[str, BaseRun] = field(default_factory=dict)
    derived: list[DerivedRun] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    known: dict[int, Mapping[str, float]] = field(default_factory=dict)

    def add(self, pair: Prepared, cell: Cell, number: int, here: int) -> None:
        """Make the runs of one cell in one pair, one for each answer that is read as a whole."""
        for continuation in self.scorer.continuations(pair):
            run_id = f"{len(self.jobs)}"
            made = (
                ablation_run(cell, pair, number, self.everyone, self.means, continuation, run_id, self.self_patch)
                if pair.ablations
                else swap_run(cell, pair, pair.draws[number], self.anatomy, continuation, run_id, self.self_patch)
            )
            if isinstance(made, Skipped):
                self.skipped[here] = made.reason
                continue
            self.bases.update({base.id: base for base in made.bases})
            self.derived += [*made.between, made.run]
            self.jobs[made.run.id] = Job(pair, here, continuation)

    def outcome(self, here: int, scores: _Scores) -> Outcome:
        """What came out."""
        (pair, cell, seed), run = self.keys[here], self.same[here]
        if run in self.known:
            return Outcome(pair, cell, seed, self.known[run])
        if run in self.skipped:
            return Outcome(pair, cell, seed, {}, f"skipped: {self.skipped[run]}")
        if run in scores.trouble:
            return Outcome(pair, cell, seed, scores.whole[run], f"failed: {scores.trouble[run]}")
        bad = [name for name, value in scores.whole[run].items() if not math.isfinite(value)]
        status = f"failed: {', '.join(bad)} is not a finite number" if bad else "ok"
        return Outcome(pair, cell, seed, scores.whole[run], status)


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
            found.partial[job.key].update(scores)
            if run in answered.trouble:
                found.trouble[job.key] = answered.trouble[run]
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
