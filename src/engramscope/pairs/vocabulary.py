"""Which words are one token: what a maker of prompts must know of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from engramscope.errors import PairsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """The words of a tokenizer; without one, every word counts as a single token.

    Args:
        tokenizer: a fast tokenizer, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._encoder = None
        if tokenizer is not None:
            from engramscope.pairs.encode import Encoder  # here: makers of prompts need no tokenizer to be listed

            self._encoder = Encoder(tokenizer)

    def splits(self, text: str) -> tuple[int, ...] | None:
        """Token ids of a text as it stands inside another one (a word with the space before it); None without one."""
        return None if self._encoder is None else self._encoder.alone(text)

    def is_single(self, word: str) -> bool:
        """Whether " word" is one token that is not the one for unknown words."""
        tokens = self.splits(f" {word}")
        if tokens is None or self._encoder is None:
            return True
        return len(tokens) == 1 and not self._encoder.is_unknown(tokens[0], word)

    def is_single_answer(self, prompt: str, answer: str) -> bool:
        """Whether an answer with its leading space is one token (`prompt` is what it continues)."""
        if self._encoder is None:
            return True
        before, after = self._encoder.ids([prompt, prompt + answer])
        return len(after) == len(before) + 1 and after[: len(before)] == before

    def length(self, text: str) -> int:
        """Tokens of a text, special ones before it included; words without a tokenizer."""
        return len(text.split()) if self._encoder is None else len(self._encoder.ids([text])[0])

    def is_split_as(self, text: str, parts: Iterable[str]) -> bool:
        """Whether a text is exactly these tokens, for example " 1732" as " 17" and "32"."""
        tokens, wanted = self.splits(text), list(parts)
        if tokens is None or self._encoder is None:
            return True
        shown = self._encoder.show(tokens)
        return len(tokens) == len(wanted) and all(a.strip() == b.strip() for a, b in zip(shown, wanted, strict=True))

    def shown(self, text: str) -> str:
        """The tokens of a text, for a message."""
        tokens = self.splits(text)
        return (
            repr(text) if tokens is None or self._encoder is None else " ".join(map(repr, self._encoder.show(tokens)))
        )

    def singles(self, words: Iterable[str], what: str, least: int = 1) -> list[str]:
        """Those of the words that are one token.

        Args:
            words: the words, without leading spaces.
            what: what they are, for the message ("names").
            least: how many are needed.

        Raises:
            PairsError: fewer than that are left.
        """
        every = list(dict.fromkeys(words))
        found = [word for word in every if self.is_single(word)]
        if len(found) < least:
            raise PairsError(
                f"This tokenizer writes only {len(found)} of {len(every)} {what} as one token, and at least {least} "
                "are needed; use a model whose tokenizer knows them as words."
            )
        return found
