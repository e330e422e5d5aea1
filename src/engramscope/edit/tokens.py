"""Prompts and targets in tokens, and rows of them that a model can be run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engramscope.errors import InputError, shortened
from engramscope.models.model import Model
from engramscope.pairs.answers import continuation
from engramscope.pairs.encode import Encoder, token_positions
from engramscope.records.fact import Fact


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt and a target in tokens.

    Attributes:
        prompt: token ids, the special tokens in front included.
        target: token ids of the whole target.
        subject: position of the subject's last token; None where no subject was given.
        leading: how many special tokens stand in front.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    subject: int | None = None
    leading: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Prompts and targets side by side, padded on the right.

    Attributes:
        ids: token ids [rows, seq]; what follows a row's last token is padding.
        mask: 1 where there is a token [rows, seq].
        labels: the token that each position is asked for, -100 where it is asked for none [rows, seq]. Shifted: the
            logits at position p are scored against `labels[:, p]`.
        subject: position of the subject's last token [rows]; -1 where there is none.
    """

    ids: Int[Tensor, "rows seq"]
    mask: Int[Tensor, "rows seq"]
    labels: Int[Tensor, "rows seq"]
    subject: Int[Tensor, " rows"]


def encoder_of(model: Model) -> Encoder:
    """The encoder of a model's tokenizer.

    Raises:
        PairsError: the model has no tokenizer, or a slow one.
    """
    return model.remember("edit.encoder", lambda: Encoder(model.tokenizer))


def spaced(prompt: str, target: str) -> str:
    """The target as it continues the prompt: with one space in front, unless it or the prompt brings its own."""
    return target if target[:1].isspace() or prompt[-1:].isspace() else f" {target}"


def encode(
    model: Model, prompts: Sequence[str], targets: Sequence[str], spans: Sequence[tuple[int, int] | None] | None = None
) -> list[Ask]:
    """Encode prompts with their targets.

    Special tokens stand in front of a prompt as the tokenizer puts them there, once. The target's ids are those of
    prompt + target without those of the prompt.

    Args:
        model: the model.
        prompts: texts right up to the target.
        targets: one for each prompt; a space is put in front where it needs one.
        spans: characters of the subject in each prompt.

    Raises:
        InputError: a target has no tokens after its prompt, a span covers none, or a text is longer than the model has
            positions; every fault.
    """
    encoder = encoder_of(model)
    given = spans if spans is not None else [None] * len(prompts)
    answers = [spaced(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    whole = encoder.ids([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    faults: list[str] = []
    asks: list[Ask] = []
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    for encoded, answer, ids, span in zip(encoder.encode(prompts), answers, whole, given, strict=True):
        found = continuation(encoder, encoded, answer, ids)
        positions = token_positions(encoded, span) if span is not None else ()
        if found.fault:
            faults.append(f"{encoded.text!r}: {found.fault}.")
        elif span is not None and not positions:
            faults.append(f"{encoded.text!r}: the subject {encoded.text[span[0] : span[1]]!r} covers no token.")
        elif limit is not None and len(encoded.ids) + len(found.ids) > limit:
            faults.append(
                f"{encoded.text[:60]!r} and its target are {len(encoded.ids) + len(found.ids)} tokens long, and the "
                f"model has {limit} positions."
            )
        asks.append(Ask(encoded.ids, found.ids, positions[-1] if positions else None, encoded.leading))
    if faults:
        raise InputError(shortened(faults))
    return asks


def encode_facts(model: Model, facts: Sequence[Fact], templates: Sequence[str] = ("{}",)) -> list[list[Ask]]:
    """Each fact in each template.

    Args:
        model: the model.
        facts: sound ones (`ensure_facts`).
        templates: texts whose last `{}` is where the fact's prompt goes; other braces are plain text.

    Returns:
        For each fact, an `Ask` for each template, with the subject's last token.

    Raises:
        InputError: as `encode`.
    """
    prompts, targets, spans = [], [], []
    for fact in facts:
        start, end = fact.subject_span
        for template in templates:
            before, _, after = template.rpartition("{}")
            prompts.append(before + fact.prompt + after)
            targets.append(fact.target)
            spans.append((start + len(before), end + len(before)))
    asks = encode(model, prompts, targets, spans)
    size = len(templates)
    return [asks[start : start + size] for start in range(0, len(asks), size)]


def rows_of(asks: Sequence[Ask], device: torch.device, *, pad: int = 0) -> Rows:
    """Rows for a teacher-forced pass: prompt and target without its last token, labels at the positions that predict.

    Args:
        asks: prompts and targets.
        device: of the tensors.
        pad: token id that fills rows up; it is masked, so which one it is changes nothing.
    """
    lengths = [len(ask.prompt) + len(ask.target) - 1 for ask in asks]
    ids = torch.full((len(asks), max(lengths)), pad, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (ask, length) in enumerate(zip(asks, lengths, strict=True)):
        ids[row, :length] = torch.tensor((*ask.prompt, *ask.target)[:length])
        mask[row, :length] = 1
        labels[row, len(ask.prompt) - 1 : length] = torch.tensor(ask.target)
    subject = torch.tensor([-1 if ask.subject is None else ask.subject for ask in asks])
    return Rows(ids.to(device), mask.to(device), labels.to(device), subject.to(device))


def logits_of(model: Model, rows: Rows) -> Float[Tensor, "rows seq vocab"]:
    """Logits of rows; gradients flow where torch records them."""
    return model.hf(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).logits


def target_nll(logits: Float[Tensor, "rows seq vocab"], rows: Rows) -> Float[Tensor, " rows"]:
    """Mean negative log-likelihood per target token, in nats: (1/n) Σ −log P(target_i | prompt, target_<i).

    Returns:
        One number for each row, ≥ 0, in float32 or wider.
    """
    return scored_nll(logits[rows.labels != -100], rows)


def scored_nll(logits: Float[Tensor, "scored vocab"], rows: Rows) -> Float[Tensor, " rows"]:
    """`target_nll` where the logits are known at the scored positions only, row by row; 0 for a row that has none."""
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    scored = rows.labels != -100
    each = torch.nn.functional.cross_entropy(wide, rows.labels[scored], reduction="none")
    sums = torch.zeros(len(rows.labels), dtype=wide.dtype, device=wide.device)
    return sums.index_add(0, scored.nonzero()[:, 0], each) / scored.sum(1).clamp(min=1)


def batches(asks: Sequence[Ask], tokens: int) -> list[list[int]]:
    """Indices of asks in batches of at most so many padded tokens, like lengths together; at least one each."""
    order = sorted(range(len(asks)), key=lambda index: -len(asks[index].prompt) - len(asks[index].target))
    found: list[list[int]] = []
    for index in order:
        length = len(asks[found[-1][0]].prompt) + len(asks[found[-1][0]].target) if found else 0
        if found and (len(found[-1]) + 1) * length <= tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found
