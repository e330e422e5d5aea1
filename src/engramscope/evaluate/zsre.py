"""The three measures of zsRE: teacher-forced accuracy of single tokens, and not of whole answers.

Each token of an answer is predicted with the true ones before it, and counted where it is the most probable one; a
prompt's value is the share of its answer's tokens. A model that only ever gets the second half of an answer right has
50 % here and writes no answer. Compare `ES_acc` (all tokens right) and `ES_gen` (generated).

Source: Meng et al. 2022 (2202.05262), Table 1. Deviation: the release decodes each token and compares the first id of
its text encoded again, which differs for parts of characters; here ids are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engramscope.evaluate.answers import AnswerScore
from engramscope.evaluate.case import Row, row
from engramscope.evaluate.scores import Asked, Kind

_NAMES: Mapping[Kind, str] = {
    "rewrite": "zsRE efficacy",
    "paraphrase": "zsRE paraphrase",
    "neighbourhood": "zsRE specificity",
}


def zsre_rows(record: str, asked: Sequence[Asked], scores: Mapping[tuple[str, str], AnswerScore]) -> list[Row]:
    """Share of the tokens that are right, for every prompt of one record; neighbours have their own answers."""
    rows = []
    for one in asked:
        if one.kind in _NAMES and one.better:
            score = scores[one.prompt, one.better]
            rows.append(
                row(record, _NAMES[one.kind], one.index, None if score.collapsed else score.right / score.tokens)
            )
    return rows
