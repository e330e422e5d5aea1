"""The summary and the findings, against plain loops over a table whose truth is known."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engramscope.results.findings import findings
from engramscope.results.schema import EFFECTS, SUMMARY_COLUMNS
from engramscope.results.summary import cell_label, families, summarise_effects

PAIRS = [f"p{number}" for number in range(12)]


def rows(**changes: Any) -> dict[str, Any]:
    """One row of the effects table."""
    row = {
        "study": "s", "pair": "p0", "group": "g", "corruption": "str", "seed": 0, "direction": "denoise", "site": "z",
        "layer": 0, "head": 0, "position": None, "position_role": "all", "window": 1, "metric": "logit_diff",
        "clean": 2.0, "corrupted": 0.0, "patched": 0.0, "status": "ok", "sweep": "heads", "cut": False,
    }  # fmt: skip
    row.update(changes)
    start = row["clean"] if row["direction"] == "noise" or row["corrupted"] is None else row["corrupted"]
    ok = row["status"] == "ok"
    return {**row, "patched": row["patched"] if ok else None, "effect": row["patched"] - start if ok else None,
            "recovery": None}  # fmt: skip


def table(items: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(items)[[name for name in EFFECTS.names]]
    return frame.astype({"layer": "Int64", "head": "Int64", "position": "Int64", "corrupted": "float64"})


@pytest.fixture
def heads() -> pd.DataFrame:
    """Two layers of two heads in twelve pairs; only head (1, 1) does something."""
    rng = np.random.default_rng(0)
    items = []
    for pair in PAIRS:
        clean, corrupted = 2.0 + rng.normal(), -1.0 + 0.3 * rng.normal()
        for layer in range(2):
            for head in range(2):
                share = 0.6 if (layer, head) == (1, 1) else 0.0
                patched = corrupted + share * (clean - corrupted) + 0.05 * rng.normal()
                items.append(rows(pair=pair, layer=layer, head=head, clean=clean, corrupted=corrupted, patched=patched))
    return table(items)


def summary_of(effects: pd.DataFrame, **options: Any) -> pd.DataFrame:
    return summarise_effects(effects, {pair: pair for pair in PAIRS}, resamples=500, **options)


def test_estimates_equal_plain_loops(heads: pd.DataFrame) -> None:
    summary = summary_of(heads)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    for _, cell in summary.iterrows():
        mine = heads[(heads["layer"] == cell["layer"]) & (heads["head"] == cell["head"])]
        top = sum(row.patched - row.corrupted for row in mine.itertuples())
        gap = sum(row.clean - row.corrupted for row in mine.itertuples())
        assert cell["recovery"] == pytest.approx(top / gap, abs=1e-12)
        assert cell["effect"] == pytest.approx(top / len(mine), abs=1e-12)
        assert cell["n"] == 12
    detected = summary[summary["detected"].astype(bool)]
    assert list(zip(detected["layer"], detected["head"], strict=True)) == [(1, 1)]
    strongest = detected.iloc[0]
    assert strongest["low"] < strongest["estimate"] < strongest["high"]
    # noise of 0.05 on a gap of about 3, twelve pairs: the interval is about 0.02 wide
    assert 0.005 < strongest["high"] - strongest["low"] < 0.05


def test_pairs_without_a_gap_leave_recovery_but_not_the_tests(heads: pd.DataFrame) -> None:
    pooled = set(PAIRS[:9])
    some, everyone = summary_of(heads, pooled=pooled), summary_of(heads)
    kept = heads[heads["pair"].isin(pooled)]
    for number, cell in some.iterrows():
        mine = kept[(kept["layer"] == cell["layer"]) & (kept["head"] == cell["head"])]
        ratio = (mine["patched"] - mine["corrupted"]).sum() / (mine["clean"] - mine["corrupted"]).sum()
        assert cell["recovery"] == pytest.approx(ratio, abs=1e-12)
        assert cell["p"] == everyone.loc[number, "p"]
        assert cell["n"] == 12


def test_draws_are_averaged_within_a_pair() -> None:
    items = [
        rows(pair=pair, seed=seed, corrupted=0.1 * seed, patched=0.5 + 0.1 * seed + 0.01 * int(pair[1:]))
        for pair in PAIRS
        for seed in range(4)
    ]
    (cell,) = summary_of(table(items)).to_dict("records")
    expected = np.mean([0.5 + 0.01 * number for number in range(12)])
    assert cell["n"] == 12
    assert cell["effect"] == pytest.approx(expected, abs=1e-12)
    assert cell["recovery"] == pytest.approx(expected / (2.0 - 0.15), abs=1e-12)


def test_positions_are_compared_by_role_when_prompts_differ() -> None:
    roles = {0: ["subject_first", "subject_last", "last"], 1: ["subject_last", "further", "further", "last"]}
    items = []
    for number, pair in enumerate(PAIRS):
        for position, role in enumerate(roles[number % 2]):
            items.append(rows(pair=pair, head=None, site="resid_post", position=position, position_role=role,
                              patched=0.1 * position + number))  # fmt: skip
    summary = summary_of(table(items)).set_index("position_role")
    assert summary["position"].isna().all()
    assert set(summary.index) == {"subject_first", "subject_last", "further", "last"}
    further = [0.15 + number for number in range(12) if number % 2]
    assert summary.loc["further", "n"] == 6
    assert summary.loc["further", "effect"] == pytest.approx(np.mean(further), abs=1e-12)
    assert summary.loc["subject_last", "n"] == 12


def test_positions_are_compared_by_index_when_all_prompts_are_alike() -> None:
    items = [
        rows(pair=pair, head=None, position=position, position_role=role)
        for pair in PAIRS
        for position, role in enumerate(["further", "further", "last"])
    ]
    assert list(summary_of(table(items))["position"]) == [0, 1, 2]


def test_a_cell_that_is_a_cut_everywhere_is_marked_and_one_that_is_a_cut_in_some_pairs_loses_these() -> None:
    items = []
    for number, pair in enumerate(PAIRS):
        items.append(rows(pair=pair, layer=0, patched=2.0, cut=True))
        items.append(rows(pair=pair, layer=1, patched=2.0 if number < 4 else 0.5 + 0.01 * number, cut=number < 4))
    summary = summary_of(table(items)).set_index("layer")
    assert bool(summary.loc[0, "cut"])
    assert math.isnan(summary.loc[0, "p"])
    assert not bool(summary.loc[0, "detected"])
    assert summary.loc[0, "recovery"] == pytest.approx(1.0)
    assert not bool(summary.loc[1, "cut"])
    assert summary.loc[1, "n"] == 8
    assert "4 pairs" in summary.loc[1, "note"]
    assert summary.loc[1, "effect"] == pytest.approx(np.mean([0.5 + 0.01 * n for n in range(4, 12)]))


def test_skipped_rows_count_for_nothing(heads: pd.DataFrame) -> None:
    skipped = heads.copy()
    gone = (skipped["pair"] == "p3") & (skipped["layer"] == 0)
    skipped.loc[gone, ["patched", "effect", "recovery"]] = None
    skipped.loc[gone, "status"] = "skipped: no such position"
    summary = summary_of(skipped)
    assert summary[summary["layer"] == 0]["n"].eq(11).all()
    assert summary[summary["layer"] == 1]["n"].eq(12).all()


def test_an_ablation_has_effects_and_no_recovery() -> None:
    items = [rows(pair=p, direction="noise", corrupted=None, patched=1.0 + 0.01 * int(p[1:])) for p in PAIRS]
    (cell,) = summary_of(table(items)).to_dict("records")
    assert cell["estimate_kind"] == "effect"
    assert math.isnan(cell["recovery"])
    assert cell["effect"] == pytest.approx(np.mean([-1.0 + 0.01 * n for n in range(12)]))


@pytest.mark.parametrize(("direction", "single"), [("denoise", 0.25), ("noise", 0.75)])
def test_windows_stand_beside_the_sum_of_their_single_layers(direction: str, single: float) -> None:
    # every single layer moves a quarter of the gap: recovery 0.25 when denoising, 0.75 when noising
    items = []
    for pair in PAIRS:
        for layer in range(4):
            alone = 2.0 * single
            width = len([k for k in range(layer - 1, layer + 2) if 0 <= k < 4])
            joint = 2.0 * (0.3 * width if direction == "denoise" else 1 - 0.3 * width)
            common = {"pair": pair, "layer": layer, "head": None, "site": "mlp_out", "direction": direction}
            items.append(rows(**common, sweep="windows", window=3, patched=joint))
            items.append(rows(**common, sweep="windows (single layers)", window=1, patched=alone))
    summary = summary_of(table(items))
    windows = summary[summary["window"] == 3].set_index("layer")
    for layer, width in enumerate((2, 3, 3, 2)):
        expected = 0.25 * width if direction == "denoise" else 1 - 0.25 * width
        assert windows.loc[layer, "singles_sum"] == pytest.approx(expected)
    assert summary[summary["window"] == 1]["singles_sum"].isna().all()


def test_all_cells_of_the_study_are_corrected_for_one_another(heads: pd.DataFrame) -> None:
    """Adjusted p by plain enumeration of all sign flips over the cells of two metrics."""
    rng = np.random.default_rng(3)
    other = heads.assign(metric="prob", patched=heads["corrupted"] + 0.1 * rng.normal(size=len(heads)) + 0.06)
    both = pd.concat([heads, other], ignore_index=True)
    summary = summarise_effects(both, {pair: pair for pair in PAIRS}, resamples=5000)
    effects = [part.effect for part in families(both)]
    matrix = np.concatenate(effects, axis=1)
    flips = np.array(list(itertools.product([1.0, -1.0], repeat=len(PAIRS))))
    statistic = np.abs(flips @ matrix) / np.sqrt((matrix**2).sum(axis=0))
    observed = statistic[0]
    expected = [(statistic.max(axis=1) >= value * (1 - 1e-9)).mean() for value in observed]
    np.testing.assert_allclose(summary["p_adjusted"], expected, atol=1e-12)
    alone = [(t >= v * (1 - 1e-9)).mean() for t, v in zip(statistic.T, observed, strict=True)]
    np.testing.assert_allclose(summary["p"], alone, atol=1e-12)
    assert (summary["detected"] == (summary["p_adjusted"] <= 0.01)).all()


def test_effects_below_the_noise_floor_are_never_detected(heads: pd.DataFrame) -> None:
    assert not summary_of(heads, floor={"logit_diff": 100.0})["detected"].any()


def test_the_order_of_rows_and_of_other_sweeps_does_not_matter(heads: pd.DataFrame) -> None:
    more = pd.concat([heads.assign(sweep="another"), heads], ignore_index=True)
    both = summary_of(more)
    alone = summary_of(heads).reset_index(drop=True)
    again = both[both["sweep"] == "heads"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, alone)


def test_findings_are_plain_data_and_name_the_confirmed_peak(heads: pd.DataFrame) -> None:
    summary = summary_of(heads)
    labels = {pair: "definitional" if number % 2 else "associative" for number, pair in enumerate(PAIRS)}
    found = findings(heads, summary, {p: p for p in PAIRS}, labels, label="kind", pooled=frozenset(PAIRS),
                     confidence=0.95, resamples=300, seed=0)  # fmt: skip
    json.dumps(found, allow_nan=False)
    (peak,) = found["peaks"]
    assert (peak["cell"]["layer"], peak["cell"]["head"]) == (1, 1)
    assert peak["estimate"] == pytest.approx(0.6, abs=0.1)
    assert peak["n"] == 6
    (count,) = found["detected"]
    assert (count["detected"], count["tested"]) == (1, 4)
    assert found["contrast"]["groups"] == ["associative", "definitional"]
    assert len(found["contrast"]["cells"]) == 4


def test_a_metric_is_looked_up_once_however_many_cells_there_are(
    heads: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking one up takes milliseconds, and a study has thousands of cells."""
    asked: list[str] = []
    monkeypatch.setattr("engramscope.results.findings.is_signed", lambda name: not asked.append(name))
    noised = heads.assign(direction="noise")
    summary = summary_of(pd.concat([heads, noised], ignore_index=True))
    assert len(summary) > 4
    findings(heads, summary, {p: p for p in PAIRS}, {}, label=None, pooled=frozenset(PAIRS),
             confidence=0.95, resamples=300, seed=0)  # fmt: skip
    assert len(asked) == len(set(asked)) > 0


