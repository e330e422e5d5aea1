"""Tables of editors: means with the published interval and a better one, and differences between editors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from engramscope.errors import InputError
from engramscope.evaluate.case import CaseResult
from engramscope.evaluate.measures import HARMONIC, MEASURES
from engramscope.stats.clusters import Floats
from engramscope.stats.intervals import (
    ResampledMeans,
    bootstrap_limits,
    harmonic_mean,
    published_interval,
    resampled_means,
    wilson_interval,
)
from engramscope.stats.paired import paired_differences

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """One measure of one editor over its cases, scaled as in the tables (mostly times 100).

    Attributes:
        editor: whose.
        measure: a key of `MEASURES` or of `HARMONIC`.
        n: cases that have it.
        mean: over cases; inf where a divergence is infinite because the model collapsed.
        low, high: the published interval; NaN where the publication has none (S) or the mean is infinite.
        better_low, better_high: the better interval; NaN where there is none.
        rule: how the better one was found: "wilson", "bootstrap" (BCa), "parts" (the harmonic mean at both ends of its
            parts' better intervals) or "none".
        collapsed: in how many of the cases the model did not answer in numbers at some prompt.
    """

    editor: str
    measure: str
    n: int
    mean: float
    low: float
    high: float
    better_low: float
    better_high: float
    rule: str
    collapsed: int

    @property
    def half_width(self) -> float:
        """Half the published interval: what stands in brackets in published tables."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Difference:
    """One editor minus another in one measure, on the cases that both have, scaled as in the tables.

    Attributes:
        measure: a key of `MEASURES` or of `HARMONIC`.
        first, second: the editors.
        difference: first minus second.
        low, high: percentile bootstrap interval of this comparison alone.
        low_all, high_all: interval that holds for all comparisons of the measure together (max-T).
        p: of this comparison alone.
        p_max_t: family-wise, by the largest statistic of all comparisons of the measure.
        p_holm: family-wise, by Holm's correction of p.
        n: cases that were compared.
        left_out: cases that one of the editors of the table does not have, or where a value is infinite.
    """

    measure: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    low_all: float
    high_all: float
    p: float
    p_max_t: float
    p_holm: float
    n: int
    left_out: int


def summarise(
    results: Mapping[str, Sequence[CaseResult]], measures: Sequence[str] | None = None,
    clusters: Mapping[str, str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES,
) -> list[Estimate]:  # fmt: skip
    """Each editor's mean of each measure, with both intervals.

    Args:
        results: editor -> its results, a case each.
        measures: which; by default S and every measure that some case has, in the order of the tables.
        clusters: id of a record -> what it shares with others that are not independent of it (its subject); by default
            every record stands for itself.
        seed: of the bootstrap. An estimate does not depend on the other editors or measures of the table.
        resamples: of the bootstrap.

    Returns:
        Editor by editor; measures that no case of an editor has are left out.

    Raises:
        InputError: there is no such measure.
    """
    chosen = list(measures) if measures is not None else measures_of(results)
    if unknown := [name for name in chosen if name not in MEASURES and name not in HARMONIC]:
        raise InputError(f"There is no measure {unknown[0]!r}; known are {', '.join((*HARMONIC, *MEASURES))}.")
    return [
        estimate
        for editor, cases in results.items()
        if cases
        for estimate in _of_editor(editor, cases, chosen, clusters, seed, resamples)
    ]


def differences(
    results: Mapping[str, Sequence[CaseResult]], measure: str, clusters: Mapping[str, str] | None = None, *,
    against: str | None = None, seed: int = 0, resamples: int = RESAMPLES,
) -> list[Difference]:  # fmt: skip
    """Differences between editors in one measure, paired by record.

    Args:
        results: editor -> its results.
        measure: a key of `MEASURES`, or of `HARMONIC` ("S").
        clusters: id of a record -> its cluster.
        against: compare each editor with this one only ("none": the unedited model); by default all with all.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: there is no such measure or editor.
    """
    parts = HARMONIC.get(measure, (measure,))
    if unknown := [part for part in parts if part not in MEASURES]:
        raise InputError(f"There is no measure {unknown[0]!r}; known are {', '.join((*HARMONIC, *MEASURES))}.")
    if against is not None and against not in results:
        raise InputError(f"There is no editor {against!r} in this table; there are {', '.join(results)}.")
    values = {editor: _values(cases) for editor, cases in results.items()}
    editors = [name for name, found in values.items() if any(parts[0] in case for case in found.values())]
    ids = list(dict.fromkeys(record for name in editors for record in values[name]))
    pairs = list(combinations(range(len(editors)), 2))
    if against is not None:
        other = editors.index(against) if against in editors else -1
        pairs = [(i, other) for i in range(len(editors)) if i != other and other >= 0]
    table = np.array(
        [[[values[name].get(record, {}).get(part, np.nan) for part in parts] for name in editors] for record in ids]
    ).reshape(len(ids), len(editors), len(parts))
    table[np.isinf(table)] = np.nan
    statistic: Callable[[Floats], Floats] | None = harmonic_mean if measure in HARMONIC else None
    found = paired_differences(
        table, pairs, None if clusters is None else [clusters[record] for record in ids],
        rng=np.random.default_rng(seed), statistic=statistic, resamples=resamples,
    )  # fmt: skip
    scale = 100.0 if measure in HARMONIC else MEASURES[measure].scale
    return [
        Difference(
            measure, editors[one], editors[other], scale * float(found.difference[k]), scale * float(found.low[k]),
            scale * float(found.high[k]), scale * float(found.low_all[k]), scale * float(found.high_all[k]),
            float(found.p[k]), float(found.p_max_t[k]), float(found.p_holm[k]), found.n_cases,
            len(ids) - found.n_cases,
        )
        for k, (one, other) in enumerate(pairs)
    ]  # fmt: skip


def measures_of(results: Mapping[str, Sequence[CaseResult]]) -> list[str]:
    """The measures that some case has, in the order of the tables, each score of scores before its parts."""
    seen = {one.measure for cases in results.values() for case in cases for one in case.rows}
    scores = {parts[0]: name for name, parts in HARMONIC.items() if seen >= set(parts)}
    return [name for one in MEASURES if one in seen for name in ([scores[one], one] if one in scores else [one])]


def _of_editor(
    editor: str, cases: Sequence[CaseResult], chosen: Sequence[str], clusters: Mapping[str, str] | None, seed: int,
    resamples: int,
) -> list[Estimate]:  # fmt: skip
    values = _values(cases)
    columns = [name for name in MEASURES if any(name in case for case in values.values())]
    table = np.array([[case.get(name, np.nan) for name in columns] for case in values.values()])
    lost = {case.record: set(case.collapsed) for case in cases}
    labels = np.array([record if clusters is None else clusters[record] for record in values])
    sampled = resampled_means(table, labels, rng=np.random.default_rng(seed), resamples=resamples)
    found = []
    for name in chosen:
        parts = [columns.index(part) for part in HARMONIC.get(name, (name,)) if part in columns]
        if len(parts) == len(HARMONIC.get(name, (name,))):
            n = int((~np.isnan(table[:, parts])).any(axis=1).sum())
            collapsed = sum(not names.isdisjoint(HARMONIC.get(name, (name,))) for names in lost.values())
            figures = _figures(name, table[:, parts], _some(sampled, parts))
            found.append(Estimate(editor, name, n, *figures, collapsed))
    return found


def _figures(name: str, values: Floats, sampled: ResampledMeans) -> tuple[float, float, float, float, float, str]:
    """Mean, published interval, better interval and its rule, scaled."""
    scale = 100.0 if name in HARMONIC else MEASURES[name].scale
    if name in HARMONIC:
        mean, low, high, rule = _harmonic(HARMONIC[name], np.nanmean(values, axis=0), sampled)
        published = (np.nan, np.nan)
    else:
        values = values[~np.isnan(values)]
        mean, published = float(values.mean()), published_interval(values)
        low, high, rule = _better(name, mean, sampled)
    return scale * mean, scale * published[0], scale * published[1], scale * low, scale * high, rule


def _harmonic(parts: Sequence[str], means: Floats, sampled: ResampledMeans) -> tuple[float, float, float, str]:
    """The harmonic mean of some means, its better interval and the rule.

    Where the bootstrap has no width (all cases are perfect, or one part is 0 in each), the interval reaches from the
    harmonic mean of the parts' lower limits to that of the upper ones, which is on the safe side.
    """
    mean = float(harmonic_mean(means))
    drawn = ResampledMeans(
        harmonic_mean(sampled.means)[:, None], harmonic_mean(sampled.left_out)[:, None],
        sampled.n_clusters.min(keepdims=True),
    )  # fmt: skip
    low, high, rule = _better("", mean, drawn)
    if low < high or rule == "none":
        return mean, low, high, rule
    limits = [_better(name, float(means[k]), _some(sampled, [k]))[:2] for k, name in enumerate(parts)]
    low, high = harmonic_mean(np.transpose(limits)).tolist()
    return mean, low, high, "parts"


def _better(name: str, mean: float, sampled: ResampledMeans) -> tuple[float, float, str]:
    """The better interval: Wilson's for proportions and at the ends of a share's range, else the BCa bootstrap.

    Where all cases of a share are 0 or all are 1 the bootstrap has no width. Wilson's n is the number of clusters, as
    if each were one observation: with clusters of several cases that is on the safe side.
    """
    if not np.isfinite(mean):
        return np.nan, np.nan, "none"
    measure, n_clusters = MEASURES.get(name), int(sampled.n_clusters[0])
    at_an_end = measure is not None and measure.share and mean in (0.0, 1.0)
    if measure is not None and (measure.single or at_an_end) and measure.share:
        return *wilson_interval(mean, n_clusters), "wilson"
    low, high = bootstrap_limits([mean], sampled)
    return float(low[0]), float(high[0]), "bootstrap" if np.isfinite(low[0]) else "none"


def _some(sampled: ResampledMeans, columns: Sequence[int]) -> ResampledMeans:
    return ResampledMeans(sampled.means[:, columns], sampled.left_out[:, columns], sampled.n_clusters[columns])


def _values(cases: Sequence[CaseResult]) -> dict[str, dict[str, float]]:
    return {case.record: case.values for case in cases}
