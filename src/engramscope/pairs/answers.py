"""Answers in tokens, as they continue a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engramscope.pairs.encode import Encoded, Encoder


@dataclass(frozen=True, slots=True)
class Continuation:
    """One answer after one prompt.

    Attributes:
        ids: token ids of the whole answer; empty when there is a fault.
        fault: why the answer cannot be scored after this prompt.
        merged: the tokens of prompt and answer are not those of the prompt followed by those of the answer, so `ids`
            are the answer's tokens on its own.
    """

    ids: tuple[int, ...]
    fault: str | None = None
    merged: bool = False


def continuation(encoder: Encoder, prompt: Encoded, answer: str, whole: tuple[int, ...]) -> Continuation:
    """Token ids of `answer` after `prompt`: ids(prompt + answer) without ids(prompt), which must be their beginning.

    Where the prompt's last token merges with the answer, there is no such remainder. After a prompt that ends in white
    space this is a fault (the model would be asked for something that it never writes); otherwise the answer is encoded
    on its own, as the published tasks do ("17" + "00" is one token of GPT-2), and marked as merged.

    Args:
        encoder: the tokenizer.
        prompt: what stands before the answer.
        answer: the answer, with the leading space that it needs.
        whole: ids of the prompt's text followed by the answer.
    """
    if not answer:
        return Continuation((), "an answer is empty")
    before = prompt.ids
    merged = whole[: len(before)] != before or len(whole) == len(before)
    if merged and prompt.text[-1:].isspace():
        return Continuation((), _merge_fault(encoder, prompt.text, answer, before, whole))
    ids = encoder.alone(answer) if merged else whole[len(before) :]
    if not ids:
        return Continuation((), f"the answer {answer!r} has no tokens")
    if any(encoder.is_unknown(token, answer) for token in ids):
        return Continuation((), f"the answer {answer!r} holds characters that the vocabulary cannot write")
    return Continuation(ids, None, merged)


def glued(prompt: str, answers: Sequence[str]) -> tuple[str, ...]:
    """Answers that continue the prompt's last word, because there is no space between letter and letter."""
    if not _cased(prompt[-1:]):
        return ()
    return tuple(answer for answer in answers if _cased(answer[:1]))


def _cased(character: str) -> bool:
    # scripts without capitals (Chinese, Japanese, Thai) write words without spaces
    return character.isalpha() and character.lower() != character.upper()


def _merge_fault(encoder: Encoder, prompt: str, answer: str, before: Sequence[int], whole: Sequence[int]) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    texts = list(encoder.show(whole[same:]))
    return (
        f"the prompt ends in white space ({prompt[-1:]!r}), which merges with the answer {answer!r} into {texts}; end "
        "the prompt before the white space and begin the answer with it"
    )
