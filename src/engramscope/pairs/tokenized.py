"""A pair as the model sees it: token ids, token positions of the named spans, and who is whose partner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engramscope.pairs.pair import Pair


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """One prompt in tokens.

    Attributes:
        ids: token ids [seq], special tokens (BOS) included where the tokenizer adds them.
        texts: the text of each token [seq], as it is to be shown.
        spans: token positions of every named span, in order.
        roles: the role of each position [seq]: `before subject_first subject_middle subject_last after_subject further
            last` around the span named `subject`, or the names of the spans; `bos` for a leading special token
            (defined in `pairs/roles.py`).
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    spans: Mapping[str, tuple[int, ...]]
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which position of the corrupted prompt stands for which position of the clean prompt.

    Attributes:
        clean: aligned positions of the clean prompt, ascending.
        corrupted: their partners, the same length.
        clean_only: positions of the clean prompt without a partner.
        corrupted_only: positions of the corrupted prompt without a partner.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    clean_only: tuple[int, ...] = ()
    corrupted_only: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair in the tokens of one tokenizer.

    Attributes:
        pair: the pair that it was made from (after the corruption's change of the texts, if it makes one).
        clean: the clean prompt.
        corrupted: the corrupted prompt; equal to `clean` where the corruption changes no token.
        correct: token ids of every acceptable answer, whole answers.
        incorrect: token ids of every incorrect answer.
        alignment: partners between the two prompts.
        notes: sentences about this pair's tokens that a reader should know (an answer that merges with the prompt, a
            span that ends inside a token); nothing here stops a study.
    """

    pair: Pair
    clean: TokenizedPrompt
    corrupted: TokenizedPrompt
    correct: tuple[tuple[int, ...], ...]
    incorrect: tuple[tuple[int, ...], ...]
    alignment: Alignment
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[int, ...]:
        """Aligned positions of the corrupted prompt that hold another token, or another place, than their partner."""
        a, clean, corrupted = self.alignment, self.clean.ids, self.corrupted.ids
        return tuple(q for p, q in zip(a.clean, a.corrupted, strict=True) if p != q or clean[p] != corrupted[q])
