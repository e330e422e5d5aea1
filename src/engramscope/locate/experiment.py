"""One set of pairs under one corruption: baselines, exclusions, chunks of cells, noise floor and parity check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from engramscope.corruptions._base import Corruption
from engramscope.engine.executor import Executor, Kind, make_executor
from engramscope.engine.two_models import make_executor_of_two
from engramscope.errors import PairsError
from engramscope.locate.cells import Cell
from engramscope.locate.chunks import Chunk, chunks_of
from engramscope.locate.cuts import CutFinder
from engramscope.locate.known import too_few_known, unknown_answers
from engramscope.locate.means import reference_means
from engramscope.locate.prepare import Prepared, model_facts, prepare
from engramscope.locate.rows import rows_of
from engramscope.locate.runs import Means
from engramscope.locate.scoring import Scorer
from engramscope.locate.sweep import Baseline, baselines, run_cells
from engramscope.locate.trained import Changed, changed_between, ensure_one_tokenizer
from engramscope.models.model import Model
from engramscope.models.site import is_weights
from engramscope.pairs.pair import PairSet

#: pairs whose unpatched runs are computed at a time
PAIRS_PER_BATCH = 64
#: (cell, pair) that are looked at in search of some that can be recomputed, at least
MOST_DRAWS = 2000

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True)
class Parity:
    """Cells of a study, drawn at random and recomputed by the reference executor, one cell in one pair at a time.

    This shows that the traversal, batching, chunks and what was stored earlier change no number; that the reference
    executor is right is shown by tests against plain hooks.

    Attributes:
        checked: how many (cell, pair) were recomputed and compared.
        values: how many numbers that were: draws times metrics.
        max_abs_diff: largest difference in any metric.
        tolerance: what is allowed.
    """

    checked: int
    values: int
    max_abs_diff: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether something was compared, and the two agree."""
        return self.checked > 0 and self.max_abs_diff <= self.tolerance


@dataclass(frozen=True)
class Experiment:
    """Everything that is fixed before the first cell is patched.

    Attributes:
        executor: runs everything on its model.
        corruption: how the corrupted runs are made.
        prepared: all pairs.
        base: metrics of the unpatched runs, by pair index.
        used: indices of the pairs that enter the sweeps, and with them the tests.
        excluded: (pair id, reason) of pairs that do not enter pooled recovery: their clean–corrupted gap is tiny or of
            the wrong sign, or they cannot be run at all. The former stay in the tests: leaving them out there would
            be a selection by the outcome, and makes a model that knows nothing look as if it did.
        scorer: the metrics.
        seed: seed of every random choice.
        unknown: indices of the pairs whose answer the model does not know; None where that was not asked.
        changed: where the model and its base differ; None where there is one model only.
    """

    executor: Executor
    corruption: Corruption
    corruption_name: str
    prepared: tuple[Prepared, ...]
    base: Mapping[int, Baseline]
    used: tuple[int, ...]
    excluded: tuple[tuple[str, str], ...]
    scorer: Scorer
    seed: int
    unknown: frozenset[int] | None = None
    changed: Changed | None = None
    _cuts: CutFinder = field(init=False, repr=False, compare=False)
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)
    # means of the cells asked for last: the chunks of one block of cells follow each other
    _means: dict[tuple[Cell, ...], Means] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        differs = None if self.changed is None else self.changed.at
        object.__setattr__(self, "_cuts", CutFinder(self.model.anatomy, self.corruption.level, differs))
        object.__setattr__(self, "_index", {pair.id: pair.index for pair in self.prepared})

    @property
    def model(self) -> Model:
        """The model."""
        return self.executor.model

    @property
    def noise_level(self) -> float | None:
        """Standard deviation of the noise on the embeddings; None where the corruption adds none."""
        return self.corruption.noise_level([pair.tokens for pair in self.prepared], model_facts(self.model))

    def means(self, cells: tuple[Cell, ...]) -> Means:
        """Reference means for mean ablation of these cells."""
        if cells not in self._means:
            self._means.clear()
            self._means[cells] = reference_means(self.model, cells, self.prepared)
        return self._means[cells]

    def base_value(self, pair: str, seed: int, metric: str, run: Literal["clean", "corrupted"]) -> float | None:
        """A metric of an unpatched run of the pair with this id; None where there is no such pair, draw or run."""
        index = self._index.get(pair)
        if index is None:
            return None
        base = self.base[index]
        return (base.clean if run == "clean" else base.corrupted.get(seed, {})).get(metric)

    def is_cut(self, pair: Prepared, cell: Cell, metric: str) -> bool:
        """Whether the cell severs every path to what the metric reads, in this pair: from what was changed, or for an
        ablation from the whole prompt."""
        if is_weights(cell.site):
            return self.changed is not None and self.changed.lent(cell) == self.changed.tensors
        return bool(self._cuts.cut_in(cell, pair.tokens, pair.noised, self._read_tokens(pair, metric)))

    def _read_tokens(self, pair: Prepared, metric: str) -> int:
        whole = self.scorer.metrics[metric].scores == "whole_answer"
        return max(len(answer) for answer in pair.tokens.correct) if whole else 1

    def _settled(self, pair: Prepared, cell: Cell, seed: int) -> Mapping[str, float] | None:
        """The scores of a cell that is the one or the other unpatched run by construction, in two models of one shape.

        Nothing that differs is put in place, or everything is. So the numbers are those of the unpatched run to the
        last bit; a sample of such cells is computed nevertheless, where the study checks itself.
        """
        if self.changed is None:
            return None
        base = self.base[pair.index]
        runs = (base.corrupted[seed], base.clean)
        target, source = runs if cell.direction == "denoise" else runs[::-1]
        if is_weights(cell.site):
            nothing, everything = not self.changed.lent(cell), self.is_cut(pair, cell, self.scorer.names[0])
        else:
            longest = max(self._read_tokens(pair, name) for name in self.scorer.names)
            nothing = self._cuts.inert_in(cell, pair.tokens, longest)
            everything = all(self.is_cut(pair, cell, name) for name in self.scorer.names)
        return target if nothing else source if everything else None

    def run(self, chunk: Chunk, study: str = "") -> dict[str, list[Any]]:
        """Patch and score one chunk; columns of the effects table."""
        pairs = [self.prepared[index] for index in chunk.pairs]
        means = self.means(chunk.cells)
        settled = None if self.executor.way == "reference" else self._settled
        outcomes = run_cells(self.executor, chunk.cells, pairs, self.scorer, self.prepared, means, settled=settled)
        return rows_of(
            outcomes,
            {pair.index: pair for pair in pairs},
            self.base,
            self.scorer.names,
            self.is_cut,
            study=study,
            corruption=self.corruption_name,
        )

    def chunks(self, cells: Sequence[Cell], prefix: str, memory_gb: float | None = None) -> list[Chunk]:
        """The sweep in pieces.

        Args:
            cells: the cells of the sweep.
            prefix: begins the ids; differs between sweeps.
            memory_gb: what a piece may take, in GiB; that of the executor by default.
        """
        pairs = [self.prepared[index] for index in self.used]
        return chunks_of(self.executor, cells, pairs, prefix, memory_gb or self.executor.memory_gb)


