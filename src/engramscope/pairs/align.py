"""Partners between the tokens of two prompts."""

from __future__ import annotations

from collections.abc import Sequence

from engramscope.pairs.tokenized import Alignment


def identity(length: int) -> Alignment:
    """Position i stands for position i, for two prompts of `length` tokens."""
    positions = tuple(range(length))
    return Alignment(positions, positions)


def both_ends(clean: Sequence[int], corrupted: Sequence[int]) -> Alignment:
    """Common beginning aligned at the start, the rest aligned at the end; what is left over has no partner.

    With p the length of the longest common prefix of ids (at most min(n, m) - 1, for prompts of n and m tokens) and
    k = min(n, m) - p: the first p positions are partners index by index, the last k positions count from the end; the
    positions between are `clean_only` or `corrupted_only` (one of the two is empty).

    Args:
        clean: token ids of the clean prompt [n], n >= 1.
        corrupted: token ids of the corrupted prompt [m], m >= 1.

    Returns:
        The alignment. The two last positions are always partners, because that is where the logits are read; this holds
        also where one prompt is the beginning of the other, hence the limit on p.
    """
    n, m = len(clean), len(corrupted)
    shorter = min(n, m)
    prefix = 0
    while prefix < shorter - 1 and clean[prefix] == corrupted[prefix]:
        prefix += 1
    tail = shorter - prefix
    return Alignment(
        clean=(*range(prefix), *range(n - tail, n)),
        corrupted=(*range(prefix), *range(m - tail, m)),
        clean_only=tuple(range(prefix, n - tail)),
        corrupted_only=tuple(range(prefix, m - tail)),
    )
