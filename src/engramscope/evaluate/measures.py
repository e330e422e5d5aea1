"""The measures of an edit: what each is called, what it says, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

#: "teacher-forced": every token of an answer is scored with the true ones before it; "generated": the model's own
#: words; "next token": one distribution
Reading = Literal["teacher-forced", "generated", "next token"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure.

    Attributes:
        name: as in the tables ("ES").
        title: what it is called in words.
        what: how one prompt's value is computed.
        reading: how the model is asked.
        prompts: which prompts of a record it is read from.
        higher_is_better: None where neither is.
        scale: tables show the value times this.
        collapsed: the value where the model's logits are not numbers: a failure, never a gap in the mean.
        share: every prompt gives 0 or 1, or a share of its tokens, so a case is a share.
        single: there is one prompt a case, so the mean over cases is a proportion.
        whole: one value for all prompts of a case together, not one for each.
    """

    name: str
    title: str
    what: str
    reading: Reading
    prompts: str
    higher_is_better: bool | None = True
    scale: float = 100.0
    collapsed: float = 0.0
    share: bool = False
    single: bool = False
    whole: bool = False


_SUCCESS = "1 if the mean NLL per token of {better} is smaller than that of {worse}, else 0 (0 on a tie)"
_MAGNITUDE = "P̃({better}) − P̃({worse}), with P̃ = exp(−mean NLL per token)"
_ACC = "1 if every token of {better} is the most probable one, else 0"
_GEN = "1 if the greedy continuation begins with the whole of {better}, white space normalised, else 0"
_GROUPS = (
    # prefix of the names, title of the success, prompts, the answer that ought to win, the other one
    ("E", "efficacy", "the edited prompt", "the new answer", "the true answer"),
    ("P", "paraphrase", "paraphrases", "the new answer", "the true answer"),
    ("N", "neighbourhood", "neighbourhood prompts", "the true answer", "the new answer"),
)


def _of_group(prefix: str, title: str, prompts: str, better: str, worse: str) -> list[Measure]:
    single = prefix == "E"
    success, magnitude = (text.format(better=better, worse=worse) for text in (_SUCCESS, _MAGNITUDE))
    return [
        Measure(f"{prefix}S", f"{title} score", success, "teacher-forced", prompts, share=True, single=single),
        Measure(f"{prefix}M", f"{title} magnitude", magnitude, "teacher-forced", prompts),
        Measure(f"{prefix}S_acc", f"{title} accuracy", _ACC.format(better=better), "teacher-forced", prompts,
                share=True, single=single),
        Measure(f"{prefix}S_gen", f"{title} accuracy, generated", _GEN.format(better=better), "generated", prompts,
                share=True, single=single),
    ]  # fmt: skip


_PLUS = "neighbourhood prompts behind the statement of the edit"
_NEIGHBOUR = {"better": "the true answer", "worse": "the new answer"}
_KL = "KL(before ‖ after) of the next token, in nats"
_TOKENS = "share of the answer's tokens that are the most probable ones"

_ALL = (
    *(measure for group in _GROUPS for measure in _of_group(*group)),
    Measure("GE", "fluency", "(2/3 H₂ + 4/3 H₃) / 2 of a generated text, Hₙ the entropy of its n-grams in bits",
            "generated", "generation prompts"),
    Measure("RS", "consistency", "cosine of the TF-IDF vectors of the generated texts and of the reference texts",
            "generated", "generation prompts", whole=True),
    Measure("NS+", "neighbourhood score, edit stated", _SUCCESS.format(**_NEIGHBOUR), "teacher-forced", _PLUS,
            share=True),
    Measure("NM+", "neighbourhood magnitude, edit stated", _MAGNITUDE.format(**_NEIGHBOUR), "teacher-forced", _PLUS),
    Measure("NKL", "neighbourhood divergence", _KL, "next token", "neighbourhood prompts", False, 1.0, inf),
    Measure("NKL+", "neighbourhood divergence, edit stated", _KL, "next token", _PLUS, False, 1.0, inf),
    Measure("essence", "essence", "perplexity of reference texts about the subject, the first 100 tokens",
            "teacher-forced", "texts about the subject", False, 1.0, inf, whole=True),
    Measure("zsRE efficacy", "zsRE efficacy", _TOKENS, "teacher-forced", "the edited prompt", share=True),
    Measure("zsRE paraphrase", "zsRE paraphrase", _TOKENS, "teacher-forced", "paraphrases", share=True),
    Measure("zsRE specificity", "zsRE specificity", _TOKENS, "teacher-forced", "neighbourhood prompts", share=True),
)  # fmt: skip

#: name -> measure, in the order of the tables
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}

#: the columns of the published table, without S
TABLE4 = ("ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS")

#: the score of scores: harmonic mean of three means over cases, under its name
HARMONIC: dict[str, tuple[str, str, str]] = {
    "S": ("ES", "PS", "NS"),
    "zsRE S": ("zsRE efficacy", "zsRE paraphrase", "zsRE specificity"),
}
