"""A results folder as a study leaves it, made up with numpy: six layers, eight heads, two metrics, two directions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from engramscope.results import ResultsFolder
from engramscope.results.schema import EFFECTS, SUMMARY_COLUMNS

N_LAYERS, N_HEADS, N_PAIRS = 6, 8, 24
METRICS = ("logit_diff", "prob")
HOSTILE = (
    "</script><script>window.hacked=1;alert(1)</script>",
    '<img src=x onerror="window.hacked=2">',
    "{{7*7}} {% raw %} ${7*7}",
    '<a href="javascript:window.hacked=3">click</a>',
    '"><svg onload=window.hacked=4><b>bold</b>',
    "<!--<script>window.hacked=5",
)
TOML = """schema = 1
name = "epilepsy"
seed = 0

[model]
name = "mini"

[pairs]
task = "clap_epilepsy"

[corruption]
method = "str"

[[sweep]]
name = "heads"
site = "z"
heads = "each"
direction = "both"

[[sweep]]
name = "residual"
site = "resid_post"
positions = "each"

[[sweep]]
name = "mlp"
site = "mlp_out"

[[sweep]]
name = "attention"
site = "attn_out"

[metrics]
names = ["logit_diff", "prob"]
"""


def summary_row(**values: Any) -> dict[str, Any]:
    """A row of summary.csv with sensible values for everything that is not given."""
    estimate = float(values.pop("estimate", 0.0))
    half = values.pop("half", 0.05)
    p = float(values.pop("p_adjusted", min(1.0, 2 * np.exp(-abs(estimate) * 25))))
    row: dict[str, Any] = dict.fromkeys(SUMMARY_COLUMNS)
    row |= {
        "study": "epilepsy", "corruption": "str", "direction": "denoise", "position_role": "all", "window": 1,
        "metric": "logit_diff", "n": N_PAIRS, "n_clusters": 8, "estimate_kind": "recovery", "estimate": estimate,
        "low": estimate - half, "high": estimate + half, "effect": 3 * estimate, "effect_low": 3 * (estimate - half),
        "effect_high": 3 * (estimate + half), "recovery": estimate, "recovery_low": estimate - half,
        "recovery_high": estimate + half, "p": p / 8, "p_adjusted": p, "q": p / 2, "two_sd": abs(estimate) > 0.2,
        "d_z": estimate / 0.05, "same_sign_share": 0.5 + min(0.5, abs(estimate)), "noise_floor": 1e-6, "cut": False,
        "detected": p < 0.05, "note": "",
    }  # fmt: skip
    row |= values
    if row["cut"]:
        row |= {"p": None, "p_adjusted": None, "q": None, "detected": False, "note": "cut by construction"}
    return row


def head_rows(rng: np.random.Generator, n_layers: int = N_LAYERS, n_heads: int = N_HEADS) -> Iterator[dict[str, Any]]:
    """A layer x head sweep in both directions: two heads carry the answer, one works against it."""
    for metric in METRICS:
        for direction in ("denoise", "noise"):
            for layer in range(n_layers):
                for head in range(n_heads):
                    planted = {(3, 5): 0.62, (4, 1): 0.31, (2, 6): -0.18}.get((layer, head), 0.0)
                    value = planted + 0.025 * rng.normal()
                    value *= 1.0 if metric == "logit_diff" else 0.8
                    value = 1.0 - 0.6 * value if direction == "noise" else value
                    lost = abs(1 - value) if direction == "noise" else abs(value)
                    yield summary_row(
                        sweep="heads", site="z", layer=layer, head=head, metric=metric, direction=direction,
                        estimate=value, p_adjusted=min(1.0, 2 * np.exp(-lost * 25)),
                    )  # fmt: skip


def residual_rows(rng: np.random.Generator, roles: list[str]) -> Iterator[dict[str, Any]]:
    """A layer x position sweep of the residual stream; the last position of the last block is a cut."""
    for metric in METRICS:
        for layer in range(N_LAYERS):
            for position, role in enumerate(roles):
                early = np.exp(-(layer**2) / 6) if role == "subject_last" else 0.0
                late = 1 / (1 + np.exp(-(layer - 3) * 2)) if role == "last" else 0.0
                cut = layer == N_LAYERS - 1 and role == "last"
                value = 1.0 if cut else early + late + 0.02 * rng.normal()
                yield summary_row(
                    sweep="residual", site="resid_post", layer=layer, position=position, position_role=role,
                    metric=metric, estimate=value, cut=cut,
                )  # fmt: skip


def profile_rows(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """MLP and attention outputs, layer by layer, and two single places of which one is a cut."""
    for metric in METRICS:
        for sweep, site, centre in (("mlp", "mlp_out", 1.5), ("attention", "attn_out", 3.5)):
            for layer in range(N_LAYERS):
                value = 0.55 * np.exp(-((layer - centre) ** 2) / 1.5) + 0.02 * rng.normal()
                yield summary_row(
                    sweep=sweep, site=site, layer=layer, metric=metric, estimate=value, half=0.04 + 0.15 * abs(value)
                )
        yield summary_row(
            sweep="first feed-forward layer", site="transformer.h.0.mlp.c_fc", metric=metric, estimate=0.7, half=0.1
        )
        yield summary_row(sweep="final layer", site="logits", metric=metric, estimate=1.0, half=0.0, cut=True)


def pair_rows(rng: np.random.Generator, hostile: bool, n_pairs: int = N_PAIRS) -> list[dict[str, Any]]:
    """Pairs, two of them excluded; with `hostile` some prompts try to become markup."""
    subjects = ("Lennox seizures", "absence seizures", "tonic seizures", "gelastic seizures", "clonic seizures")
    out = []
    for i in range(n_pairs):
        subject, other = subjects[i % 5], subjects[(i + 1) % 5]
        words = ["By", " definition", f" {subject.split()[0]}", " seizures", " are", " known", " by"]
        wrong = [*words[:2], f" {other.split()[0]}", *words[3:]]
        if hostile:
            evil = HOSTILE[i % len(HOSTILE)]
            words[2], wrong[2], words[4] = evil, f"{evil}!", f" {HOSTILE[(i + 1) % len(HOSTILE)]}"
        excluded = i >= n_pairs - 2
        clean, corrupted = rng.normal(2.2, 0.4), rng.normal(-0.9, 0.4)
        out.append(
            {
                "pair": HOSTILE[0] if hostile and i == 0 else f"p{i:03d}",
                "group": HOSTILE[1] if hostile and i == 1 else f"template {i % 8}",
                "clean": "".join(words), "corrupted": "".join(wrong),
                "correct": [HOSTILE[3] if hostile and i == 2 else " staring"], "incorrect": [" stiffening"],
                "clean_tokens": words, "corrupted_tokens": wrong,
                "roles": ["first", "first", "subject_first", "subject_last", "further", "further", "last"],
                "labels": json.dumps({"kind": "definitional" if i % 2 else "associative"}),
                "status": "excluded" if excluded else "used",
                "reason": "the clean-corrupted gap is below min_gap" if excluded else "",
                "clean_logit_diff": clean, "corrupted_logit_diff": corrupted,
                "clean_prob": 0.81, "corrupted_prob": 0.04,
            }
        )  # fmt: skip
    return out


def peak(sweep: str, direction: str = "denoise", **values: Any) -> dict[str, Any]:
    """A peak of the findings, as the study runner writes it."""
    cell = {
        "sweep": sweep, "corruption": "str", "direction": direction, "site": "z", "layer": 3, "head": 5,
        "position": None, "position_role": "all", "window": 1,
    } | values.pop("cell", {})  # fmt: skip
    return {
        "sweep": sweep, "metric": "logit_diff", "direction": direction, "cell": cell, "label": "L3H5 z",
        "selection_estimate": 0.66, "estimate": 0.62, "low": 0.53, "high": 0.71, "p": 0.0004, "n": 12,
        "n_clusters": 6, "estimate_kind": "recovery",
    } | values  # fmt: skip


def findings() -> dict[str, Any]:
    """The findings of the made-up study."""
    statistics = [("effective number of layers", [2.1, 4.4], -2.3, -3.4, -1.1, 0.003),
                  ("centre of mass", [3.2, 2.9], 0.3, -0.4, 0.9, 0.41)]  # fmt: skip
    return {
        "peaks": [
            peak("heads"),
            peak("heads", "noise", estimate=0.63, low=0.55, high=0.7, p=0.0008),
            peak("residual", estimate=0.98, low=0.95, high=1.01, cell={"site": "resid_post", "layer": 0, "head": None,
                 "position": 3, "position_role": "subject_last"}),
        ],
        "detected": {"heads/logit_diff/denoise": 3},
        "contrast": {
            "label": "kind",
            "groups": ["definitional", "associative"],
            "rows": [
                {"sweep": sweep, "metric": metric, "direction": "denoise", "statistic": name, "values": values,
                 "difference": difference, "low": low, "high": high, "p": p}
                for sweep in ("mlp", "attention") for metric in METRICS
                for name, values, difference, low, high, p in statistics
            ],
            "cells": [
                {"sweep": "heads", "metric": "logit_diff", "direction": direction, "cell": peak("heads")["cell"],
                 "values": [0.8, 0.5], "difference": 0.3, "low": 0.1, "high": 0.4, "p_adjusted": p}
                for direction, p in (("denoise", 0.01), ("noise", 0.02), ("denoise", 0.4))
            ],
        },
        "both_directions": [{"cell": peak("heads")["cell"], "denoise": 0.62, "noise": 0.63}],
        "cuts": [{"sweep": "residual", "site": "resid_post", "layer": 5, "position_role": "last", "recovery": 1.0,
                  "why": "nothing after it reads anything else"}],
    }  # fmt: skip


AUDIT = (
    {"check": "answer_in_prompt", "title": "The answer stands in the prompt", "severity": "warning",
     "message": "In 2 pairs the correct answer occurs in the clean prompt; the model may copy it.",
     "items": ["p003", "p007"]},
    {"check": "cut_cells", "title": "Some cells are cuts", "severity": "note",
     "message": "2 cells recover everything by construction. They are kept out of rankings, peaks and tests.",
     "items": ["residual: L5 at last", "final layer: logits"]},
    {"check": "saturation", "title": "Probability saturates", "severity": "ok",
     "message": "Logit difference is measured beside probability.", "items": []},
)  # fmt: skip


def manifest(pairs: list[dict[str, Any]], rows: int, **changes: Any) -> dict[str, Any]:
    """manifest.json of the made-up study."""
    import tomllib

    excluded = [{"pair": row["pair"], "reason": row["reason"]} for row in pairs if row["status"] == "excluded"]
    return {
        "engramscope": "0.1.0", "status": "complete", "started": "2026-01-05T09:00:00+00:00",
        "finished": "2026-01-05T09:00:41+00:00", "elapsed_s": 41.2, "study": tomllib.loads(TOML),
        "model": {"name": "mini", "source": "bundled", "model_type": "gpt2", "revision": None,
                  "weight_hash": "sha256:" + "5f" * 32, "dtype": "float32", "device": "cpu", "n_layers": N_LAYERS,
                  "n_heads": N_HEADS, "n_kv_heads": N_HEADS, "d_model": 256, "d_mlp": 1024, "vocab": 4096,
                  "parameters": 5_812_224},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"}, "platform": "Linux x86_64",
        "seed": 0, "timings_s": {"load": 0.8, "sweeps": 36.1, "statistics": 3.3},
        "self_checks": [
            {"name": "write-back identity", "value": 0.0, "tolerance": 1e-6, "passed": True, "detail": "84 sites"},
            {"name": "additivity", "value": 3.1e-7, "tolerance": 1e-4, "passed": True, "detail": ""},
        ],
        "parity": {"checked": 16, "max_abs_diff": 2.4e-6, "tolerance": 1e-4},
        "noise_floor": {"logit_diff": 4e-7, "prob": 1e-8},
        "counts": {"pairs": len(pairs), "used": len(pairs) - len(excluded), "cells": 98, "rows": rows,
                   "by_status": {"ok": rows, "skipped": 3}},
        "excluded": excluded,
        "skipped": [{"pair": "p004", "sweep": "residual", "reason": "the prompt has no such position", "cells": 3}],
        "corruption": {"method": "str", "options": {}, "level": "tokens"}, "audit": list(AUDIT), "findings": findings(),
    } | changes  # fmt: skip


def build(
    path: Path,
    *,
    hostile: bool = False,
    rows: list[dict[str, Any]] | None = None,
    pairs: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write the whole folder.

    Args:
        path: where.
        hostile: prompts, ids and audit items that try to become markup.
        rows: of summary.csv, instead of the usual ones.
        pairs: of pairs.parquet, instead of the usual ones.
        changes: keys of the manifest.
    """
    rng = np.random.default_rng(11)
    people = pair_rows(rng, hostile) if pairs is None else pairs
    if rows is None:
        roles = list(people[0]["roles"])
        rows = [*profile_rows(rng), *head_rows(rng), *residual_rows(rng, roles)]
    if hostile:
        evil = {"check": HOSTILE[0], "title": HOSTILE[1], "severity": "warning", "message": HOSTILE[4],
                "items": list(HOSTILE)}  # fmt: skip
        changes = {"audit": [*AUDIT, evil], "platform": HOSTILE[0], "versions": {HOSTILE[1]: HOSTILE[3]}} | changes
    toml = TOML + (f"# {HOSTILE[0]} {HOSTILE[2]}\n" if hostile else "")
    with ResultsFolder.create(path, toml, "sha256:" + "ab" * 32) as folder:
        folder.write_table("pairs.parquet", pd.DataFrame(people))
        folder.append("all", pa.Table.from_pylist([], schema=EFFECTS))
        folder.finalise(["all"])
        folder.write_summary(pd.DataFrame(rows))
        folder.write_manifest(manifest(people, len(rows), **changes))
    return path
