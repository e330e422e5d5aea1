"""A proposal in sentences."""

from __future__ import annotations

from collections import Counter

from engramscope.questions.proposal import Proposal
from engramscope.results.numbers import counted, whole


def summary(proposal: Proposal, abstracts: int) -> list[str]:
    """What was proposed, with an example of each kind, and what was left out and why.

    Args:
        proposal: the proposal.
        abstracts: how many abstracts it is from.
    """
    kinds = Counter(pair.labels["kind"] for pair in proposal.pairs)
    told = " and ".join(f"{kinds[kind]} {kind}" for kind in ("definitional", "associative"))
    lines = [f"{told} questions from {counted(abstracts, 'abstract')}, both orders of each couple."]
    for kind in kinds:
        pair = next(pair for pair in proposal.pairs if pair.labels["kind"] == kind)
        lines.append(f"  {pair.clean} … {pair.labels['answer']} (not: {pair.labels['wrong_answer']})")
    if proposal.dropped:
        lines += ["", "Left out:"]
        width = max(len(whole(times)) for times in proposal.dropped.values())
        ordered = sorted(proposal.dropped.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {whole(times):>{width}}  {reason}" for reason, times in ordered]
    lines += ["", "Proposals are found by rules; read each with its sentences before you use it."]
    return lines
