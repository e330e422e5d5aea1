"""Small files of every format, as Python objects that a test can spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engramscope.records import Fact, Probe, Record


def counterfact(case: int = 3, **changes: Any) -> dict[str, Any]:
    rewrite = {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Ada {Lovely}",
        "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
    }  # fmt: skip
    entry = {
        "case_id": case, "pararel_idx": 2796, "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Rain fell. Ada {Lovely} spoke", "Ada {Lovely}, a native"],
        "neighborhood_prompts": ["Bo spoke", "Cy spoke"], "attribute_prompts": ["Di spoke"],
        "generation_prompts": ["Ada {Lovely} was born in"],
    }  # fmt: skip
    return entry | changes


def easyedit(case: int = 10, **changes: Any) -> dict[str, Any]:
    return {
        "case_id": case, "prompt": "Tower Hill, by", "target_new": "Sega", "subject": "Tower Hill",
        "ground_truth": "BBC", "rephrase_prompt": "Tower Hill was made by", "locality_prompt": "Radio Hill, by",
        "locality_ground_truth": "ITV",
    } | changes  # fmt: skip


def zsre(**changes: Any) -> dict[str, Any]:
    return {
        "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity College",
        "rephrase": "What university did Watts Humphrey take part in?", "alt": "University of Michigan",
        "answers": ["Illinois Institute of Technology", "IIT"], "loc": "nq question: who played the father",
        "loc_ans": "Hugo Weaving", "cond": "a >> b || c",
    } | changes  # fmt: skip


def known(number: int, subject: str, attribute: str, relation: str = "P17", **changes: Any) -> dict[str, Any]:
    return {
        "known_id": number, "subject": subject, "attribute": attribute, "template": "{} lies in", "prediction": " x",
        "prompt": f"{subject} lies in the country of", "relation_id": relation,
    } | changes  # fmt: skip


def fact_line(**changes: Any) -> dict[str, Any]:
    return {"prompt": "The capital of Peru is", "subject": "Peru", "target": "Cusco", "true": "Lima"} | changes


def full_record() -> Record:
    return Record(
        "r1", Fact("Émile {Zola} wrote in", "Émile {Zola}", "日本語", "French", "r1"), "P1", ("He, Zola, wrote",),
        (Probe("Hugo wrote in", "French", "日本語"),), (Probe("Sōseki wrote in", "French", "日本語"),),
        ("Zola was",), "P1|Q2", "by hand",
    )  # fmt: skip


def written(folder: Path, content: object, name: str = "file.json") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".jsonl") and isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