def test_both_directions_are_set_side_by_side(heads: pd.DataFrame) -> None:
    noised = heads.assign(direction="noise", patched=heads["clean"] - (heads["patched"] - heads["corrupted"]))
    summary = summary_of(pd.concat([heads, noised], ignore_index=True))
    found = findings(heads, summary, {p: p for p in PAIRS}, {}, label=None, pooled=frozenset(PAIRS),
                     confidence=0.95, resamples=300, seed=0)  # fmt: skip
    cells = {cell["label"]: cell for cell in found["both_directions"]}
    assert cells["L1H1 z"]["sufficient"]
    assert cells["L1H1 z"]["necessary"]
    assert cells["L1H1 z"]["denoise"] == pytest.approx(1 - cells["L1H1 z"]["noise"], abs=1e-9)
    assert not cells["L0H0 z"]["sufficient"]


def test_families_are_matrices_over_pairs(heads: pd.DataFrame) -> None:
    (family,) = families(heads)
    assert family.patched.shape == (12, 1, 4)
    wide = heads.pivot(index="pair", columns=["layer", "head"], values="effect").loc[list(family.pairs)]
    np.testing.assert_allclose(family.effect, wide.to_numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"layer": 3, "head": 5}, "L3H5 z"),
        ({"layer": 2, "head": None, "site": "mlp_out", "position_role": "subject_last"}, "L2 mlp_out at subject_last"),
        ({"layer": None, "head": None, "site": "lm_head", "position_role": "last"}, "lm_head at last"),
        ({"layer": 4, "head": None, "site": "attn_out", "window": 3}, "L4 attn_out (window 3)"),
        ({"layer": 0, "head": None, "site": "resid_post", "position": 4, "position_role": "further"},
         "L0 resid_post at position 4"),
    ],
)  # fmt: skip
def test_cells_have_short_names(changes: dict[str, Any], label: str) -> None:
    assert cell_label(rows(**changes)) == label


