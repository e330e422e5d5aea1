"""Position roles: what a token is in its prompt, so that prompts of different lengths can be compared.

| role | position |
|---|---|
| `bos` | a special token that the tokenizer puts before the text |
| `before` | text tokens before the subject |
| `subject_first` | first token of the span named `subject`, if that has at least two |
| `subject_middle` | its tokens between the first and the last |
| `subject_last` | its last token (a subject of one token is `subject_last`) |
| `after_subject` | the first token after the subject |
| `further` | the tokens after that, up to the last; without a subject, every token in no span |
| `last` | the last token of the prompt, where the logits are read |

Tokens of other named spans carry the span's name. Where several apply, the order is: `bos`, the subject's three,
`last`, the other spans, the rest; so a subject that ends the prompt leaves no token with the role `last` (the
*position* `last` of a sweep is the last token in any case).

Source: classes of Zhang & Nanda 2309.16042 and of ROME (first, middle, last subject token, first subsequent token,
    further tokens, last token).
Deviation: `before` and `bos` are split off from "further tokens", which in those papers' prompts hardly exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SUBJECT = "subject"
_ROLES = (
    "bos", "before", "subject_first", "subject_middle", "subject_last", "after_subject", "further", "last",
)  # fmt: skip
#: words that mean something else in the `positions` of a sweep, so no span may be called that
_TAKEN = frozenset({*_ROLES, "all", "each"})


def known_roles() -> tuple[str, ...]:
    """Every role besides the names of spans, in the order of the prompt."""
    return _ROLES


def is_taken(span: str) -> bool:
    """Whether `span` cannot be the name of a span, because it means something else as a position."""
    return span in _TAKEN


def position_roles(length: int, leading: int, spans: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The role of every position of one prompt.

    Args:
        length: number of tokens.
        leading: how many special tokens stand before the text.
        spans: token positions of every named span, ascending.

    Returns:
        One role per position [length].
    """
    subject = spans.get(SUBJECT, ())
    roles = ["further"] * length
    if subject:
        _around(roles, leading, subject)
    for name, positions in spans.items():
        if name != SUBJECT:
            for position in positions:
                roles[position] = name
    if length > leading:
        roles[-1] = "last"
    _inside(roles, subject)
    roles[:leading] = ["bos"] * leading
    return tuple(roles)


def _around(roles: list[str], leading: int, subject: Sequence[int]) -> None:
    for position in range(leading, subject[0]):
        roles[position] = "before"
    if subject[-1] + 1 < len(roles):
        roles[subject[-1] + 1] = "after_subject"


def _inside(roles: list[str], subject: Sequence[int]) -> None:
    for place, position in enumerate(subject):
        if place == len(subject) - 1:
            roles[position] = "subject_last"
        else:
            roles[position] = "subject_first" if place == 0 else "subject_middle"
