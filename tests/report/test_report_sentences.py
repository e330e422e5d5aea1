from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from engramscope.report.load import load
from engramscope.report.sentences import answer, question

SPACE = "\u202f"


def _answer(path: Path, **changes: Any) -> Any:
    return answer(load(synthetic.build(path / "out", **changes)))


def _plain(sentences: tuple[str, ...]) -> str:
    return " ".join(sentences).replace(SPACE, " ").replace("−", "-")


def test_the_answer_in_numbers(tmp_path: Path) -> None:
    study = load(synthetic.build(tmp_path / "out", audit=[]))
    found = answer(study)
    text = _plain(found.lead)
    assert text.startswith(
        "Patching head 5 of layer 3 recovers 62 % of the clean–corrupted gap in logit difference on pairs that were "
        "not used to choose it (95 % interval 53 to 71 %, p = 0.0004; 12 pairs in 6 groups)."
    )
    tested = study.summary[(study.summary["metric"] == "logit_diff") & ~study.summary["cut"]]
    heads = tested[(tested["sweep"] == "heads") & (tested["direction"] == "denoise")]
    assert f"In this sweep {heads['detected'].sum()} of 48 cells" in text
    assert f"over all sweeps {tested['detected'].sum()} of {len(tested)} cells are detected" in text
    assert (
        "the effective number of layers is 2.10 for definitional pairs and 4.40 for associative pairs (sweep mlp; "
        "difference -2.30, 95 % interval -3.40 to -1.10, p = 0.003)" in text
    )
    assert found.warning == ""
    assert "2 cells" in found.aside.replace(SPACE, " ")
    assert "by construction" in found.aside
    assert len(found.lead) == 3


def test_nothing_is_claimed_to_be_stored(tmp_path: Path) -> None:
    found = _answer(tmp_path)
    for word in ("stores", "stored", "knows", "located", "proves"):
        assert word not in _plain(found.lead) + found.aside


@pytest.mark.parametrize(
    "peak",
    [
        {"low": -0.02, "high": 0.4, "estimate": 0.19, "p": 0.001},
        {"low": 0.01, "high": 0.4, "estimate": 0.19, "p": 0.2},
        {"low": None, "high": None, "estimate": 0.19, "p": 0.001},
        {"low": 0.01, "high": 0.4, "estimate": 0.19, "p": 0.001, "p_adjusted": 0.3},
    ],
)
def test_a_peak_that_is_not_confirmed_is_no_peak(tmp_path: Path, peak: dict[str, Any]) -> None:
    findings = synthetic.findings() | {"peaks": [synthetic.peak("heads", **peak)]}
    text = _plain(_answer(tmp_path, findings=findings).lead)
    assert text.startswith("No peak is confirmed: the peak of the sweep heads, head 5 of layer 3, recovers 19 %")
    assert "not distinguishable from no effect" in text


def test_nothing_detected_is_said_plainly(tmp_path: Path) -> None:
    rows = [synthetic.summary_row(sweep="heads", site="z", layer=layer, head=0, estimate=0.0,
                                  p_adjusted=0.21 + layer / 10)
            for layer in range(4)]  # fmt: skip
    text = _plain(_answer(tmp_path, rows=rows, findings={}).lead)
    assert text.startswith("Nothing is detected: of 4 cells none")
    assert "smallest adjusted p = 0.21" in text


def test_what_undermines_the_claim_comes_first(tmp_path: Path) -> None:
    audit = [
        {"check": "a", "title": "Bad σ", "severity": "error", "message": "", "items": []},
        {"check": "b", "title": "Few pairs", "severity": "warning", "message": "", "items": []},
        {"check": "c", "title": "Fine", "severity": "ok", "message": "", "items": []},
    ]
    warning = _answer(
        tmp_path, audit=audit, status="interrupted", parity={"checked": 4, "max_abs_diff": 0.1, "tolerance": 1e-4},
        self_checks=[{"name": "additivity", "value": 1.0, "tolerance": 0.1, "passed": False}],
    ).warning  # fmt: skip
    for part in ("interrupted, not complete", "self-check additivity failed", "differ from the stored ones",
                 "1 error (Bad σ)", "not supported", "1 warning (Few pairs)"):  # fmt: skip
        assert part in warning, part
    assert "Fine" not in warning


