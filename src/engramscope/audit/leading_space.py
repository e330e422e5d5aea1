"""Most tokenizers write the space before a word into the word: without it, it is another token."""

from __future__ import annotations

from typing import ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._facts import bare_ids, token_texts
from engramscope.audit._show import count, listed, quoted, tokens

#: after these a word is set off by a space
_CLOSING = frozenset(",.;:!?")


class LeadingSpace(Check):
    """Looks at where prompts end and answers begin."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Leading spaces"

    def run(self, context: AuditContext) -> list[Finding]:
        """Warnings for words as answers without their space, and for prompts that end in one."""
        if context.tokenizer is None:
            return self.ok("There is no tokenizer to ask.")
        if bare_ids(context, "a a") == bare_ids(context, "aa"):
            return self.ok("The tokenizer does not see spaces.")
        bare = [
            (pair, answer)
            for pair in context.pairs
            for answer in (*pair.correct, *pair.incorrect)
            if _runs_together(pair.clean, answer)
        ]
        open_ended = [
            (pair.id, text)
            for pair in context.pairs
            for text in (pair.clean, pair.corrupted or "")
            if text.endswith(" ")
        ]
        findings = []
        if bare:
            findings.append(
                self.finding(
                    "warning",
                    f"In {count(len({pair.id for pair, _ in bare}), 'pair')} an answer follows the prompt's last word "
                    "without a space. To the model a word without its leading space is another token, which it does "
                    "not expect there.",
                    listed(f"{pair.id}: {self._both(context, pair.clean, answer)}" for pair, answer in bare),
                )
            )
        if open_ended:
            findings.append(
                self.finding(
                    "warning",
                    f"{count(len(open_ended), 'prompt ends', 'prompts end')} in a space, which becomes a token of its "
                    "own; the model expects the space in the answer's token. Move it to the answers.",
                    listed(f"{name}: … {tokens(self._last(context, text))}" for name, text in open_ended),
                )
            )
        return findings or self.ok("Prompts end without a space, and answers bring the space that they need.")

    def _both(self, context: AuditContext, prompt: str, answer: str) -> str:
        without, with_space = (self._after(context, prompt, text) for text in (answer, f" {answer}"))
        return f"{quoted(answer)} is {tokens(without)}, with a space {tokens(with_space)}"

    def _after(self, context: AuditContext, prompt: str, answer: str) -> tuple[str, ...]:
        # in its place: SentencePiece puts a space before whatever it is given on its own
        before, whole = bare_ids(context, prompt), bare_ids(context, prompt + answer)
        same = next((i for i, (x, y) in enumerate(zip(before, whole, strict=False)) if x != y), len(before))
        return token_texts(context, whole[same:])

    def _last(self, context: AuditContext, text: str) -> tuple[str, ...]:
        return token_texts(context, bare_ids(context, text)[-3:])


def _runs_together(prompt: str, answer: str) -> bool:
    if not prompt or not answer or not answer[0].isalnum():
        return False
    last = prompt[-1]
    if last.isdigit() and answer[0].isdigit():
        return False  # the second half of a number belongs to the first
    return last.isalnum() or last in _CLOSING


COMPONENT = LeadingSpace
