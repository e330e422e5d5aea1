"""Clusters: which pairs depend on one another."""

from __future__ import annotations

from collections.abc import Sequence

from engramscope.pairs.pair import Pair


def shared_by(pair: Pair, by: str) -> str:
    """The group of a pair, or its label `by`; empty where it has none, and for `by = "pair"`."""
    return {"group": pair.group, "pair": ""}.get(by, pair.labels.get(by, ""))


def clusters_of(pairs: Sequence[Pair], by: str) -> list[str]:
    """The cluster of every pair: what it shares with others, or a cluster of its own where it shares nothing.

    Args:
        pairs: all pairs of a study, with unique ids.
        by: "group", "pair" or the name of a label.

    Returns:
        One name per pair; a pair that shares nothing is called by its id, with primes if a group is called like that.
    """
    shared = [shared_by(pair, by) for pair in pairs]
    taken, ids = {name for name in shared if name}, {pair.id for pair in pairs}
    found: list[str] = []
    for pair, name in zip(pairs, shared, strict=True):
        own = pair.id
        while not name and (own in taken or (own != pair.id and own in ids)):
            own += "'"
        taken.add(name or own)
        found.append(name or own)
    return found
