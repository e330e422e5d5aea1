"""From the results of the tools to the rows of the table: agreement, ratios, targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.results import Result

#: largest difference allowed between tools in any logit difference
TOLERANCE = 1e-4
#: part of the floor that a sweep on a processor is to reach
SHARE_TARGET = 0.75
PEERS = ("transformer_lens", "nnsight")


@dataclass(frozen=True)
class Agreement:
    """A peer's logit differences against ours, on the cells that the peer ran.

    Attributes:
        max_abs_diff: the largest difference.
        runs: how many runs were compared.
        spread: standard deviation over cells of our numbers, averaged over runs: what a wrong cell would show.
        same_weights: whether both ran the same weights.
    """

    max_abs_diff: float
    runs: int
    spread: float
    same_weights: bool

    @property
    def holds(self) -> bool:
        return self.same_weights and self.runs > 0 and self.max_abs_diff <= TOLERANCE


@dataclass(frozen=True)
class Target:
    """Something that was to be reached."""

    what: str
    reached: float
    wanted: float
    met: bool


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        case: the case.
        results: by tool.
        ratios: tool -> how many times longer it takes than Engramscope.
        ratios_only_last: the same if the tool were asked for the last position's logits only.
        agreements: tool -> agreement.
        targets: what was to be reached.
        errors: what makes the row wrong.
    """

    case: Case
    results: Mapping[str, Result]
    ratios: Mapping[str, float]
    ratios_only_last: Mapping[str, float]
    agreements: Mapping[str, Agreement]
    targets: tuple[Target, ...]
    errors: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "case": asdict(self.case),
            "results": {tool: result.as_json() for tool, result in self.results.items()},
            "ratios": dict(self.ratios),
            "ratios_only_last": dict(self.ratios_only_last),
            "agreements": {tool: asdict(agreement) for tool, agreement in self.agreements.items()},
            "targets": [asdict(target) for target in self.targets],
            "errors": list(self.errors),
        }


def compare(case: Case, results: Mapping[str, Result], *, timed: bool, on_cuda: bool) -> Row:
    """Judge the results of one case.

    Args:
        case: the case.
        results: by tool.
        timed: whether sizes are real ones, so that targets apply.
        on_cuda: whether a GPU did the work: the target share of the floor is one for processors.
    """
    ours = results.get("engramscope")
    errors = [f"{tool}: {r.status}" for tool, r in results.items() if not r.ok and r.status != "not installed"]
    usable = {tool: results[tool] for tool in PEERS if tool in results and results[tool].ok}
    if ours is None or not ours.ok:
        return Row(case, results, {}, {}, {}, (), tuple(errors))
    agreements = {tool: agreement_of(ours, peer) for tool, peer in usable.items()}
    for tool, agreement in agreements.items():
        if not agreement.holds:
            why = f"differs by {agreement.max_abs_diff:.2g}" if agreement.same_weights else "ran other weights"
            errors.append(f"{tool} {why}, over {agreement.runs} runs")
    ratios = {tool: peer.seconds / ours.seconds for tool, peer in usable.items()}
    only_last = {tool: _only_last_seconds(peer) / ours.seconds for tool, peer in usable.items()}
    targets = tuple(_targets(case, ours, ratios, on_cuda=on_cuda)) if timed else ()
    return Row(case, results, ratios, only_last, agreements, targets, tuple(errors))


def agreement_of(ours: Result, peer: Result) -> Agreement:
    """How far a peer's numbers are from ours."""
    assert ours.patched is not None
    assert peer.patched is not None
    run = ~np.isnan(peer.patched)
    difference = np.abs(ours.patched - peer.patched)[run]
    return Agreement(
        max_abs_diff=float(difference.max()) if run.any() else float("nan"),
        runs=int(run.sum()),
        spread=float(ours.patched.std(axis=0).mean()),
        same_weights=ours.weights == peer.weights,
    )


def _only_last_seconds(peer: Result) -> float:
    return peer.seconds * peer.details["forward_only_last_s"] / peer.details["forward_s"]


def _targets(case: Case, ours: Result, ratios: Mapping[str, float], *, on_cuda: bool) -> list[Target]:
    found = []
    if case.ratio_target and "transformer_lens" in ratios:
        ratio = ratios["transformer_lens"]
        found.append(Target("times TransformerLens", ratio, case.ratio_target, ratio >= case.ratio_target))
    if case.seconds_target:
        found.append(Target("seconds", ours.seconds, case.seconds_target, ours.seconds <= case.seconds_target))
    if not on_cuda:
        share = ours.details["floor"]["share"]
        found.append(Target("share of the floor", share, SHARE_TARGET, share >= SHARE_TARGET))
    return found