def found_in(effects: pd.DataFrame, labels: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    summary = summary_of(effects)
    settings: dict[str, Any] = {"pooled": frozenset(PAIRS), "confidence": 0.95, "resamples": 300, "seed": 0}
    return findings(effects, summary, {p: p for p in PAIRS}, labels or {}, label=None, **settings | options)


def test_the_pairs_of_the_recovery_are_counted(heads: pd.DataFrame) -> None:
    assert summary_of(heads)["n_pooled"].eq(12).all()
    some = summary_of(heads, pooled=set(PAIRS[:9]))
    assert some["n_pooled"].eq(9).all()
    assert some["n"].eq(12).all()
    (peak,) = found_in(heads, pooled=frozenset(PAIRS[:4]))["peaks"]
    assert peak["n"] == 6
    assert peak["n_pooled"] == peak["n_clusters_pooled"] < 6


def test_a_distance_is_described_and_not_tested(heads: pd.DataFrame) -> None:
    """kl can only rise when noised: noise alone would be "detected" in every cell."""
    rng = np.random.default_rng(1)
    distance = heads.assign(metric="kl", direction="noise", clean=0.0, corrupted=2.0,
                            patched=0.1 + 0.01 * rng.normal(size=len(heads)) ** 2)  # fmt: skip
    both = pd.concat([heads, distance], ignore_index=True)
    summary = summary_of(both)
    kl, other = (summary[summary["metric"] == name].reset_index(drop=True) for name in ("kl", "logit_diff"))
    for column in ("p", "p_adjusted", "q"):
        assert kl[column].isna().all()
    assert not kl["detected"].any()
    assert kl["note"].str.contains("distance from the clean run").all()
    assert (kl["effect_low"] > 0).all()
    # and the cells of other metrics pay nothing for it
    pd.testing.assert_frame_equal(other, summary_of(heads).reset_index(drop=True))
    # the same numbers under a signed metric would have been detected: the test above can fail
    assert summary_of(both.replace({"metric": {"kl": "prob"}})).query("metric == 'prob'")["detected"].all()
    found = found_in(both)
    peaks = {peak["metric"]: peak for peak in found["peaks"]}
    assert peaks["kl"]["p"] is None
    assert "distance" in peaks["kl"]["status"]
    assert peaks["logit_diff"]["p"] is not None
    assert {count["metric"]: count["tested"] for count in found["detected"]} == {"logit_diff": 4, "kl": 0}


def test_cells_that_no_pair_has_are_not_tested(heads: pd.DataFrame) -> None:
    gone = (heads["layer"] == 0) & (heads["head"] == 1)
    heads.loc[gone, ["patched", "effect"]] = None
    heads.loc[gone, "status"] = "skipped: no such position"
    (count,) = found_in(heads)["detected"]
    assert (count["detected"], count["tested"], count["cut"]) == (1, 3, 0)


def test_all_peaks_are_measured_on_the_same_pairs(heads: pd.DataFrame) -> None:
    """The headline is chosen among sweeps: no pair that measures it may have chosen the peak of another."""
    sweeps = [heads.assign(sweep=f"sweep {number}") for number in range(8)]
    peaks = found_in(pd.concat(sweeps, ignore_index=True))["peaks"]
    assert len({(peak["selection_effect"], peak["effect"], peak["estimate"]) for peak in peaks}) == 1
    # nor does a sweep that lacks a pair move the others to another half
    fewer = heads[heads["pair"] != PAIRS[-1]].assign(sweep="fewer")
    whole, lacking = found_in(pd.concat([heads, fewer], ignore_index=True))["peaks"]
    (alone,) = found_in(heads)["peaks"]
    assert whole["selection_effect"] == alone["selection_effect"]
    # the pair that it lacks is in one of the halves, and the other half is the same
    assert (lacking["n"] == 5) != (lacking["selection_effect"] != alone["selection_effect"])


def test_the_centre_of_mass_is_in_layers() -> None:
    """Layers 3 to 7 of which 3 is a cut; one kind of pair has its effect in layer 6, the other in layer 5."""
    items = []
    for number, pair in enumerate(PAIRS):
        for layer in (7, 3, 4, 6, 5):
            value = 1.0 if layer == (6 if number % 2 else 5) else 0.0
            items.append(rows(pair=pair, layer=layer, head=None, site="mlp_out", sweep="mlp", cut=layer == 3,
                              patched=2.0 if layer == 3 else value + 0.001 * number))  # fmt: skip
    labels = {pair: "odd" if number % 2 else "even" for number, pair in enumerate(PAIRS)}
    contrast = found_in(table(items), labels)["contrast"]
    (centre,) = [row for row in contrast["rows"] if row["statistic"].startswith("centre of mass")]
    assert contrast["groups"] == ["even", "odd"]
    assert centre["values"] == pytest.approx([5.0, 6.0], abs=0.01)


def single_layers(sweep: str, layers: list[int], value: float, **changes: Any) -> list[dict[str, Any]]:
    common = {"head": None, "site": "mlp_out", "sweep": sweep, **changes}
    return [rows(pair=pair, layer=layer, patched=value, **common) for pair in PAIRS for layer in layers]


def singles_of(items: list[dict[str, Any]]) -> list[float]:
    summary = summary_of(table(items))
    return list(summary[summary["sweep"] == "wide"].sort_values("layer")["singles_sum"])


def test_single_layers_add_up_only_where_all_of_them_were_patched() -> None:
    wide = single_layers("wide", [0, 1, 2, 3], 1.0, window=3)
    partial = single_layers("another", [1], 0.9)
    own = single_layers("wide (single layers)", [0, 1, 2, 3], 0.2)
    for order in ([partial, wide, own], [own, partial, wide], [wide, own]):
        assert singles_of([row for part in order for row in part]) == pytest.approx([0.2, 0.3, 0.3, 0.2])
    assert np.isnan(singles_of([*partial, *wide])).all()
    # layers 0 to 2 hold the windows around 0 and 1 only
    some = singles_of([*single_layers("another", [0, 1, 2], 0.2), *wide])
    assert some[:2] == pytest.approx([0.2, 0.3])
    assert np.isnan(some[2:]).all()
    # another full sweep of the same cells is used, but not in preference
    full = single_layers("another", [0, 1, 2, 3], 0.9)
    assert singles_of([*full, *wide, *own]) == pytest.approx([0.2, 0.3, 0.3, 0.2])
    assert singles_of([*full, *wide]) == pytest.approx([0.9, 1.35, 1.35, 0.9])


def test_a_single_layer_that_is_a_cut_adds_up_to_nothing() -> None:
    wide = single_layers("wide", [0, 1, 2, 3], 1.0, window=3)
    own = single_layers("wide (single layers)", [0, 1, 2], 0.2)
    cut = single_layers("wide (single layers)", [3], 2.0, cut=True)
    sums = singles_of([*wide, *own, *cut])
    assert sums[:2] == pytest.approx([0.2, 0.3])
    assert np.isnan(sums[2:]).all()


def test_the_mean_over_the_positions_of_a_role_is_named() -> None:
    """Two prompts of other lengths; in some, one of two or three inner positions is a cut."""
    items = []
    for number, pair in enumerate(PAIRS):
        roles = ["further"] * (2 + number % 2) + ["last"]
        for position, role in enumerate(roles):
            cut = position == 1 and number < 4
            items.append(rows(pair=pair, head=None, site="embed", position=position, position_role=role, cut=cut,
                              patched=9.0 if cut else 1.0))  # fmt: skip
    summary = summary_of(table(items)).set_index("position_role")
    assert summary.loc["further", "n"] == 12
    assert summary.loc["further", "effect"] == pytest.approx(1.0)
    note = summary.loc["further", "note"]
    assert "mean over up to 3 positions of the role, patched one at a time" in note
    assert "a cut at 4 positions in 4 pairs, which are left out" in note
    assert "mean over" not in summary.loc["last", "note"]
    (peak,) = found_in(table(items))["peaks"]
    assert peak["note"] == summary.loc[peak["cell"]["position_role"], "note"] == note
