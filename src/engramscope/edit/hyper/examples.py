"""Edits to learn from: records of CounterFact, or passages of text with a continuation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from engramscope.edit.frozen import frozen
from engramscope.edit.hyper.loss import Trial
from engramscope.edit.tokens import Ask, encode, encoder_of, logits_of, rows_of
from engramscope.errors import InputError
from engramscope.models.model import Model
from engramscope.records.record import Record

Locality = Literal["neighbourhood", "unrelated"]
Continuation = Literal["model", "other"]
#: unrelated texts, and shortened prompts, that an example of running text can be given
_OTHERS, _CUTS = 8, 3


@dataclass(frozen=True, slots=True)
class Example:
    """An edit, and what trials with it are drawn from.

    Attributes:
        edit: prompt and target.
        others: other prompts with the same target: paraphrases, or the prompt without its beginning.
        local: texts that the edit is not about.
        group: examples of one group are never on both sides of a split: the subject, or the passage.
        targets: other targets that would make an edit too: those of other records of the relation, or pieces of other
            passages.
    """

    edit: Ask
    others: tuple[Ask, ...]
    local: tuple[Ask, ...]
    group: str
    targets: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def drawn(self, texts: int, mixed: float, draw: np.random.Generator) -> Trial:
        """A trial for a training step.

        Args:
            texts: local texts (some again, where there are fewer).
            mixed: how likely it is that the target is exchanged for another one.
            draw: what chooses the prompt that is scored, the texts, and the target.
        """
        prompts = (self.edit, *self.others)
        local = draw.choice(len(self.local), texts, replace=len(self.local) < texts)
        edit, scored = self.edit, prompts[draw.integers(len(prompts))]
        if self.targets and draw.random() < mixed:
            target = self.targets[draw.integers(len(self.targets))]
            edit, scored = replace(edit, target=target), replace(scored, target=target)
        return Trial(edit, (scored,), tuple(self.local[int(i)] for i in local))

    def fixed(self, texts: int) -> Trial:
        """A trial for validation, always the same: the edited prompt and another one."""
        other = self.others[0] if self.others else self.edit
        local = (self.local * texts)[:texts]
        return Trial(self.edit, (self.edit, other), local)


def from_records(model: Model, records: Sequence[Record], locality: Locality, seed: int) -> list[Example]:
    """Examples from records: the fact is the edit, the paraphrases are other prompts for it.

    Args:
        model: the model.
        records: with paraphrases or without.
        locality: the texts on which nothing is to change: the neighbourhood prompts of the record, where it has some,
            or always prompts of other records, about other subjects and another relation where there is one.
        seed: of the choice of unrelated prompts.

    Raises:
        InputError: a prompt or target cannot be encoded.
    """
    draw = np.random.default_rng([seed, 1])
    facts = [record.fact for record in records]
    edits = encode(model, [fact.prompt for fact in facts], [fact.target for fact in facts])
    plain = encode(model, [fact.prompt for fact in facts], [fact.true or fact.target for fact in facts])
    others = _each(model, [[(prompt, one.fact.target) for prompt in one.paraphrases] for one in records])
    near = records if locality == "neighbourhood" else ()
    probes = _each(model, [[(probe.prompt, probe.true) for probe in one.neighbourhood] for one in near])
    pools = _targets(records, edits)
    examples = []
    for place, (record, edit) in enumerate(zip(records, edits, strict=True)):
        local = probes[place] if probes else []
        if not local:
            local = [plain[other] for other in _unrelated(records, place, draw)]
        targets = pools.get(record.relation, ())
        examples.append(Example(edit, tuple(others[place]), tuple(local), record.fact.subject, targets))
    return examples


def _each(model: Model, texts: Sequence[Sequence[tuple[str, str]]]) -> list[list[Ask]]:
    """Lists of prompts with targets, encoded in one call."""
    flat = [pair for some in texts for pair in some]
    asks = iter(encode(model, [prompt for prompt, _ in flat], [target for _, target in flat]))
    return [[next(asks) for _ in some] for some in texts]


def _targets(records: Sequence[Record], edits: Sequence[Ask]) -> dict[str | None, tuple[tuple[int, ...], ...]]:
    """All targets of a relation; records that name none have none to exchange theirs for."""
    pools: dict[str | None, dict[tuple[int, ...], None]] = {}
    for record, edit in zip(records, edits, strict=True):
        if record.relation is not None:
            pools.setdefault(record.relation, {})[edit.target] = None
    return {relation: tuple(pool) for relation, pool in pools.items()}


def _unrelated(records: Sequence[Record], place: int, draw: np.random.Generator) -> list[int]:
    """Places of records about other subjects, and of other relations where there are such."""
    mine = records[place]
    order = draw.permutation(len(records))[: 16 * _OTHERS]
    strangers = [int(other) for other in order if records[other].fact.subject != mine.fact.subject]
    # almost all records of a file may be about one subject
    strangers = strangers or [at for at, one in enumerate(records) if one.fact.subject != mine.fact.subject]
    far = [other for other in strangers if records[other].relation != mine.relation]
    return (far or strangers)[:_OTHERS]


def from_texts(
    model: Model, texts: Sequence[str], tokens: int, continuation: Continuation, longest: int, seed: int
) -> list[Example]:
    """Examples from passages: the beginning of a passage is the prompt, and the edit continues it.

    Other prompts for it are its end alone (a random number of tokens is cut off in front); local texts are other
    passages. Passages that are too short are left out.

    Args:
        model: the model.
        texts: passages.
        tokens: of the target.
        continuation: "model" continues the passage with tokens that the model draws itself, "other" with a piece of
            another passage.
        longest: tokens of a passage that are used.
        seed: of everything that is drawn.

    Raises:
        InputError: no passage is long enough.
    """
    draw = np.random.default_rng([seed, 2])
    encoded = encoder_of(model).encode(list(texts))
    whole = [(one.leading, one.ids[:longest]) for one in encoded if len(one.ids) >= one.leading + tokens + 3]
    if len(whole) < 2:
        raise InputError(
            f"Only {len(whole)} of {len(texts)} passages of text have {tokens + 3} tokens or more; give longer ones."
        )
    cuts = [int(draw.integers(leading + 2, len(ids) - tokens + 1)) for leading, ids in whole]
    prompts = [ids[:cut] for (_, ids), cut in zip(whole, cuts, strict=True)]
    if continuation == "model":
        targets = _continued(model, prompts, tokens, seed)
    else:
        targets = [ids[cut : cut + tokens] for (_, ids), cut in zip(whole, cuts, strict=True)]
        targets = [*targets[-1:], *targets[:-1]]
    # what the model draws is an answer to its own prompt, and to no other
    pool = tuple(dict.fromkeys(targets)) if continuation == "other" else ()
    examples = []
    for place, ((leading, _), prompt, target) in enumerate(zip(whole, prompts, targets, strict=True)):
        # at least one token of the prompt stays, and the special tokens in front of it
        starts = draw.integers(leading + 1, len(prompt), _CUTS)
        others = [Ask((*prompt[:leading], *prompt[start:]), target) for start in starts]
        strangers = [whole[other][1] for other in draw.permutation(len(whole))[: _OTHERS + 1] if other != place]
        local = tuple(Ask(ids[:-1], ids[-1:]) for ids in strangers[:_OTHERS])
        examples.append(Example(Ask(prompt, target), tuple(others), local, str(place), pool))
    return examples


def _continued(model: Model, prompts: list[tuple[int, ...]], tokens: int, seed: int) -> list[tuple[int, ...]]:
    """Continuations drawn token by token from the model's own distribution."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[int, ...]] = [() for _ in prompts]
    for start in [start for _ in range(tokens) for start in range(0, len(prompts), 64)]:
        some = range(start, min(start + 64, len(prompts)))
        rows = rows_of([Ask((*prompts[i], *found[i]), (0,)) for i in some], model.device)
        with frozen(model.hf), torch.no_grad():
            last = logits_of(model, rows)[torch.arange(len(rows.ids)), rows.mask.sum(1) - 1].float().softmax(-1).cpu()
        for i, token in zip(some, torch.multinomial(last, 1, generator=generator)[:, 0].tolist(), strict=True):
            found[i] = (*found[i], token)
    return found


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples; no group is on both sides.

    Args:
        examples: at least two groups.
        share: of the groups that are for validation, at least one.
        seed: of the split.

    Raises:
        InputError: fewer than two groups.
    """
    groups = list(dict.fromkeys(example.group for example in examples))
    if len(groups) < 2:
        raise InputError(
            f"An editor cannot be trained on {len(examples)} example(s) about {len(groups)} subject(s): some are "
            "needed to learn from, and others to see when to stop."
        )
    order = np.random.default_rng([seed, 3]).permutation(len(groups))
    held = {groups[place] for place in order[: min(len(groups) - 1, max(1, round(share * len(groups))))]}
    return [one for one in examples if one.group not in held], [one for one in examples if one.group in held]
