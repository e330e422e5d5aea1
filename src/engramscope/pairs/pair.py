"""A pair (clean and corrupted prompt with their answers) and a set of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engramscope.errors import PairsError
from engramscope.pairs.matching import CharSpan, matching_span

__all__ = ["CharSpan", "Pair", "PairSet"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One question asked twice: in a form that the model should get right, and in a corrupted form.

    Attributes:
        id: unique within its set.
        clean: the prompt as it stands, ending just before the answer.
        correct: acceptable answers as text, each with the leading space it needs (" Paris").
        corrupted: the prompt of the corrupted run; None where the corruption makes it.
        incorrect: answers that are wrong for `clean`; usually right for `corrupted`.
        group: what makes pairs dependent on one another (a template, a subject): the cluster of the statistics.
        spans: named character ranges [start, end) of `clean`, for example {"subject": (0, 16)}.
        corrupted_spans: the same names in `corrupted`, where they differ from `spans`.
        labels: further properties to compare by, for example {"kind": "definitional"}.
    """

    id: str
    clean: str
    correct: tuple[str, ...]
    corrupted: str | None = None
    incorrect: tuple[str, ...] = ()
    group: str = ""
    spans: Mapping[str, CharSpan] = field(default_factory=dict)
    corrupted_spans: Mapping[str, CharSpan] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def swapped(self) -> Pair:
        """The pair with the roles of the two prompts exchanged (`corrupted` must be given).

        Raises:
            PairsError: there is no corrupted prompt, or a span that lies elsewhere in it and is not given for it.
        """
        if self.corrupted is None:
            raise PairsError(f"Pair {self.id!r} has no corrupted prompt, so it cannot be swapped.")
        spans: dict[str, CharSpan] = {}
        for name, span in self.spans.items():
            found = self.corrupted_spans.get(name) or matching_span(self.clean, self.corrupted, span)
            if found is None:
                raise PairsError(
                    f"Pair {self.id!r} cannot be swapped: where its span {name!r} lies in the corrupted prompt cannot "
                    "be told from the texts; give it in corrupted_spans."
                )
            spans[name] = found
        return replace(
            self,
            id=f"{self.id}-swapped",
            clean=self.corrupted,
            corrupted=self.clean,
            correct=self.incorrect,
            incorrect=self.correct,
            spans={**spans, **self.corrupted_spans},
            corrupted_spans=dict(self.spans),
        )


@dataclass(frozen=True)
class PairSet:
    """An ordered set of pairs with unique ids; immutable.

    Args:
        pairs: the pairs.
        name: where they come from, for messages and reports.

    Raises:
        PairsError: two pairs share an id.
    """

    pairs: tuple[Pair, ...]
    name: str = "pairs"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        doubled = {pair.id for pair in self.pairs if pair.id in seen or seen.add(pair.id)}
        if doubled:
            shown = ", ".join(sorted(doubled)[:5])
            raise PairsError(f"{self.name}: pair ids must be unique, but these occur more than once: {shown}.")

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def filter(self, keep: Callable[[Pair], bool]) -> PairSet:
        """The pairs for which `keep` is true, in the same order."""
        return PairSet(tuple(pair for pair in self.pairs if keep(pair)), self.name)

    def limit(self, count: int | None) -> PairSet:
        """The first `count` pairs (all of them for None)."""
        return self if count is None else PairSet(self.pairs[:count], self.name)

    @classmethod
    def of(cls, pairs: Sequence[Pair], name: str = "pairs") -> PairSet:
        """A set of the given pairs."""
        return cls(tuple(pairs), name)
