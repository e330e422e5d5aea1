"""Every check, with an input that triggers it and one that does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope.audit import CHECKS, SEVERITIES, AuditContext, Check, Finding, run_checks
from engramscope.audit._facts import cut_shares
from engramscope.audit._show import count, listed, number, percent, quoted, tokens
from engramscope.locate.cells import Cell
from engramscope.models.anatomy import Anatomy
from engramscope.pairs.pair import Pair, PairSet
from engramscope.pairs.tokenized import Alignment, TokenizedPair, TokenizedPrompt
from engramscope.results.schema import EFFECTS, SUMMARY_COLUMNS
from engramscope.stats.split import split_by_cluster
from engramscope.study_file import StudyFile, parse_study

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"

#: every row of the table of pitfalls in the design, and the checks that guard it
PITFALLS = {
    "100 % by construction": ["cut_sites"],
    "Gaussian noise off distribution": ["gaussian_noise"],
    "probability saturates": ["metric_choice"],
    "windows inflate": ["window_inflation"],
    "gap tiny or of the wrong sign": ["gap", "identical_prompts"],
    "answers, lengths, BOS, spaces": [
        "answer_in_prompt", "corrupted_keeps_answer", "shared_first_token", "answer_tokens", "lengths", "bos",
        "leading_space", "unaligned_positions", "position_roles",
    ],
    "many cells, dependent prompts, chosen peak": ["multiplicity", "clusters", "duplicate_pairs", "peak_selection"],
    "below numerical noise": ["noise_floor"],
    "sufficient or necessary": ["direction"],
    "localisation is not editability": ["localisation_is_not_editability"],
}  # fmt: skip

ANATOMY = Anatomy(
    model_type="toy", n_layers=2, n_heads=2, n_kv_heads=2, d_model=8, d_head=4, d_mlp=8, vocab=31, parallel=False,
    embed="m.wte", final_norm="m.norm", head="head", blocks=("m.h.0", "m.h.1"), attention=("m.h.0.a", "m.h.1.a"),
    attention_interface=True,
)  # fmt: skip


def study(
    corruption: dict[str, Any] | None = None, metrics: Sequence[str] = ("logit_diff", "kl"), **more: Any
) -> StudyFile:
    sweep = more.pop("sweep", [{"name": "mlp", "site": "mlp_out", "direction": "both"}])
    model = {"name": "mini", **more.pop("model", {})}
    return parse_study(
        {
            "schema": 1, "name": "s", "model": model, "pairs": {"file": "pairs.jsonl"}, "sweep": sweep,
            "corruption": corruption or {"method": "str"}, "metrics": {"names": list(metrics)}, **more,
        }
    )  # fmt: skip


def pair(number: int = 0, **more: Any) -> Pair:
    settings = {
        "id": f"p{number}", "clean": f"Town {number} lies in the land of",
        "corrupted": f"City {number} lies in the land of",
        "correct": (" France",), "incorrect": (" Italy",), "group": f"g{number}", **more,
    }  # fmt: skip
    return Pair(**settings)


def pairs(n: int = 40, **more: Any) -> PairSet:
    return PairSet.of([pair(number, **more) for number in range(n)])


def prompt(ids: Sequence[int], roles: Sequence[str] | None = None) -> TokenizedPrompt:
    kept = tuple(roles) if roles else (*("further",) * (len(ids) - 1), "last")
    return TokenizedPrompt(tuple(ids), tuple(f" w{token}" for token in ids), {}, kept)


def in_tokens(
    clean: Sequence[int] = (1, 2, 3), corrupted: Sequence[int] = (1, 4, 3), number: int = 0,
    correct: Sequence[Sequence[int]] = ((10,),), incorrect: Sequence[Sequence[int]] = ((11,),),
    alignment: Alignment | None = None, roles: Sequence[str] | None = None,
) -> TokenizedPair:  # fmt: skip
    places = tuple(range(min(len(clean), len(corrupted))))
    return TokenizedPair(
        pair(number), prompt(clean, roles), prompt(corrupted), tuple(map(tuple, correct)), tuple(map(tuple, incorrect)),
        alignment or Alignment(places, places),
    )  # fmt: skip


class Words:
    """A tokenizer of words that marks spaces as byte-level BPE does; words it does not know fall into letters."""

    def __init__(self, bos_token_id: int | None = None, *, marks: bool = True, add_bos_token: bool = False) -> None:
        self.bos_token_id, self.bos_token, self.add_bos_token = bos_token_id, "<s>", add_bos_token
        self._marks, self._ids = marks, {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert add_special_tokens is False
        pieces = re.findall(r" ?\w+| |[^\w ]", text) if self._marks else list(text.replace(" ", ""))
        return {"input_ids": [self._ids.setdefault(piece, len(self._ids)) for piece in pieces]}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        texts = {number: piece.replace(" ", "Ġ") for piece, number in self._ids.items()}
        return [texts.get(number, f"#{number}") for number in ids]


def cell(site: str = "mlp_out", layer: int | None = 0, **more: Any) -> Cell:
    settings = {
        "heads": None,
        "sweep": "s",
        "position": None,
        "position_role": "all",
        "direction": "denoise",
        "window": 1,
        **more,
    }
    return Cell(site=site, layers=() if layer is None else (layer,), layer=layer, **settings)


def baselines(values: Sequence[tuple[float, float | None]], metric: str = "logit_diff") -> pd.DataFrame:
    rows = [(f"p{i}", 0, metric, clean, corrupted) for i, (clean, corrupted) in enumerate(values)]
    return pd.DataFrame(rows, columns=["pair", "seed", "metric", "clean", "corrupted"])


def summary(rows: Sequence[dict[str, Any]] = ()) -> pd.DataFrame:
    start = {"sweep": "mlp", "site": "mlp_out", "layer": 0, "window": 1, "metric": "logit_diff", "cut": False,
             "estimate": 0.5, "effect": 0.5, "position_role": "all", "direction": "denoise",
             "estimate_kind": "recovery"}  # fmt: skip
    frame = pd.DataFrame([{**dict.fromkeys(SUMMARY_COLUMNS), **start, **row} for row in rows or [{}]])
    return frame[list(SUMMARY_COLUMNS)]


def effects(rows: Sequence[dict[str, Any]] = ()) -> pd.DataFrame:
    start = {"pair": "p0", "seed": 0, "sweep": "mlp", "site": "mlp_out", "direction": "denoise", "layer": 0,
             "window": 1, "metric": "logit_diff", "cut": False, "effect": 0.5, "status": "ok",
             "position_role": "all"}  # fmt: skip
    return pd.DataFrame([{**dict.fromkeys(EFFECTS.names), **start, **row} for row in rows or [{}]])[EFFECTS.names]


def knowing() -> StudyFile:
    kept = study()
    return kept.model_copy(update={"pairs": kept.pairs.model_copy(update={"known": True})})


def results(**more: Any) -> dict[str, Any]:
    return {
        "effects": effects(),
        "summary": summary(),
        "baselines": baselines([(2.0, 0.1), (2.2, 0.0), (1.8, 0.2)]),
        **more,
    }


def look(name: str, context: AuditContext) -> list[Finding]:
    check = CHECKS.get(name)()
    assert context.has(check.needs), "the test does not give what the check needs"
    found = check.run(context)
    assert found
    assert {finding.check for finding in found} == {name}
    return found


def worst(found: Sequence[Finding]) -> str:
    return min((finding.severity for finding in found), key=SEVERITIES.index)


TOWNS = ["Bonn", "Rome", "Oslo", "Lima", "Bern", "Nice", "Cork", "Graz", "Brno", "Kiel"]
GAUSSIAN = {"method": "gaussian", "sigma": 2.0, "draws": 3}
WIDE = {"name": "wide", "site": "mlp_out", "window": 3}
SINGLE = {"name": "mlp", "site": "mlp_out"}
EACH = [{"name": "each", "site": "resid_post", "positions": "each"}]
RAGGED = Alignment((0, 3), (0, 1), (1, 2))


def with_tokens(*items: TokenizedPair, study_: StudyFile | None = None, **more: Any) -> AuditContext:
    return AuditContext(study_ or study(), more.pop("pairs", pairs()), tokenized=list(items or [in_tokens()]), **more)


def case(severity: str, context: AuditContext, *words: str) -> tuple[str, AuditContext, tuple[str, ...]]:
    """The gravest severity that is expected, and words that the findings must hold."""
    return severity, context, words


def with_model(cells: list[Cell], cut: dict[Cell, float], **more: Any) -> AuditContext:
    return AuditContext(more.pop("study_", study()), pairs(), anatomy=ANATOMY, cells=cells, cut=cut, **more)


FREE, CUT = cell("mlp_out"), cell("resid_post", 1)

CASES: dict[str, list[tuple[str, AuditContext, tuple[str, ...]]]] = {
    "answer_in_prompt": [
        case("warning", AuditContext(study(), pairs(correct=(" land",))), "40 of 40 pairs", "and 35 more", "“ land”"),
        case("ok", AuditContext(study(), pairs(correct=(" lan",))), "40 pairs"),
        case("ok", AuditContext(study(), pairs(correct=(" Land",)))),
        case("note", AuditContext(study({"method": "answer"}), pairs()), "By design"),
        case("warning", AuditContext(study({"method": "answer"}), pairs(correct=(" land",)))),
    ],
    "corrupted_keeps_answer": [
        case("warning", AuditContext(study(), pairs(correct=(" City",))), "40 pairs"),
        case("note", AuditContext(study(), pairs(correct=(" land",)))),
        case("ok", AuditContext(study(), pairs())),
        case("ok", AuditContext(study({"method": "answer"}), pairs(correct=(" City",)))),
    ],
    "identical_prompts": [
        case("error", AuditContext(study(), pairs(clean="same", corrupted="same")), "40 pairs", "“same”"),
        case("error", with_tokens(in_tokens((1, 2), (1, 2))), "1 pair"),
        case("ok", with_tokens()),
        case("ok", AuditContext(study({"method": "gaussian"}), pairs(corrupted=None))),
        case("ok", with_tokens(in_tokens((1, 2), (1, 2)), study_=study({"method": "zero"}))),
    ],
    "duplicate_pairs": [
        case("warning", AuditContext(study(), pairs(3, clean="a", corrupted="b")), "2 of 3 pairs", "p0, p1, p2"),
        case("note", AuditContext(study(), pairs(3, clean="a", corrupted="b", group="g"))),
        case("ok", AuditContext(study(), pairs())),
    ],
    "clusters": [
        case("warning", AuditContext(study(), pairs(group="g")), "every p is 1"),
        case("warning", AuditContext(study(), pairs(9)), "9 clusters", "0.00391"),
        case("warning", AuditContext(study(), pairs(5)), "0.0625: nothing can be detected at 0.01"),
        case("note", AuditContext(study(), pairs(group="")), "No pair has a group"),
        case("note", AuditContext(study(), PairSet.of([*pairs(20), pair(99, group="")])), "1 of 21 pairs"),
        case(
            "warning",
            AuditContext(study(), PairSet.of([
                pair(n, group="", clean=f"{name} is in", spans={"town": (0, len(name))})
                for n, name in enumerate(TOWNS)
            ])),
            "10 × “[town] is in”",
        ),
        case("ok", AuditContext(study(), pairs()), "40 clusters by group"),
        case("ok", AuditContext(study(stats={"cluster": "pair"}), pairs()), "40 clusters by pair"),
        case("warning", AuditContext(study(stats={"cluster": "pair"}), pairs(group="g")), "40 of them", "g: 40 pairs"),
        case("ok", AuditContext(study(stats={"cluster": "kind"}), PairSet.of(
            [pair(n, group="g", labels={"kind": str(n % 12)}) for n in range(40)])), "12 clusters by kind"),
    ],
    "sample_size": [
        case("warning", AuditContext(study(), pairs(9)), "9 pairs only"),
        case("note", AuditContext(study(), pairs(29)), "29 pairs"),
        case("ok", AuditContext(study(), pairs(30))),
        case("note", AuditContext(study(stats={"contrast": "kind"}),
                                  PairSet.of([pair(n, labels={"kind": "ab"[n % 2]} if n else {}) for n in range(30)])),
             "1 of 30 pairs have no label 'kind'"),
    ],
    "direction": [
        case("note", AuditContext(study(sweep=[SINGLE]), pairs()), "sufficient", "(mlp)"),
        case("note", AuditContext(study(sweep=[{**SINGLE, "direction": "noise"}]), pairs()), "necessary"),
        case("note", AuditContext(study({"method": "zero"}), pairs()), "Ablation (zero)"),
        case("ok", AuditContext(study(), pairs())),
        case("ok", AuditContext(study(sweep=[SINGLE, {**SINGLE, "name": "n", "direction": "noise"}]), pairs())),
    ],
    "gaussian_noise": [
        case("warning", AuditContext(study(GAUSSIAN), pairs()), "2.0 standard deviations", "3 draws", "at least 5"),
        case("warning", AuditContext(study({**GAUSSIAN, "draws": 5}), pairs()), "5 draws"),
        case(
            "warning",
            AuditContext(study(GAUSSIAN), pairs(), effects=effects([
                {"seed": 0, "effect": 1.0}, {"seed": 1, "effect": 3.0}, {"seed": 0, "effect": 2.0, "pair": "p1"},
                {"seed": 1, "effect": 4.0, "pair": "p1"}, {"seed": 0, "layer": 1, "effect": -9.0},
                {"seed": 1, "layer": 1, "effect": -9.5}, {"seed": 0, "layer": 7, "effect": 0.0, "cut": True},
                {"seed": 1, "layer": 7, "effect": 100.0, "cut": True},
            ])),
            "standard deviation of 1.41 at most (mlp_out L0: from 1.5 to 3.5)", "(mlp_out L1) it is −9.25 ± 0.354",
        ),
        case("ok", AuditContext(study(), pairs())),
    ],
    "metric_choice": [
        case("warning", AuditContext(study(metrics=["prob"]), pairs()), "Only probabilities are measured (prob)"),
        case("note", AuditContext(study(metrics=["logit_diff"]), pairs()), "One metric only (logit_diff)"),
        case("ok", AuditContext(study(metrics=["logit_diff", "rank"]), pairs()), "2 metrics"),
        case("note", AuditContext(study(), pairs()), "Distances from the clean run (kl)", "described, not tested, and"),
        case("warning", AuditContext(study(metrics=["kl"]), pairs()), "no cell is detected by them; add logit_diff"),
        case("note", AuditContext(study(metrics=["logit_diff", "prob"]), pairs(2), baselines=baselines(
            [(0.5, 0.001), (0.5, 0.3)], "prob")), "In 1 of 2 pairs (50 %)"),
        case("ok", AuditContext(study(metrics=["logit_diff", "prob"]), pairs(2), baselines=baselines(
            [(0.001, 0.5), (0.5, 0.3)], "prob"))),
    ],
    "window_inflation": [
        case("warning", AuditContext(study(sweep=[WIDE]), pairs()), "without single layers beside them: wide"),
        case("warning", AuditContext(study(sweep=[WIDE, {**SINGLE, "site": "attn_out"}]), pairs())),
        case("warning", AuditContext(study(sweep=[WIDE, {**SINGLE, "positions": "last"}]), pairs())),
        case("warning", AuditContext(study(sweep=[WIDE, {**SINGLE, "direction": "noise"}]), pairs())),
        case("note", AuditContext(study(sweep=[WIDE, SINGLE]), pairs()), "wide (window 3)"),
        case("ok", AuditContext(study(), pairs())),
        case("warning", AuditContext(study(sweep=[WIDE, SINGLE]), pairs(), summary=summary([
            {"sweep": "wide", "window": 3, "layer": 1, "estimate": 0.9, "singles_sum": 0.3},
            {"sweep": "wide", "window": 3, "layer": 0, "estimate": 0.4, "singles_sum": 0.4},
            {"sweep": "wide", "window": 3, "layer": 5, "estimate": 1.0, "singles_sum": 0.1, "cut": True}])),
            "mlp_out L1 (window 3)", "shows 0.9", "add up to 0.3", "In 1 of 2 cells"),
        case("note", AuditContext(study(sweep=[WIDE, SINGLE]), pairs(), summary=summary([
            {"sweep": "wide", "window": 3, "layer": 1, "estimate": -0.9, "singles_sum": -0.8}])), "In 0 of 1 cells"),
        # noised, a recovery of 1 is a patch without effect: 0.1 is 0.9 away from it, 0.8 only 0.2
        case("warning", AuditContext(study(sweep=[WIDE, SINGLE]), pairs(), summary=summary([
            {"sweep": "wide", "window": 3, "direction": "noise", "estimate_kind": "recovery", "estimate": 0.1,
             "singles_sum": 0.8}])), "In 1 of 1 cells"),
    ],
    "noise_floor": [
        case("warning", AuditContext(study(model={"dtype": "bfloat16"}), pairs()), "bfloat16"),
        case("ok", AuditContext(study(), pairs()), "float32"),
        case("warning", AuditContext(study(metrics=["logit_diff"]), pairs(), **results(),
                                     noise_floor={"logit_diff": 0.1}),
             "noise floor is 0.1", "5 % of the mean gap (1.9)"),
        case("note", AuditContext(study(metrics=["logit_diff"]), pairs(), noise_floor={"logit_diff": 1e-6}, **results(
            summary=summary([{"effect": -1e-7}, {"layer": 1}, {"layer": 3, "effect": 0.0, "cut": True}]))),
            "1 of 2 cells", "mlp_out L0"),
        case("note", AuditContext(study(metrics=["logit_diff"]), pairs(), **results()), "was not measured"),
        case("ok", AuditContext(study(metrics=["logit_diff"]), pairs(), **results(), noise_floor={"logit_diff": 1e-6})),
    ],
    "peak_selection": [
        case("warning", AuditContext(study(), pairs(1)), "All pairs are in one cluster", "no peak is named"),
        case("warning", AuditContext(study(), pairs(3)), "on the other (1 or 2)", "p cannot be smaller than 0.5",
             "12 clusters or more"),
        case("warning", AuditContext(study(), pairs(4)), "on the other (2)", "p cannot be smaller than 0.5"),
        case("warning", AuditContext(study(), pairs(11)), "on the other (5 or 6)",
             "with 5 clusters p cannot be smaller than 0.0625", "12 clusters or more"),
        case("warning", AuditContext(study(), pairs(12), unknown=[("p0", "is not known")]), "half of the 11 clusters"),
        case("ok", AuditContext(study(), pairs(12)), "half of the 12 clusters and measured on the other (6)"),
    ],
    "base_model": [
        case("note", AuditContext(study({"method": "base_model", "base": "gpt2"}), pairs()), "the base model's"),
        case(
            "note",
            AuditContext(
                study({"method": "base_model", "base": "gpt2"}, sweep=[{"name": "w", "site": "weights:mlp"}]), pairs()
            ),
            "taken apart",
        ),
        case(
            "warning",
            AuditContext(study({"method": "base_model", "base": "gpt2"}), pairs(), other_base="folder/of-another"),
            "from others (folder/of-another)", "training.json",
        ),
        case("ok", AuditContext(study(), pairs())),
    ],
    "localisation_is_not_editability": [case("note", AuditContext(study(), pairs()), "mlp_out")],
    "lengths": [
        case("error", with_tokens(in_tokens((1, 2, 3), (1, 2))), "1 pair", "3 against 2 tokens", "| w1| w2|"),
        case("ok", with_tokens()),
        case("ok", with_tokens(in_tokens((1, 2, 3), (1, 2)), study_=study({"method": "answer"}))),
    ],
    "answer_tokens": [
        case("error", with_tokens(in_tokens(correct=((10, 12),))), "logit_diff scores a single token", "|10|12|"),
        case("error", with_tokens(in_tokens(incorrect=((10, 12),)))),
        case("error", with_tokens(in_tokens(incorrect=())), "1 pair has none"),
        case("ok", with_tokens(in_tokens(incorrect=((10, 12),)), study_=study(metrics=["prob", "kl"]))),
        case("error", with_tokens(in_tokens(correct=((10, 12),)), study_=study(metrics=["prob"]))),
        case("ok", with_tokens(in_tokens(correct=((10, 12),)), study_=study(metrics=["answer_log_prob"]))),
        case("ok", with_tokens()),
    ],
    "shared_first_token": [
        case("error", with_tokens(in_tokens(correct=((9,), (10, 12)), incorrect=((11,), (10, 13)))), "share |10|"),
        case("warning", with_tokens(in_tokens(correct=((10, 12),), incorrect=((10, 13),)),
                                    study_=study(metrics=["mean_logit_diff"]))),
        case("note", with_tokens(in_tokens(correct=((10, 12),), incorrect=((10, 13),)),
                                 study_=study(metrics=["answer_log_prob"]))),
        case("ok", with_tokens(in_tokens(correct=((10, 12),), incorrect=((12, 10),)))),
    ],
    "leading_space": [
        case("warning", with_tokens(tokenizer=Words(), pairs=pairs(1, correct=("France",))),
             "1 pair", "“France” is | ofFrance|, with a space | France|"),
        case("warning", with_tokens(tokenizer=Words(), pairs=pairs(1, incorrect=("Italy",)))),
        case("warning", with_tokens(tokenizer=Words(), pairs=pairs(1, clean="in the land of ", correct=("Italy",))),
             "1 prompt ends in a space", "| of| |"),
        case("ok", with_tokens(tokenizer=Words(), pairs=pairs(1))),
        case("ok", with_tokens(tokenizer=Words(), pairs=pairs(1, clean="from 17", correct=("54",), incorrect=("12",)))),
        case("ok", with_tokens(tokenizer=Words(), pairs=pairs(1, clean="say (", correct=("x",), incorrect=("y",)))),
        case("ok", with_tokens(tokenizer=Words(marks=False), pairs=pairs(1, correct=("France",)))),
        case("ok", with_tokens(pairs=pairs(1, correct=("France",)))),
    ],
    "bos": [
        case("warning", with_tokens(in_tokens((0, 0, 1), (0, 0, 2)), tokenizer=Words(0)), "two <s> tokens"),
        case("warning", with_tokens(in_tokens((0, 1), (0, 2)), in_tokens((1, 2), (1, 3), 1), tokenizer=Words(0)),
             "1 of 2 pairs", "p1"),
        case("warning", with_tokens(in_tokens((0, 1), (2, 1)), tokenizer=Words(0)), "p0"),
        case("warning", with_tokens(tokenizer=Words(0, add_bos_token=True)), "off its distribution"),
        case("note", with_tokens(tokenizer=Words(0)), "does not add it"),
        case("ok", with_tokens(in_tokens((0, 1), (0, 2)), tokenizer=Words(0)), "position 1"),
        case("ok", with_tokens(tokenizer=Words())),
        case("ok", with_tokens()),
    ],
    "unaligned_positions": [
        case("note", with_tokens(in_tokens((1, 2, 9, 3), (1, 3), alignment=RAGGED)), "2 positions", "clean | w2| w9|"),
        case("ok", with_tokens()),
    ],
    "position_roles": [
        case("warning", with_tokens(in_tokens(), in_tokens((1, 2), (1, 4), 1), study_=study(sweep=EACH)),
             "from 2 to 3 tokens", "no span is named"),
        case("note", with_tokens(in_tokens(), in_tokens((1, 2), (1, 4), 1, roles=("subject_last", "last")),
                                 study_=study(sweep=EACH)), "subject_last: in 1 of 2 prompts"),
        case("note", with_tokens(in_tokens(roles=("a", "further", "last")), in_tokens(roles=("further", "a", "last")),
                                 study_=study(sweep=EACH)), "spans in different places"),
        case("ok", with_tokens(in_tokens(), in_tokens((1, 5, 3), (1, 6, 3), 1), study_=study(sweep=EACH)), "by index"),
        # of one length, but of two templates: what stands at an index is another token in every prompt
        case("warning", with_tokens(in_tokens((1, 2, 3, 4), (1, 9, 3, 4)), in_tokens((5, 6, 7, 4), (5, 8, 7, 4), 1),
                                    study_=study(sweep=EACH)), "at 2 of 3 positions", "by their index", "name spans"),
        case("note", with_tokens(in_tokens((1, 2, 3, 4), (1, 9, 3, 4)), in_tokens((5, 6, 3, 4), (5, 7, 3, 4), 1),
                                 study_=study(sweep=EACH)), "at 1 of 3 positions", "position 0"),
        case("ok", with_tokens(in_tokens(roles=("a", "further", "last")),
                               in_tokens((5, 6, 7), (5, 8, 7), 1, roles=("a", "further", "last")),
                               study_=study(sweep=EACH)), "by index"),
        case("ok", with_tokens(in_tokens(), in_tokens((1, 2), (1, 4), 1))),
    ],
    "cut_sites": [
        case("note", with_model([FREE, CUT], {CUT: 1.0}), "1 of 2 cells", "resid_post L1"),
        case("note", with_model([FREE, CUT], {CUT: 0.25}), "in 25 % of the pairs"),
        case("warning", with_model([FREE, cell("logits", None, sweep="end")], {cell("logits", None, sweep="end"): 1.0}),
             "Every cell of 1 sweep (end)"),
        case("ok", with_model([FREE, CUT], {})),
        case("note", with_model([FREE, CUT], {CUT: 1.0}, study_=study({"method": "mean"})),
             "from the prompt to the read-out", "independent of the prompt"),
        case("warning", with_model([FREE], {}, effects=effects([
            {"clean": 2.0, "corrupted": 1.0, "patched": 2.0 + 1e-7},
            {"clean": 3.0, "corrupted": 1.0, "patched": 3.0, "pair": "p1"},
            {"clean": 3.0, "corrupted": 1.0, "patched": 3.0, "pair": "p1", "layer": 4, "direction": "noise"},
            {"clean": 3.0, "corrupted": 3.0, "patched": 3.0, "layer": 5},
            {"clean": 2.0, "corrupted": 1.0, "patched": 2.0, "layer": 6, "cut": True}])),
            "No rule knows 1 cell", "mlp_out L0"),
        case("ok", with_model([FREE], {}, effects=effects([
            {"clean": 2.0, "corrupted": 1.0, "patched": 2.0, "head": 1}]))),
        case("ok", with_model([FREE], {}, effects=effects([
            {"clean": 1.0, "corrupted": 0.0, "patched": 1.0, "metric": "prob"},
            {"clean": 9.0, "corrupted": 1.0, "patched": 8.0}]))),
        case("warning", with_model([FREE], {}, effects=effects([
            {"clean": 3.0, "corrupted": 1.0, "patched": 1.0, "direction": "noise"}]))),
        case("ok", with_model([FREE], {}, effects=effects([
            {"clean": 2.0, "corrupted": 1.0, "patched": 2.0},
            {"clean": 3.0, "corrupted": 1.0, "patched": 2.999, "pair": "p1"}]))),
    ],
    "multiplicity": [
        case("note", with_model([FREE, CUT], {}), "4 tests: 2 cells by 2 metrics", "corrected for one another"),
        case("ok", with_model([FREE, CUT], {CUT: 1.0}, study_=study(metrics=["kl"])), "1 test: 1 cell by 1 metric"),
    ],
    "known_facts": [
        case("note", AuditContext(knowing(), pairs(), **results(), unknown=[("p1", "it goes on with ' a', not ' b'")]),
             "1 pair of 40 (2 %)", "p1: it goes on"),
        case("ok", AuditContext(knowing(), pairs(), **results()), "all 40 pairs"),
        case("ok", AuditContext(study(), pairs(), **results()), "known = false"),
    ],
    "gap": [
        case("warning", AuditContext(study(), pairs(), **results(), excluded=[("p1", "its gap is tiny")]),
             "1 pair of 40 (2 %)", "p1: its gap is tiny"),
        case("warning", AuditContext(study(), pairs(), **results(baselines=baselines([(1.0, 2.0), (1.0, 3.0)]))),
             "by −1.5 on average", "in 2 of them", "wrong sign"),
        case("warning", AuditContext(study(), pairs(), **results(baselines=baselines([(3.0, 0.0), (0.0, 2.0)]))),
             "by 0.5 on average", "two standard errors (2.5)"),
        case("warning", AuditContext(study(metrics=["kl"]), pairs(), **results(
            baselines=baselines([(2.0, 1.0)], "kl")))),
        case("ok", AuditContext(study(metrics=["kl"]), pairs(), **results(baselines=baselines([(0.0, 1.0)], "kl")))),
        case("ok", AuditContext(study(), pairs(), **results())),
        # pairs that the model does not know were never to be used: they are another check's
        case("ok", AuditContext(study(), pairs(), **results(), unknown=[("p1", "it says something else")])),
        case("ok", AuditContext(study({"method": "zero"}), pairs(), **results(baselines=baselines([(1.0, None)])))),
    ],
    "baseline_accuracy": [
        case("warning", AuditContext(study(), pairs(), **results(baselines=baselines([(1.0, 0.0), (-1.0, 0.0)]))),
             "In 1 of 2 pairs (50 %)", "p1"),
        case("note", AuditContext(study(), pairs(), **results(
            baselines=baselines([(1.0, 0.0)] * 4 + [(0.0, 0.0)]))), "p4"),
        case("ok", AuditContext(study(), pairs(), **results())),
        case("ok", AuditContext(study(metrics=["rank"]), pairs(), **results(
            baselines=baselines([(0.0, 5.0)], "rank")))),
        case("warning", AuditContext(study(metrics=["rank"]), pairs(), **results(
            baselines=baselines([(3.0, 0.0)], "rank")))),
        case("note", AuditContext(study(metrics=["kl"]), pairs(), **results()), "No metric says"),
    ],
    "failed_rows": [
        case("warning", AuditContext(study(), pairs(), **results(
            effects=effects([{}, {"status": "failed: kl is nan"}]))),
             "1 row of 2 (50 %) failed", "1 × failed: kl is nan"),
        case("note", AuditContext(study(), pairs(), **results(effects=effects([{}, {"status": "skipped: no role"}])))),
        case("ok", AuditContext(study(), pairs(), **results())),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, listing in CASES.items() for number in range(len(listing))]
)
def test_check(name: str, number: int) -> None:
    severity, context, words = CASES[name][number]
    found = look(name, context)
    said = "\n".join([*(finding.message for finding in found), *(item for finding in found for item in finding.items)])
    assert worst(found) == severity, said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize("name", CHECKS.names())
def test_every_check_is_complete(name: str) -> None:
    check = CHECKS.get(name)
    assert issubclass(check, Check)
    assert check.title
    assert CHECKS.describe(name).endswith(".")
    severities = [severity for severity, _, _ in CASES[name]]
    assert any(severity != "ok" for severity in severities), "no input triggers it"
    assert "ok" in severities or name == "localisation_is_not_editability", "no input leaves it alone"
    for _, context, _ in CASES[name]:
        for finding in look(name, context):
            assert finding.message.endswith("."), finding
            assert finding.severity in SEVERITIES
            assert len(finding.items) <= 6, "five items and a count of the rest"


def test_every_check_is_in_the_documentation_and_every_pitfall_has_one() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert documented == sorted(CHECKS.names())
    guards = [name for names in PITFALLS.values() for name in names]
    assert len(PITFALLS) == 10
    assert set(guards) <= set(CHECKS.names())
    assert all(PITFALLS.values())


def test_checks_run_as_far_as_the_study_has_come_and_the_gravest_comes_first() -> None:
    early = run_checks(AuditContext(study(GAUSSIAN), pairs(5)))
    assert {CHECKS.get(finding.check).needs for finding in early} == {"pairs"}
    assert {"clusters", "gaussian_noise"} <= {finding.check for finding in early}
    broken = in_tokens((1, 2, 3), (1, 2), correct=((10, 12),))
    whole = AuditContext(study(), pairs(5), [broken], Words(0), ANATOMY, [FREE, CUT], {CUT: 1.0}, **results())
    late = run_checks(whole)
    assert {finding.check for finding in late} == set(CHECKS.names())
    order = [SEVERITIES.index(finding.severity) for finding in late]
    assert order == sorted(order)
    assert {finding.check for finding in late if finding.severity == "error"} == {"lengths", "answer_tokens"}
    assert {CHECKS.get(finding.check).needs for finding in run_checks(whole, ["tokens"])} == {"tokens"}


def test_a_bug_in_a_check_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Check, context: AuditContext) -> list[Finding]:
        raise ZeroDivisionError

    monkeypatch.setattr(CHECKS.get("sample_size"), "run", broken)
    with pytest.raises(ZeroDivisionError):
        run_checks(AuditContext(study(), pairs()))


def test_the_pairs_themselves_may_hold_anything() -> None:
    nasty = PairSet.of([Pair("p{0}", "a (b|c) {x} \n<b>", (" (b|c)", "\\", ""), "z", (" .*",), "g")])
    found = run_checks(AuditContext(study(), nasty, [in_tokens()], Words()))
    copied = next(finding for finding in found if finding.check == "answer_in_prompt")
    assert copied.items == ("p{0}: “ (b|c)” in “a (b|c) {x} \\n<b>”",)


def test_an_empty_set_of_pairs_is_no_crash() -> None:
    empty = AuditContext(study(), PairSet.of([]), [], Words(0), ANATOMY, [], {}, **results(
        effects=effects().iloc[:0], summary=summary().iloc[:0], baselines=baselines([])))  # fmt: skip
    assert {finding.check for finding in run_checks(empty)} == set(CHECKS.names())


def test_cuts_are_found_where_nobody_gives_them() -> None:
    heads = [cell("z", 0, sweep="z", heads=(0,)), cell("z", 0, sweep="z")]
    end = cell("resid_post", 1, position_role="last")
    third = cell("embed", None, position=1, position_role=None)
    cells = [*heads, end, third, FREE]
    tokenized = [in_tokens(), in_tokens((5, 6, 7), (5, 8, 7), 1), in_tokens((5, 6, 7), (9, 8, 7), 2)]
    context = AuditContext(study(), pairs(3), tokenized, anatomy=ANATOMY, cells=cells)
    assert cut_shares(context) == {heads[0]: 0.0, heads[1]: 0.0, end: 1.0, third: 2 / 3, FREE: 0.0}
    noised = replace(tokenized[0], corrupted=replace(tokenized[0].clean, spans={"subject": (1,)}))
    gaussian = AuditContext(study({"method": "gaussian"}), pairs(1), [noised], anatomy=ANATOMY, cells=cells)
    assert cut_shares(gaussian)[third] == 1.0
    zero = AuditContext(study({"method": "zero"}), pairs(3), tokenized, anatomy=ANATOMY, cells=cells)
    # in an ablation all of the prompt is to be cut off, not what differs between two prompts
    assert cut_shares(zero) == {heads[0]: 0.0, heads[1]: 0.0, end: 1.0, third: 0.0, FREE: 0.0}
    assert worst(look("cut_sites", zero)) == "note"
    assert worst(look("cut_sites", context)) == "note"


def test_naming() -> None:
    assert listed(map(str, range(5))) == ("0", "1", "2", "3", "4")
    assert listed(map(str, range(7))) == ("0", "1", "2", "3", "4", "and 2 more")
    assert (count(1, "pair"), count(2, "pair"), count(0, "pair")) == ("1 pair", "2 pairs", "0 pairs")
    assert [percent(x) for x in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]
    assert quoted("a\nb") == "“a\\nb”"
    assert len(quoted("x" * 1000)) < 200
    assert tokens(["The", " Eiff", "\n"]) == "|The| Eiff|\\n|"


@pytest.mark.parametrize("count", [2, 3, 4, 5, 11])
def test_the_halves_that_are_named_are_those_of_the_statistics(count: int) -> None:
    message = look("peak_selection", AuditContext(study(), pairs(count)))[0].message
    named = {int(size) for size in re.findall(r"\d+", message.split("on the other (")[1].split(")")[0])}
    names = [f"p{number}" for number in range(count)]
    assert named == {int(split_by_cluster(names, np.random.default_rng(seed)).confirmation.sum()) for seed in range(30)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0625, "0.0625"), (-1.5, "−1.5"), (999.4, "999"), (12345.6, "12\u202f346"), (1e-7, "1.0\u00a0×\u00a010⁻⁷")],
)
def test_numbers_look_as_they_do_in_the_report(value: float, text: str) -> None:
    assert number(value) == text
    assert count(12345, "cell") == "12\u202f345 cells"
