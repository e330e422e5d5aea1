"""Indirect objects: "When Mary and John went to the store, John gave a drink to" → " Mary".

Fifteen sentence frames in both orders of the names (ABBA and BABA), equally often. Spans `io`, `s1` (the subject
where it comes first) and `s2` (where it is repeated). The incorrect answer is the subject. Option `corrupt` says what
the corrupted prompt exchanges: `s2` (the repeated name becomes the indirect object, whose answer is then the other
one), `s1_io` (the first two names become two unrelated ones, `s2` stays) or `abc` (all three become three unrelated
ones). Group: the frame. Labels `order`, `frame`.

Source: Wang et al. 2211.00593; the corruptions of Zhang & Nanda 2309.16042, section 2 and appendix. Frames and word
    lists are those of `engramscope.bundled`. Names of one token; the three names of a corruption differ from each
    other and from those of the clean prompt (the released generator does not check that).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from engramscope.bundled.sentences import SentenceWords, load_words
from engramscope.bundled.world import load_world
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.vocabulary import Vocabulary
from engramscope.tasks._base import Setting, Task, TaskOptions, Variant
from engramscope.tasks._fill import filled

FRAMES = 15
DEFAULT = 150


class IoiOptions(TaskOptions):
    """Options of `ioi`."""

    corrupt: Literal["s2", "s1_io", "abc"] = "s2"


class Ioi(Task):
    """Indirect object identification."""

    Options: ClassVar[type[TaskOptions]] = IoiOptions
    version: ClassVar[str] = "1"
    source: ClassVar[str] = "Wang et al. (arXiv 2211.00593), with frames and words of our own"
    model: ClassVar[str] = "mini"
    span: ClassVar[str] = "s2"
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant("s2", {"corrupt": "s2"}, ("s2",)),
        Variant("s1_io", {"corrupt": "s1_io"}, ("s1", "io")),
        Variant("abc", {"corrupt": "abc"}, ("s1", "s2", "io")),
    )
    needs_tokenizer: ClassVar[bool] = True

    def pairs(self, limit: int | None, rng: np.random.Generator, setting: Setting) -> PairSet:
        """Prompts in turns of all frames and orders; names, places and things are drawn."""
        assert isinstance(self.options, IoiOptions)
        words, seen, made = _Words(setting.vocabulary), set[str](), list[Pair]()
        for number in range(DEFAULT if limit is None else limit):
            frame = number % FRAMES
            order = ("ABBA", "BABA")[(number // FRAMES + frame) % 2]
            pair = words.pair(f"ioi-{number}", frame, order, self.options.corrupt, rng)
            while pair.clean in seen:
                pair = words.pair(f"ioi-{number}", frame, order, self.options.corrupt, rng)
            seen.add(pair.clean)
            made.append(pair)
        return PairSet.of(made, "ioi")


class _Words:
    def __init__(self, vocabulary: Vocabulary) -> None:
        words: SentenceWords = load_words(load_world().first_names)
        # a name at the very beginning of a text is another token than the same name after a space
        self.frames = [frame for frame in words.object_templates if not frame.startswith("{")][:FRAMES]
        self.names = vocabulary.singles(words.names, "names", 10)
        self.places = vocabulary.singles(words.places, "places", 3)
        self.things = vocabulary.singles(words.things, "things", 3)

    def pair(self, name: str, frame: int, order: str, corrupt: str, rng: np.random.Generator) -> Pair:
        drawn = [str(word) for word in rng.choice(self.names, 5, replace=False)]
        io, subject = drawn[:2]
        other = {
            "s2": {"io": io, "s1": subject, "s2": io},
            "s1_io": {"io": drawn[2], "s1": drawn[3], "s2": subject},
            "abc": {"io": drawn[2], "s1": drawn[3], "s2": drawn[4]},
        }[corrupt]
        first, second = ("io", "s1") if order == "ABBA" else ("s1", "io")
        template = self.frames[frame].replace("{A}", f"{{{first}}}").replace("{B}", f"{{{second}}}")
        template = template.replace("{S}", "{s2}")
        rest = {"place": str(rng.choice(self.places)), "thing": str(rng.choice(self.things))}
        clean, spans = filled(template, {"io": io, "s1": subject, "s2": subject, **rest})
        corrupted, corrupted_spans = filled(template, {**other, **rest})
        roles = ("io", "s1", "s2")
        return Pair(
            id=name, clean=clean, corrupted=corrupted, correct=(f" {io}",), incorrect=(f" {subject}",),
            group=f"frame {frame}", spans={role: spans[role] for role in roles},
            corrupted_spans={role: corrupted_spans[role] for role in roles},
            labels={"order": order, "frame": str(frame)},
        )  # fmt: skip


COMPONENT = Ioi
