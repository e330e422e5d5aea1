"""How well a model gives an answer after a prompt: teacher-forced, and in its own words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp, isnan

from engramscope.edit.tokens import encode, encoder_of, spaced
from engramscope.evaluate.readings import NO_TOKEN, Readings
from engramscope.models.model import Model

#: a model that writes nothing one can see is not waited for longer than this many tokens past the answer's
_PATIENCE = 8


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One answer after one prompt, every token with the true ones before it.

    Attributes:
        nll: mean negative log-likelihood per token of the answer, in nats, ≥ 0; NaN where the model collapsed.
        tokens: of the answer.
        right: how many of them are the most probable token.
    """

    nll: float
    tokens: int
    right: int

    @property
    def collapsed(self) -> bool:
        """The model's logits are not numbers."""
        return isnan(self.nll)

    @property
    def probability(self) -> float:
        """P̃ = exp(−nll): the geometric mean of the tokens' probabilities; 0 where the model collapsed."""
        return 0.0 if self.collapsed else exp(-self.nll)

    @property
    def accurate(self) -> bool:
        """Every token of the answer is the most probable one."""
        return self.right == self.tokens


def score_answers(
    model: Model, questions: Sequence[tuple[str, str]], readings: Readings, whole: Collection[str] = ()
) -> list[AnswerScore]:
    """Score answers after their prompts, all in few batches.

    Args:
        model: the model.
        questions: (prompt, answer); the answer without the space in front.
        readings: of the model as it is now.
        whole: prompts among them after which the whole distribution of the next token is kept.

    Raises:
        InputError: an answer has no tokens, or a text is longer than the model's positions.
    """
    asks = encode(model, [prompt for prompt, _ in questions], [answer for _, answer in questions])
    wanted: dict[tuple[int, ...], set[int]] = {}
    for ask in asks:
        for place, token in enumerate(ask.target):
            wanted.setdefault(ask.prompt + ask.target[:place], set()).add(token)
    kept = [ask.prompt for ask, (prompt, _) in zip(asks, questions, strict=True) if prompt in whole]
    readings.read(wanted, whole=kept)
    scores = []
    for ask in asks:
        steps = [(ask.prompt + ask.target[:place], token) for place, token in enumerate(ask.target)]
        nll = -sum(readings.log_prob(before, token) for before, token in steps) / len(steps)
        right = sum(readings.best(before) == token for before, token in steps)
        # NaN if one of the tokens is; + 0.0 because "-0.0" would look odd in a table
        scores.append(AnswerScore(nll + 0.0, len(steps), right))
    return scores


def generated_answers(model: Model, questions: Sequence[tuple[str, str]], readings: Readings) -> list[bool | None]:
    """Whether the model, left to itself, writes each answer right after its prompt.

    Greedy decoding, no teacher forcing. The text that is generated must begin with the whole answer, white space
    normalised, and the answer must end where a word ends: "Arthur" is not "Art".

    Args:
        model: the model.
        questions: (prompt, answer); the answer without the space in front.
        readings: of the model as it is now.

    Returns:
        For each question, None where the model's logits are not numbers.
    """
    asks = encode(model, [prompt for prompt, _ in questions], [answer for _, answer in questions])
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    writers = [
        _Writer(model, ask.prompt, spaced(prompt, answer), len(ask.target) + _PATIENCE + len(answer), limit)
        for ask, (prompt, answer) in zip(asks, questions, strict=True)
    ]
    while going := [writer for writer in writers if not writer.done]:
        readings.read({writer.ids: () for writer in going})
        for writer in going:
            writer.take(readings.best(writer.ids))
    return [writer.verdict for writer in writers]


class _Writer:
    """One text that is generated token by token, until it is clear whether it begins with the answer."""

    def __init__(self, model: Model, prompt: tuple[int, ...], answer: str, most: int, limit: int | None) -> None:
        self._decode = encoder_of(model).tokenizer.decode
        self._ends = set(encoder_of(model).tokenizer.all_special_ids)
        self._prompt_text = self._text(prompt)
        self._answer, self._start = answer, len(prompt)
        self._last = len(prompt) + most if limit is None else min(len(prompt) + most, limit)
        self.ids = prompt
        self.done = False
        self.verdict: bool | None = None

    def take(self, token: int) -> None:
        """The next token; `NO_TOKEN` ends the text without a verdict."""
        if token == NO_TOKEN:
            self.done = True
            return
        ended = token in self._ends or len(self.ids) >= self._last
        if token not in self._ends:
            self.ids = (*self.ids, token)
        before, whole = self._prompt_text, self._text(self.ids)
        if not whole.startswith(before):  # a decoder that changes what stands before
            before, whole = "", self._text(self.ids[self._start :])
        self.verdict = begins_with(whole[len(before) :], self._answer, before, ended=ended)
        self.done = self.verdict is not None

    def _text(self, ids: tuple[int, ...]) -> str:
        return str(self._decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def begins_with(written: str, answer: str, prompt: str = "", *, ended: bool) -> bool | None:
    """Whether what was written after a prompt begins with an answer, white space normalised.

    Args:
        written: so far.
        answer: the whole answer, with the space in front that it needs.
        prompt: what stands before; where the answer is a word of its own, the text must not go on with the prompt's
            last word.
        ended: nothing more will be written.

    Returns:
        None where it cannot be told yet.
    """
    # the last character may be half-written, in bytes
    seen = written if ended else written.rstrip("�")
    if answer[:1].isspace() and _joined(prompt[-1:], seen[:1]):
        return False
    text, wanted = _normalised(seen), _normalised(answer).rstrip()
    if len(text) > len(wanted):
        return text.startswith(wanted) and not _joined(wanted[-1:], text[len(wanted)])
    if not wanted.startswith(text):
        return False
    return text == wanted if ended else None


def _normalised(text: str) -> str:
    """Single spaces, none in front; one at the end stays, because it says that a word is over."""
    return " ".join(text.split()) + (" " if text[-1:].isspace() and text.strip() else "")


def _joined(left: str, right: str) -> bool:
    """Whether two characters that stand side by side belong to one word."""
    return bool(left) and bool(right) and _of_a_word(left) and _of_a_word(right)


def _of_a_word(character: str) -> bool:
    # scripts without capitals (Chinese, Japanese, Thai) write words without spaces
    return character.isdigit() or character.lower() != character.upper()