def set_up(
    model: Model,
    pairs: PairSet,
    corruption: Corruption | str,
    corruption_name: str,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    min_gap: float = 0.0,
    known: int | None = None,
    executor: Kind = "traversal",
    memory_gb: float = 4.0,
    base_model: Model | None = None,
    progress: Progress | None = None,
) -> Experiment:
    """Prepare the pairs, run them unpatched, and name those whose clean–corrupted gap says nothing.

    A pair is excluded from recovery when its gap in the first metric, counted so that clean should be better than
    corrupted, is not larger than `min_gap` (averaged over draws); it is not run at all when an unpatched value is not
    finite or an ablation has nothing to put in place.

    With `known`, pairs whose clean prompt the model continues by something else than a correct answer are not run
    either, as in the known-fact set of Meng et al. 2022; fewer than `known` that are left are refused. This looks at
    the clean run only, so it does not select by the outcome.

    Raises:
        ModelError: the model is in training mode: dropout would be taken for an effect; or the base model is missing,
            or no earlier state of it.
        PairsError: faults of pairs, or no pair is left.
    """
    runner, changed = _executor_for(model, base_model, executor, memory_gb)
    if base_model is not None:
        ensure_one_tokenizer(model, base_model, pairs)
    prepared, how = prepare(model, pairs, corruption, seed)
    scorer = Scorer(tuple(metrics))
    base: dict[int, Baseline] = {}
    for first in range(0, len(prepared), PAIRS_PER_BATCH):
        part = prepared[first : first + PAIRS_PER_BATCH]
        base.update({line.pair: line for line in baselines(runner, part, scorer)})
        if progress:
            progress("baselines", len(base), len(prepared))
    unrunnable = {pair.index: reason for pair in prepared if (reason := _why_not_run(pair, base[pair.index]))}
    unknown = {} if known is None else unknown_answers(runner, prepared)
    if known is not None and len(prepared) - len(unknown) < known:
        raise PairsError(too_few_known(prepared, unknown, known))
    unrunnable = {**unrunnable, **unknown}
    if len(unrunnable) == len(prepared):
        raise PairsError(_nothing_left(prepared, unrunnable))
    no_gap = {
        pair.index: reason
        for pair in prepared
        if pair.index not in unrunnable and (reason := _why_not_pooled(pair, base[pair.index], scorer, min_gap))
    }
    used = tuple(pair.index for pair in prepared if pair.index not in unrunnable)
    reasons = {**unrunnable, **no_gap}
    excluded = tuple((prepared[index].id, reasons[index]) for index in sorted(reasons))
    asked = None if known is None else frozenset(unknown)
    return Experiment(runner, how, corruption_name, tuple(prepared), base, used, excluded, scorer, seed, asked, changed)


