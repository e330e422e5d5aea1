"""Pairs in the tokens of a tokenizer: ids, spans, roles, answers and partners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from engramscope.errors import PairsError
from engramscope.pairs.align import both_ends, identity
from engramscope.pairs.answers import continuation, glued
from engramscope.pairs.encode import Encoded, Encoder
from engramscope.pairs.pair import Pair
from engramscope.pairs.roles import position_roles
from engramscope.pairs.spans import corrupted_spans, locate, straddling
from engramscope.pairs.tokenized import Alignment, TokenizedPair, TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AlignmentName = Literal["equal", "both_ends"]

#: pairs whose texts go to the tokenizer in one call
_BATCH = 512
#: sentences of one error; the rest is counted
_MAX_FAULTS = 20


def tokenize_pair(pair: Pair, tokenizer: PreTrainedTokenizerBase, alignment: AlignmentName = "equal") -> TokenizedPair:
    """One pair in tokens; see `tokenize_pairs`.

    Raises:
        PairsError: the pair is at fault.
    """
    return tokenize_pairs([pair], tokenizer, alignment)[0]


def tokenize_pairs(
    pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, alignment: AlignmentName = "equal"
) -> list[TokenizedPair]:
    """All pairs in tokens, in their order.

    Special tokens are those that the tokenizer puts before a text by itself (BOS for Llama and Gemma, none for GPT-2);
    those that it puts after a text (EOS) are taken off. Spans take in every token that covers one of their characters,
    white space not counted. Answers are ids(clean + answer) without ids(clean), see `answers.continuation`.

    Args:
        pairs: the pairs. Without `corrupted`, the corrupted prompt is the clean one.
        tokenizer: a fast tokenizer.
        alignment: "equal": both prompts must have equally many tokens, position i stands for position i. "both_ends":
            common beginning and common end, see `align.both_ends`.

    Raises:
        PairsError: every pair at fault, one sentence for each (at most 20, then how many more).
    """
    encoder = Encoder(tokenizer)
    done: list[TokenizedPair] = []
    faults: list[str] = []
    for batch in _batches(pairs, _BATCH):
        texts = _encode_all(encoder, batch)
        for pair in batch:
            result = _assemble(pair, encoder, texts, alignment)
            if isinstance(result, TokenizedPair):
                done.append(result)
            else:
                faults.append(f"Pair {pair.id!r}: {'; '.join(result)}.")
    if len(faults) > _MAX_FAULTS:
        faults = [*faults[:_MAX_FAULTS], f"{len(faults) - _MAX_FAULTS} more pairs are at fault."]
    if faults:
        raise PairsError(faults)
    return done


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    rest = iter(pairs)
    while batch := list(islice(rest, size)):
        yield batch


@dataclass(frozen=True, slots=True)
class _Texts:
    """Everything that a batch of pairs needs encoded: prompts, and prompts followed by an answer."""

    prompts: Mapping[str, Encoded]
    continued: Mapping[str, tuple[int, ...]]


def _encode_all(encoder: Encoder, pairs: Sequence[Pair]) -> _Texts:
    prompts = list(dict.fromkeys(text for pair in pairs for text in (pair.clean, pair.corrupted) if text is not None))
    continued = list(dict.fromkeys(text for pair in pairs for text in _continued(pair)))
    return _Texts(
        dict(zip(prompts, encoder.encode(prompts), strict=True)),
        dict(zip(continued, encoder.ids(continued), strict=True)),
    )


def _continued(pair: Pair) -> list[str]:
    answers = (*pair.correct, *pair.incorrect)
    texts = [pair.clean + answer for answer in answers]
    if pair.corrupted is not None and _ends_differently(pair):
        texts.extend(pair.corrupted + answer for answer in answers)
    return texts


def _ends_differently(pair: Pair) -> bool:
    return pair.corrupted is not None and _last_word(pair.clean) != _last_word(pair.corrupted)


def _last_word(text: str) -> str:
    # with the white space around it: only that much of a prompt can change how an answer after it is split
    return text[len(text.rstrip().rpartition(" ")[0]) :]


def _assemble(pair: Pair, encoder: Encoder, texts: _Texts, alignment: AlignmentName) -> TokenizedPair | list[str]:
    clean = texts.prompts[pair.clean]
    corrupted = clean if pair.corrupted is None else texts.prompts[pair.corrupted]
    faults = [
        f"the {which} prompt is empty"
        for which, prompt in (("clean", clean), ("corrupted", corrupted))
        if len(prompt.ids) == prompt.leading
    ]
    if faults:
        return faults
    partners, clash = _partners(encoder, clean, corrupted, alignment)
    correct, incorrect, answer_faults, notes = _answers(pair, encoder, texts)
    clean_prompt, corrupted_prompt, span_faults, span_notes = _prompts(pair, encoder, clean, corrupted, alignment)
    faults = [*clash, *answer_faults, *span_faults]
    if faults:
        return faults
    notes = (*notes, *span_notes, *_prompt_notes(encoder, clean, corrupted))
    return TokenizedPair(pair, clean_prompt, corrupted_prompt, correct, incorrect, partners, notes)


def _partners(
    encoder: Encoder, clean: Encoded, corrupted: Encoded, alignment: AlignmentName
) -> tuple[Alignment, list[str]]:
    if alignment == "both_ends":
        return both_ends(clean.ids, corrupted.ids), []
    if len(clean.ids) == len(corrupted.ids):
        return identity(len(clean.ids)), []
    return identity(0), [
        f"the two prompts must have equally many tokens, but the clean one has {len(clean.ids)}: "
        f"{_listed(encoder, clean.ids)} and the corrupted one {len(corrupted.ids)}: {_listed(encoder, corrupted.ids)}; "
        "change the wording until they agree"
    ]


def _listed(encoder: Encoder, ids: Sequence[int]) -> str:
    if len(ids) <= 48:
        return str(list(encoder.show(ids)))
    head, tail = encoder.show(ids[:24]), encoder.show(ids[-24:])
    return f"{str(list(head))[:-1]}, … {len(ids) - 48} more …, {str(list(tail))[1:]}"


def _answers(
    pair: Pair, encoder: Encoder, texts: _Texts
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], list[str], tuple[str, ...]]:
    if not pair.correct:
        return (), (), ["there is no correct answer"], ()
    answers = (*pair.correct, *pair.incorrect)
    found = [
        continuation(encoder, texts.prompts[pair.clean], answer, texts.continued[pair.clean + answer])
        for answer in answers
    ]
    faults = [one.fault for one in found if one.fault]
    notes: list[str] = []
    merged = [answer for answer, one in zip(answers, found, strict=True) if one.merged]
    if merged:
        notes.append(f"the tokenizer merges the end of the prompt with {_some(merged)}; tokens of the answer alone are "
                     "scored")  # fmt: skip
    if words := glued(pair.clean, answers):
        notes.append(f"no space stands between the prompt and {_some(words)}, so the answer continues the last word")
    if pair.corrupted is not None and _ends_differently(pair):
        text = pair.corrupted
        other = [
            continuation(encoder, texts.prompts[text], answer, texts.continued[text + answer]) for answer in answers
        ]
        changed = [a for a, one, two in zip(answers, found, other, strict=True) if one.ids != two.ids]
        if changed:
            notes.append(f"after the corrupted prompt {_some(changed)} would be other tokens than after the clean one")
    count = len(pair.correct)
    return tuple(one.ids for one in found[:count]), tuple(one.ids for one in found[count:]), faults, tuple(notes)


def _some(answers: Sequence[str]) -> str:
    shown = ", ".join(repr(answer) for answer in answers[:5])
    return f"{shown} and {len(answers) - 5} more" if len(answers) > 5 else shown


def _prompts(
    pair: Pair, encoder: Encoder, clean: Encoded, corrupted: Encoded, alignment: AlignmentName
) -> tuple[TokenizedPrompt, TokenizedPrompt, list[str], list[str]]:
    spans, faults = locate(clean, pair.spans, "clean")
    notes = [] if faults else straddling(encoder, clean, pair.spans)
    if pair.corrupted is None:
        prompt = _prompt(encoder, clean, spans)
        return prompt, prompt, faults, notes
    chars, unknown = corrupted_spans(pair)
    other, other_faults = locate(corrupted, chars, "corrupted")
    for name in unknown:
        if alignment == "equal":
            other[name] = spans[name]
        else:
            other_faults.append(f"where the span {name!r} lies in the corrupted prompt cannot be told from the texts; "
                                "give corrupted_spans")  # fmt: skip
    faults = [*faults, *other_faults]
    if not faults:
        notes += straddling(encoder, corrupted, chars)
        notes += _shifted(spans, other) if alignment == "equal" else []
    return _prompt(encoder, clean, spans), _prompt(encoder, corrupted, other), faults, notes


def _shifted(clean: Mapping[str, tuple[int, ...]], corrupted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"the span {name!r} is at tokens {list(positions)} of the clean but at {list(corrupted[name])} of the "
        "corrupted prompt, so partners are not the same part of it"
        for name, positions in clean.items()
        if corrupted[name] != positions
    ]


def _prompt(encoder: Encoder, encoded: Encoded, spans: Mapping[str, tuple[int, ...]]) -> TokenizedPrompt:
    located: Mapping[str, tuple[int, ...]] = {name: positions for name, positions in spans.items() if positions}
    roles = position_roles(len(encoded.ids), encoded.leading, located)
    return TokenizedPrompt(encoded.ids, encoder.show(encoded.ids), located, roles)


def _prompt_notes(encoder: Encoder, clean: Encoded, corrupted: Encoded) -> list[str]:
    notes: list[str] = []
    for which, prompt in (("clean", clean), ("corrupted", corrupted)):
        ids = prompt.ids
        if any(encoder.is_unknown(token, prompt.text) for token in ids[prompt.leading :]):
            notes.append(f"the {which} prompt holds characters that the vocabulary cannot write")
        if prompt.leading and ids[prompt.leading] == ids[prompt.leading - 1]:
            notes.append(f"the {which} prompt begins with {encoder.show(ids[:1])[0]!r} although the tokenizer adds it")
        if clean.text == corrupted.text:
            break
    return notes
