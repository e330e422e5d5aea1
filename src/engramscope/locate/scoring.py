"""Which runs a set of metrics needs of a pair, and from their logits to one number per metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engramscope.locate.prepare import Prepared
from engramscope.metrics import combine, get_metric
from engramscope.metrics._base import Metric, Target

Continuation = tuple[int, ...]


@dataclass(frozen=True)
class Scorer:
    """Scores runs with several metrics at once.

    A metric on the first token reads the logits after the prompt. A metric on whole answers needs the prompt
    continued by each acceptable answer (all but its last token), one run per answer, and combines them. Answers of
    one token need no run of their own.

    Args:
        names: names of the metrics.
    """

    names: tuple[str, ...]
    metrics: Mapping[str, Metric] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", {name: get_metric(name) for name in self.names})

    @property
    def needs_clean(self) -> bool:
        """Whether some metric compares with the clean run's distribution."""
        return any(metric.needs_clean for metric in self.metrics.values())

    @property
    def needs_vocabulary(self) -> bool:
        """Whether some metric looks at more logits than those of the answers."""
        return not all(metric.reads_answers_only for metric in self.metrics.values())

    def tokens_read(self, pair: Prepared) -> tuple[int, ...]:
        """The token ids whose logits are looked at where `needs_vocabulary` is False."""
        answers = (*pair.tokens.correct, *pair.tokens.incorrect)
        return tuple(dict.fromkeys(token for answer in answers for token in answer))

    def continuations(self, pair: Prepared) -> tuple[Continuation, ...]:
        """What the prompts of this pair must be continued by, without repetition; () is the bare prompt."""
        wanted: list[Continuation] = []
        for metric in self.metrics.values():
            wanted += [()] if metric.scores == "first_token" else [answer[:-1] for answer in pair.tokens.correct]
        return tuple(dict.fromkeys(wanted))

    def score(
        self,
        logits: Tensor,
        jobs: Sequence[tuple[Prepared, Continuation]],
        clean_logits: Mapping[int, Tensor],
        columns: Tensor | None = None,
    ) -> list[dict[str, float]]:
        """Partial scores of each row: metric name (and answer number) -> number.

        Args:
            logits: [rows, len(continuation) + 1, vocab], all rows with equally long continuations.
            columns: token ids that the last axis of `logits` stands for; None for the whole vocabulary.
            jobs: the pair and continuation of each row.
            clean_logits: pair index -> logits of the clean run after the prompt, where a metric needs them.
        """
        scores: list[dict[str, float]] = [{} for _ in jobs]
        place = None if columns is None else {token: at for at, token in enumerate(columns.tolist())}
        for name, metric in self.metrics.items():
            for key, members in _rows_for(metric, name, jobs).items():
                rows = [row for row, _ in members]
                targets = [_target(jobs[row][0], answer, metric, clean_logits, place) for row, answer in members]
                read = logits[rows][:, :1] if metric.scores == "first_token" else logits[rows]
                for row, value in zip(rows, metric.score(read, targets).tolist(), strict=True):
                    scores[row][str(key)] = value
        return scores

    def combined(self, partial: Mapping[str, float]) -> dict[str, float]:
        """One number per metric from the partial scores of all continuations of one (pair, cell, draw)."""
        answers: dict[str, list[float]] = defaultdict(list)
        for key, value in partial.items():
            answers[key.split("/", 1)[0]].append(value)
        return {
            name: answers[name][0] if self.metrics[name].scores == "first_token" else combine(answers[name])
            for name in self.names
        }


def readout_positions(length: int, continuation: Continuation) -> tuple[int, ...]:
    """Positions whose logits predict the answer: the last of the prompt, and each of the continuation."""
    return tuple(range(length - 1, length + len(continuation)))


def _rows_for(
    metric: Metric, name: str, jobs: Sequence[tuple[Prepared, Continuation]]
) -> dict[Hashable, list[tuple[int, int | None]]]:
    """Rows that the metric scores, each with the number of the answer (None: all answers by their first token)."""
    rows: dict[Hashable, list[tuple[int, int | None]]] = defaultdict(list)
    for row, (pair, continuation) in enumerate(jobs):
        if metric.scores == "first_token":
            if continuation == ():
                rows[name].append((row, None))
            continue
        for number, answer in enumerate(pair.tokens.correct):
            if answer[:-1] == continuation:
                rows[f"{name}/{number}"].append((row, number))
    return rows


def _target(
    pair: Prepared,
    answer: int | None,
    metric: Metric,
    clean_logits: Mapping[int, Tensor],
    place: Mapping[int, int] | None,
) -> Target:
    correct = pair.tokens.correct if answer is None else (pair.tokens.correct[answer],)
    clean = clean_logits[pair.index] if metric.needs_clean else None
    if place is None:
        return Target(correct, pair.tokens.incorrect, clean)
    # where only some columns are there, a token is where its column is
    right, wrong = (
        tuple(tuple(place[token] for token in one) for one in part) for part in (correct, pair.tokens.incorrect)
    )
    return Target(right, wrong, clean)
