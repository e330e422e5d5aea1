"""A missing, doubled or unexpected beginning-of-text token shifts positions and probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

from engramscope.audit._base import AuditContext, Check, Finding, Needs
from engramscope.audit._show import count, listed, tokens
from engramscope.pairs.tokenized import TokenizedPair


class Bos(Check):
    """Looks at the first tokens of every prompt."""

    needs: ClassVar[Needs] = "tokens"
    title: ClassVar[str] = "Beginning-of-text token"

    def run(self, context: AuditContext) -> list[Finding]:
        """Warnings for doubled, mixed or missing BOS tokens, a note where the tokenizer does not add the one it has."""
        bos = getattr(context.tokenizer, "bos_token_id", None)
        pairs = context.tokenized or []
        if bos is None:
            return self.ok("The tokenizer has no beginning-of-text token, so position 0 is the first word.")
        named = str(getattr(context.tokenizer, "bos_token", bos))
        with_one = [pair for pair in pairs if all(ids[:1] == (bos,) for ids in _ids(pair))]
        mixed = [pair for pair in pairs if len({ids[:1] == (bos,) for ids in _ids(pair)}) > 1]
        doubled = [pair for pair in pairs if any(ids[:2] == (bos, bos) for ids in _ids(pair))]
        if doubled:
            return [
                self.finding(
                    "warning",
                    f"In {count(len(doubled), 'pair')} a prompt begins with two {named} tokens: the tokenizer adds "
                    "one, and the prompt brings another. Take it out of the prompts.",
                    listed(f"{pair.pair.id}: {tokens(pair.clean.texts[:4])} …" for pair in doubled),
                )
            ]
        if mixed or 0 < len(with_one) < len(pairs):
            other = mixed or [pair for pair in pairs if pair not in with_one]
            return [
                self.finding(
                    "warning",
                    f"{len(with_one)} of {count(len(pairs), 'pair')} begin with {named} and the others do not, so the "
                    "same position is not the same word. Treat all prompts alike.",
                    listed(f"{pair.pair.id}: {tokens(pair.clean.texts[:4])} …" for pair in other),
                )
            ]
        if with_one:
            return self.ok(f"Every prompt begins with one {named} at position 0; the words begin at position 1.")
        return [self._missing(context.tokenizer, named)]

    def _missing(self, tokenizer: Any, named: str) -> Finding:
        if getattr(tokenizer, "add_bos_token", False):
            return self.finding(
                "warning",
                f"The tokenizer is set to add {named}, but the prompts begin without it. The model was probably "
                "trained with it, and is off its distribution without.",
            )
        return self.finding(
            "note",
            f"The tokenizer has {named} but does not add it, so position 0 is the first word. Tools that do add it "
            "(TransformerLens does by default) count positions from one place earlier, and their probabilities differ.",
        )


def _ids(pair: TokenizedPair) -> tuple[tuple[int, ...], ...]:
    return pair.clean.ids, pair.corrupted.ids


COMPONENT = Bos
