"""A text in the tokens of one tokenizer, with the characters that every token covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engramscope.errors import PairsError
from engramscope.pairs.pair import CharSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: how SentencePiece-like and byte-level tokenizers write a space
_SPACE_MARKS = "▁Ġ"
#: texts that end at a token boundary under every tokenizer we know
_ANCHORS = ("\n", ".", ":")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text in tokens; special tokens that the tokenizer puts after it are left out.

    Attributes:
        text: the text.
        ids: token ids [seq].
        chars: the characters [start, end) of `text` that each token covers [seq], without the white space at its ends;
            empty ranges for special tokens and for tokens that are white space only.
        leading: how many special tokens (BOS) stand before the text.
    """

    text: str
    ids: tuple[int, ...]
    chars: tuple[CharSpan, ...]
    leading: int


@dataclass
class Encoder:
    """Encodes texts in batches and remembers how single tokens are shown.

    Special tokens are those that the tokenizer adds by itself: a beginning-of-text token for Llama and Gemma, none for
    GPT-2. Special tokens that it appends (an end-of-text token) are taken off again: a prompt that is to be continued
    has not ended.

    Args:
        tokenizer: a fast tokenizer of transformers.

    Raises:
        PairsError: no tokenizer, or one that cannot say which characters a token covers.
    """

    tokenizer: PreTrainedTokenizerBase
    _shown: dict[int, str] = field(default_factory=dict, init=False, repr=False)
    _alone: dict[str, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)
    _unknown: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise PairsError("The model has no tokenizer, so the prompts cannot be turned into tokens.")
        if not getattr(self.tokenizer, "is_fast", False):
            raise PairsError(
                f"The tokenizer {type(self.tokenizer).__name__} is a slow one, which cannot say which characters a "
                "token covers; save the model's tokenizer as tokenizer.json (a fast tokenizer) and use that."
            )
        unknown = self.tokenizer.unk_token_id
        self._unknown = unknown if isinstance(unknown, int) else None

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts with the special tokens that belong before them."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts), add_special_tokens=True, padding=False, truncation=False, return_attention_mask=False,
            return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        rows = zip(
            texts, batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True
        )  # fmt: skip
        return [self._encoded(*row) for row in rows]

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of `encode`, without the rest."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts), add_special_tokens=True, padding=False, truncation=False, return_attention_mask=False,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        rows = zip(batch["input_ids"], batch["special_tokens_mask"], strict=True)
        return [tuple(ids[: _end(mask)]) for ids, mask in rows]

    def alone(self, text: str) -> tuple[int, ...]:
        """Token ids of a text without special tokens, and without the space that some tokenizers put before it.

        These are ids(anchor + text) without ids(anchor), for an anchor after which a token ends.
        """
        if text not in self._alone:
            self._alone[text] = self._remainder(text)
        return self._alone[text]

    def _remainder(self, text: str) -> tuple[int, ...]:
        anchors = self._bare(_ANCHORS)
        continued = self._bare([anchor + text for anchor in _ANCHORS])
        for anchor, whole in zip(anchors, continued, strict=True):
            if whole[: len(anchor)] == anchor and len(whole) > len(anchor):
                return whole[len(anchor) :]
        return self._bare([text])[0]

    def _bare(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        batch = self.tokenizer(
            list(texts), add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False,
            verbose=False,
        )  # fmt: skip
        return [tuple(ids) for ids in batch["input_ids"]]

    def show(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The text of every token on its own; a token that is part of a character is shown by its name."""
        return tuple(self._show(token) for token in ids)

    def is_unknown(self, token: int, text: str) -> bool:
        """Whether `token` stands for something in `text` that the vocabulary cannot write."""
        return token == self._unknown and str(self.tokenizer.unk_token) not in text

    def _encoded(self, text: str, ids: list[int], offsets: list[CharSpan], mask: list[int]) -> Encoded:
        leading, end = _leading(mask), _end(mask)
        chars = [(0, 0)] * leading + [
            self._inked(text, token, span) for token, span in zip(ids[leading:end], offsets[leading:end], strict=True)
        ]
        return Encoded(text, tuple(ids[:end]), tuple(chars), leading)

    def _inked(self, text: str, token: int, span: CharSpan) -> CharSpan:
        # GPT-2's " Tower" covers the space too; Llama's lone "▁" at the start of a text claims the first letter
        if not self._show(token).strip():
            return span[0], span[0]
        return strip_span(text, span)

    def _show(self, token: int) -> str:
        if token not in self._shown:
            self._shown[token] = self._text_of(token)
        return self._shown[token]

    def _text_of(self, token: int) -> str:
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        if "▁" in piece:
            return piece.replace("▁", " ")
        text = self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if isinstance(text, str) and text and "�" not in text:
            return text
        return " " if piece and not piece.strip(_SPACE_MARKS) else piece


def _leading(mask: list[int]) -> int:
    # the mask is 1 for tokens that the tokenizer added by itself, not for "<s>" written out in a text
    return next((index for index, flag in enumerate(mask) if not flag), len(mask))


def _end(mask: list[int]) -> int:
    end, leading = len(mask), _leading(mask)
    while end > leading and mask[end - 1]:
        end -= 1
    return end


def strip_span(text: str, span: CharSpan) -> CharSpan:
    """The span without the white space at its ends (empty where it holds nothing else)."""
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def token_positions(encoded: Encoded, span: CharSpan) -> tuple[int, ...]:
    """Positions of the tokens of `span`: from the first to the last that covers one of its characters, all included.

    White space at the ends of the span and of the tokens does not count; a space inside the span does, also where it is
    a token of its own. A character that is written with several tokens (bytes) has all of them.
    """
    first, last = strip_span(encoded.text, span)
    inside = [
        position for position, (start, end) in enumerate(encoded.chars) if start < last and first < end and start < end
    ]
    return tuple(range(inside[0], inside[-1] + 1)) if inside else ()