def test_noising_speaks_of_loss_and_ablations_of_effects(tmp_path: Path) -> None:
    noise = synthetic.peak("heads", "noise", estimate=0.63, low=0.55, high=0.7, selection_estimate=0.6)
    text = _plain(_answer(tmp_path / "a", findings={"peaks": [noise]}).lead)
    assert "destroys 37 % of the clean–corrupted gap" in text
    assert "interval 30 to 45 %" in text
    harmless = noise | {"estimate": 0.99, "low": 0.97, "high": 1.01}
    assert _plain(_answer(tmp_path / "b", findings={"peaks": [harmless]}).lead).startswith("No peak is confirmed")
    effect = synthetic.peak("heads", "noise", estimate=-1.25, low=-1.5, high=-1.0, estimate_kind="effect")
    text = _plain(_answer(tmp_path / "c", findings={"peaks": [effect]}).lead)
    assert "changes the logit difference by -1.25 logits" in text


def test_the_headline_is_chosen_by_the_selection_half_and_is_never_a_cut(tmp_path: Path) -> None:
    first = synthetic.peak("heads", selection_estimate=0.3, estimate=0.9, low=0.8, high=1.0)
    second = synthetic.peak("mlp", selection_estimate=0.5, estimate=0.1, low=0.05, high=0.2,
                            cell={"site": "mlp_out", "layer": 2, "head": None, "sweep": "mlp"})  # fmt: skip
    stream = synthetic.peak(
        "residual", selection_estimate=0.99, estimate=0.99, cell={"site": "resid_post", "head": None}
    )
    text = _plain(_answer(tmp_path / "a", findings={"peaks": [first, second, stream]}).lead)
    assert text.startswith("Patching the MLP output of layer 2 recovers 10 %")
    cut = synthetic.peak("final layer", estimate=1.0, selection_estimate=1.0, low=1.0, high=1.0,
                         cell={"sweep": "final layer", "site": "logits", "layer": None, "head": None})  # fmt: skip
    assert "logits recovers" not in _plain(_answer(tmp_path / "b", findings={"peaks": [cut]}).lead)


def test_a_contrast_whose_interval_holds_zero_is_no_difference(tmp_path: Path) -> None:
    row = {"sweep": "mlp", "metric": "logit_diff", "statistic": "centre of mass", "values": [3.2, 2.9],
           "difference": 0.3, "low": -0.4, "high": 0.9, "p": 0.4}  # fmt: skip
    contrast = {"label": "kind", "groups": ["a", "b"], "rows": [row]}
    assert "do not differ clearly" in _plain(_answer(tmp_path, findings={"contrast": contrast}).lead)


def test_the_question(tmp_path: Path) -> None:
    text = question(load(synthetic.build(tmp_path / "out")))
    for part in (
        "mini",
        "24 pairs of clap_epilepsy, 22 of them in the recovery",
        "other tokens",
        "z by layer × head",
        "resid_post by layer × position",
    ):
        assert part in text.replace(SPACE, " "), part


def test_too_few_groups_are_named_as_the_reason(tmp_path: Path) -> None:
    few = synthetic.peak("heads", p=0.25, n_clusters=3)
    text = _plain(_answer(tmp_path, findings={"peaks": [few]}).lead)
    assert "with 3 groups in the confirmation half no p can be below 0.25, so nothing can be confirmed" in text
    assert "not distinguishable" not in text


def test_the_recovery_names_the_pairs_that_it_was_computed_from(tmp_path: Path) -> None:
    some = synthetic.peak("heads", n_pooled=5, n_clusters_pooled=4)
    text = _plain(_answer(tmp_path / "a", findings={"peaks": [some]}).lead)
    assert "p = 0.0004; recovery of 5 pairs in 4 groups, p of 12 pairs in 6 groups)" in text
    everyone = synthetic.peak("heads", n_pooled=12, n_clusters_pooled=6)
    assert "p = 0.0004; 12 pairs in 6 groups)" in _plain(_answer(tmp_path / "b", findings={"peaks": [everyone]}).lead)
    one = synthetic.peak("heads", n_pooled=2, n_clusters_pooled=1)
    text = _plain(_answer(tmp_path / "c", findings={"peaks": [one]}).lead)
    assert text.startswith("No peak is confirmed")
    assert "only 1 group of the confirmation half has a gap" in text