def _executor_for(model: Model, base: Model | None, kind: Kind, memory_gb: float) -> tuple[Executor, Changed | None]:
    if base is None:
        return make_executor(model, kind, memory_gb), None
    changed = changed_between(model, base)
    return make_executor_of_two(model, base, changed.tensors, kind, memory_gb), changed


def noise_floor(experiment: Experiment, cells: Sequence[Cell], count: int) -> dict[str, float]:
    """Largest absolute effect, per metric, of patching runs with their own values: numerical noise, ideally 0.

    `count` (cell, pair) are drawn at random. The base value was computed in another batch than the patched one, so what
    batching does to the last digits is part of the floor.

    Returns:
        Metric -> floor; no entry for a metric where no run could be patched: that floor is unknown, not 0.
    """
    floor: dict[str, float] = {}
    for cell, pair in _sample(experiment, cells, count, "floor"):
        for outcome in run_cells(
            experiment.executor, [cell], [pair], experiment.scorer, experiment.prepared, self_patch=True
        ):
            if outcome.status != "ok":
                continue
            base = experiment.base[pair.index]
            swapped = cell.direction == "denoise" and not pair.ablations
            unpatched = base.corrupted[outcome.seed] if swapped else base.clean
            for name, value in outcome.scores.items():
                floor[name] = max(floor.get(name, 0.0), abs(value - unpatched[name]))
    return floor


def check_parity(
    experiment: Experiment,
    cells: Sequence[Cell],
    count: int,
    found: Callable[[str, Cell, int, str], float | None],
    tolerance: float,
) -> Parity:
    """Recompute random cells with the reference executor, each alone in one pair, and compare with what was found.

    Cells that are skipped in a pair, or failed, have no number to compare; others are drawn in their place.

    Args:
        experiment: the experiment.
        cells: all cells of the study.
        count: how many (cell, pair) to compare.
        found: (pair id, cell, seed, metric) -> the `patched` value in the study's table.
        tolerance: largest difference allowed.
    """
    worst, values, compared = 0.0, 0, set[tuple[Cell, int]]()
    reference = experiment.executor.whole_forwards()
    for cell, pair in _sample(experiment, cells, max(MOST_DRAWS, 10 * count), "parity"):
        if len(compared) >= count:
            break
        known = any(
            found(pair.id, cell, seed, name) is not None for seed in pair.seeds for name in experiment.scorer.names
        )
        if not known or (cell, pair.index) in compared:
            continue
        means = experiment.means((cell,))
        for outcome in run_cells(reference, [cell], [pair], experiment.scorer, experiment.prepared, means):
            for name, value in outcome.scores.items():
                other = found(pair.id, cell, outcome.seed, name)
                if other is not None:
                    difference = abs(other - value)
                    worst, values = max(worst, difference if np.isfinite(difference) else np.inf), values + 1
                    compared.add((cell, pair.index))
    return Parity(len(compared), values, worst, tolerance)


def _sample(experiment: Experiment, cells: Sequence[Cell], count: int, what: str) -> list[tuple[Cell, Prepared]]:
    rng = np.random.default_rng([experiment.seed, *what.encode()])
    return [
        (cells[int(rng.integers(len(cells)))], experiment.prepared[int(rng.choice(experiment.used))])
        for _ in range(count if cells and experiment.used else 0)
    ]


def _why_not_run(pair: Prepared, base: Baseline) -> str | None:
    values = [*base.clean.values(), *(value for line in base.corrupted.values() for value in line.values())]
    if base.trouble or not all(np.isfinite(values)):
        return f"the unpatched runs give a value that is not finite{base.trouble and f' ({base.trouble})'}"
    if not pair.draws and not pair.ablations:
        return "this corruption found nothing to put in place of the pair's values"
    return None


def _why_not_pooled(pair: Prepared, base: Baseline, scorer: Scorer, min_gap: float) -> str | None:
    if not pair.draws:
        return None
    name = scorer.names[0]
    sign = 1.0 if scorer.metrics[name].higher_is_better else -1.0
    corrupted = float(np.mean([line[name] for line in base.corrupted.values()]))
    gap = sign * (base.clean[name] - corrupted)
    if gap > min_gap:
        return None
    kind = "of the wrong sign" if gap <= 0 else f"below the smallest gap asked for ({min_gap:g})"
    return f"its gap in {name} is {kind}: clean {base.clean[name]:.3g}, corrupted {corrupted:.3g}"


def _nothing_left(prepared: Sequence[Prepared], reasons: Mapping[int, str]) -> list[str]:
    shown = [f"Pair {prepared[index].id!r}: {reason}." for index, reason in list(reasons.items())[:5]]
    return [f"None of the {len(prepared)} pairs can be used, so there is nothing to patch.", *shown]
