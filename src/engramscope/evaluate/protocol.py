"""How figures came about: what stands beside every table, so that nobody compares what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from engramscope.evaluate.evaluate import EvaluateOptions
from engramscope.evaluate.measures import HARMONIC, MEASURES
from engramscope.evaluate.reference import References
from engramscope.records.record import Record

TIES = (
    "Comparisons are strict: where both answers are equally likely, it is a failure, for the new answer and the true."
)
COLLAPSED = (
    "Where the model's logits are not numbers, the prompt counts as a failure: 0, and infinite for a divergence or a "
    "perplexity. It is never left out of a mean."
)
INTERVALS = {
    "published": "mean ± 1.96 s / √n over cases, s with ddof 0; none for a harmonic mean",
    "better": "Wilson for one prompt of 0 or 1 a case, and where all cases of a share are 0 or all are 1; else the BCa "
    "bootstrap over cases, or over clusters of cases; where that has no width for a harmonic mean, the harmonic mean "
    "at the limits of its parts",
    "differences": "paired bootstrap over cases, widened for few of them; max-T over the comparisons of one "
    "measure, and Holm",
    "confidence": "95 %",
}


def records_hash(records: Sequence[Record]) -> str:
    """SHA-256 of the records that were used, in their order: their texts and ids, not the file they came from."""
    digest = sha256()
    for record in records:
        fields = {key: value for key, value in asdict(record).items() if key != "source"}
        digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def protocol_of(
    records: Sequence[Record], options: EvaluateOptions, references: References | None = None, *,
    data: str = "", data_sha256: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The protocol of an evaluation, in JSON values.

    Args:
        records: the records that were used.
        options: what was measured.
        references: reference texts.
        data: the file the records came from.
        data_sha256: of that file.
    """
    measures = {
        name: {
            "title": one.title, "prompt": one.what, "prompts": one.prompts, "reading": one.reading, "scale": one.scale,
            "case": "all prompts together" if one.whole else "mean over the prompts",
        }
        for name, one in MEASURES.items()
    }  # fmt: skip
    return {
        "measures": measures,
        "scores": {name: f"harmonic mean of the means of {', '.join(parts)}" for name, parts in HARMONIC.items()},
        "ties": TIES,
        "collapsed": COLLAPSED,
        "intervals": INTERVALS,
        "options": options.model_dump(mode="json"),
        "records": {"n": len(records), "sha256": records_hash(records), "file": data, "file_sha256": data_sha256},
        "references": None if references is None else {
            "source": references.source, "sha256": references.sha256, "comparable": references.comparable,
            "note": references.note,
        },
    }  # fmt: skip