def test_a_peak_that_was_not_tested_says_why(tmp_path: Path) -> None:
    distance = synthetic.peak("heads", p=None, status="the metric is a distance from the clean run")
    text = _plain(_answer(tmp_path, findings={"peaks": [distance]}).lead)
    assert text.startswith("No peak is confirmed")
    assert "no p; 12 pairs in 6 groups); the metric is a distance from the clean run." in text


def test_a_mean_over_positions_is_no_joint_patch(tmp_path: Path) -> None:
    cell = {"site": "mlp_out", "layer": 2, "head": None, "position_role": "further"}
    note = "mean over up to 3 positions of the role, patched one at a time"
    text = _plain(_answer(tmp_path, findings={"peaks": [synthetic.peak("mlp", cell=cell, note=note)]}).lead)
    assert f"at further tokens ({note}) recovers 62 %" in text


def test_cells_that_were_not_tested_are_not_counted(tmp_path: Path) -> None:
    rows = [synthetic.summary_row(sweep="heads", site="z", layer=layer, head=0, estimate=0.0, p_adjusted=0.21)
            for layer in range(4)]  # fmt: skip
    rows[2] |= {"n": 0, "p": None, "p_adjusted": None, "note": "no pair has this cell"}
    text = _plain(_answer(tmp_path, rows=rows, findings={}).lead)
    assert text.startswith("Nothing is detected: of 3 cells none")


def test_the_selection_effect_of_the_study_runner_ranks_too(tmp_path: Path) -> None:
    small = synthetic.peak("heads", selection_estimate=None, selection_effect=1.0, estimate=0.9, low=0.8, high=1.0)
    large = synthetic.peak("mlp", selection_estimate=None, selection_effect=-2.0, estimate=0.2, low=0.1, high=0.3,
                           cell={"site": "mlp_out", "layer": 2, "head": None, "sweep": "mlp"})  # fmt: skip
    text = _plain(_answer(tmp_path, findings={"peaks": [small, large]}).lead)
    assert text.startswith("Patching the MLP output of layer 2 recovers 20 %")
    assert "not used to choose it" in text


def test_a_difference_needs_its_interval_and_its_p(tmp_path: Path) -> None:
    row = {"sweep": "mlp", "metric": "logit_diff", "statistic": "centre of mass", "values": [3.2, 2.9],
           "difference": 0.3, "low": 0.1, "high": 0.9, "p": 0.2}  # fmt: skip
    contrast = {"label": "kind", "groups": ["a", "b"], "rows": [row]}
    assert "do not differ clearly" in _plain(_answer(tmp_path / "a", findings={"contrast": contrast}).lead)
    contrast["rows"] = [row | {"p": 0.01}]
    assert "the two kinds differ" in _plain(_answer(tmp_path / "b", findings={"contrast": contrast}).lead)


@pytest.mark.parametrize(
    ("metric", "gap", "said", "speaks"),
    [
        # a metric that only its maker knows: what the folder says counts
        ("surprise", -1.0, {"higher_is_better": False}, False),
        ("surprise", 1.0, {"higher_is_better": False}, True),
        ("surprise", -1.0, {"higher_is_better": True}, True),
        ("logit_diff", 1.0, {"higher_is_better": False}, True),
        # folders made before it was said
        ("kl", -1.0, {}, False),
        ("kl", 1.0, {}, True),
        ("logit_diff", -1.0, {}, True),
        ("logit_diff", 1.0, {}, False),
        ("surprise", 1.0, {}, False),
        ("logit_diff", 0.0, {}, True),
        ("logit_diff", None, {}, False),
    ],
)
def test_no_gap_to_recover_is_said_by_the_direction_of_the_metric(
    tmp_path: Path, metric: str, gap: float | None, said: dict[str, bool], speaks: bool
) -> None:
    rows = [{**row, "metric": metric} for row in synthetic.head_rows(np.random.default_rng(0))]
    gaps = [{"metric": "other", "gap": -1.0}, {"metric": metric, "gap": gap, **said}]
    text = _plain(_answer(tmp_path, rows=rows, findings={"gaps": gaps}).lead)
    assert ("the clean run is no better than the corrupted one" in text) is speaks


def test_without_any_gap_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert "no better" not in _plain(_answer(tmp_path, findings={"gaps": []}).lead)
