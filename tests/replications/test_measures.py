"""Measures on made-up tables whose values are known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from engramscope.errors import StudyError, UnknownNameError
from engramscope.replications._effects import NotMeasuredError, detection, scaled, sums_of_singles
from engramscope.replications._measures import MEASURES, parse_measure
from engramscope.replications._record import judge_value
from engramscope.replications._results import ArmResult, Results, ViewResult
from engramscope.replications._verdict import DIFFERS, NOT_MEASURED, REPRODUCED, UNPUBLISHED
from tests.replications.made_up import CLEAN, CORRUPTED, heads, profile, results, rows


def measured(name: str, found: Results, **options: Any) -> Any:
    return parse_measure(name, options).measure(found)


def many_heads(**over: float) -> dict[str, float]:
    """144 heads of mean 0 and SD near 0.01, and a few others."""
    rng = np.random.default_rng(3)
    noise = np.clip(rng.normal(size=144), -1.2, 1.2) * 0.01
    values = {f"{at // 12}.{at % 12}": float(value) for at, value in enumerate(noise)}
    return values | {name.removeprefix("h").replace("_", "."): value for name, value in over.items()}


def test_detection_is_the_two_sd_rule_with_its_sign() -> None:
    found = results(a=heads(many_heads(h9_9=0.5, h10_7=-0.4)))
    said = measured("detected", found, arm="a", metric="logit_diff", published={"positive": ["9.9"]})
    assert said.value == {"positive": ["9.9"], "negative": ["10.7"]}
    values = np.array(list(many_heads(h9_9=0.5, h10_7=-0.4).values()))
    assert said.detail["z"]["9.9"] == pytest.approx((0.5 - values.mean()) / values.std(ddof=1), abs=2e-3)


def test_a_metric_for_which_lower_is_better_is_turned() -> None:
    found = results(a=heads(many_heads(h9_9=-0.5), metric="kl", clean=0.0, corrupted=2.0))
    assert measured("detected", found, arm="a", metric="kl").value["positive"] == ["9.9"]


def test_the_rule_is_drawn_over_all_positions_and_read_at_one() -> None:
    cells: dict[tuple[Any, ...], float] = {}
    for position, role in enumerate(("c_def", "further", "last")):
        for name, value in many_heads().items():
            layer, head = map(int, name.split("."))
            cells[layer, head, position, role] = value
    cells[3, 0, 2, "last"], cells[0, 5, 0, "c_def"] = 1.0, -1.0
    found = results(a=rows("heads", cells))
    last = measured("detected", found, arm="a", metric="logit_diff", role="last")
    assert last.value == {"positive": ["3.0"], "negative": []}
    assert measured("detected", found, arm="a", metric="logit_diff", role="c_def").value["negative"] == ["0.5"]
    with pytest.raises(NotMeasuredError, match="yy"):
        measured("detected", found, arm="a", metric="logit_diff", role="yy")


def test_class_counts_and_how_far_heads_near_the_line_could_move_them() -> None:
    classes = {"NM": ["9.9", "9.6"], "SI": ["8.6"]}
    values = many_heads(h9_9=0.5)
    sd, mean = np.std(list(values.values()), ddof=1), np.mean(list(values.values()))
    values["8.6"] = float(mean + 2.05 * sd)
    found = results(a=heads(values))
    options = {"arm": "a", "metric": "logit_diff", "classes": classes, "published": {"NM": 1, "SI": 0}}
    said = measured("class_counts", found, **options)
    assert said.value == {"NM": 1, "SI": 1}
    assert said.detail["least"] == {"NM": 1, "SI": 0}
    _, verdict = judge_value(parse_measure("class_counts", options), found)
    assert (verdict.outcome, verdict.exact) == (REPRODUCED, False)
    with pytest.raises(NotMeasuredError, match="heads of gpt2"):
        measured("class_counts", results(published=False, a=heads(values)), **options)


def test_effect_recovery_and_baselines() -> None:
    found = results(a=heads(many_heads(h9_9=0.5), seeds=(0, 1)))
    cell = {"arm": "a", "metric": "logit_diff", "layer": 9, "head": 9}
    assert measured("effect", found, **cell).value == pytest.approx(0.5)
    assert measured("effect", found, **cell, scale="recovery").value == pytest.approx(0.5 / (CLEAN - CORRUPTED))
    assert measured("recovery", found, **cell).value == pytest.approx(0.5 / (CLEAN - CORRUPTED))
    assert measured("baseline", found, arm="a", metric="logit_diff", run="clean").value == CLEAN
    assert measured("baseline", found, arm="a", metric="logit_diff", run="corrupted").value == CORRUPTED
    assert measured("total_effect", found, arm="a", metric="logit_diff").value == CLEAN - CORRUPTED
    with pytest.raises(NotMeasuredError, match=r"no head 20\.3"):
        measured("effect", found, **cell | {"layer": 20, "head": 3})
    with pytest.raises(NotMeasuredError, match="no effects on 'prob'"):
        measured("effect", found, **cell | {"metric": "prob"})


def test_an_interval_holds_the_value_and_needs_two_clusters() -> None:
    found = results(a=heads(many_heads(h9_9=0.5), pairs=[f"p{at}" for at in range(20)]))
    said = measured("effect", found, arm="a", metric="logit_diff", layer=9, head=9)
    assert said.detail["low"] < 0.5 < said.detail["high"]
    assert "[" in said.text
    alone = results(a=heads(many_heads(h9_9=0.5), pairs=["p"]))
    assert measured("effect", alone, arm="a", metric="logit_diff", layer=9, head=9).text == "0.5"


SINGLE = {layer: 0.01 * layer for layer in range(12)}  # rises to the end
WINDOW = {layer: 0.2 - 0.02 * abs(layer - 5) for layer in range(12)}  # peaks at 5


def windows(published: bool = True, layers: int = 12) -> Results:
    table = pd.concat([profile("w3", WINDOW, window=3), profile("w3 (single layers)", SINGLE)])
    return results(a=table, b=profile("w3", {k: v / 4 for k, v in WINDOW.items()}, window=3),
                   published=published, layers=layers)  # fmt: skip


PEAK = {"arm": "a", "sweep": "w3", "metric": "logit_diff"}


def test_peaks_of_windows_and_of_the_sums_of_their_layers() -> None:
    found = windows()
    assert measured("peak_height", found, **PEAK).value == pytest.approx(0.2)
    assert measured("peak_layer", found, **PEAK).value == 5
    assert measured("peak_height", found, **PEAK, scale="recovery").value == pytest.approx(0.2 / 4)
    # layers 9 to 11 around 10: 0.09 + 0.10 + 0.11; at 11 the window is cut
    assert measured("peak_height", found, **PEAK, of="sum").value == pytest.approx(0.30)
    ratio = measured("peak_ratio", found, **PEAK)
    assert ratio.value == pytest.approx(0.2 / 0.30)
    assert ratio.detail["sum_layer"] == 10


def test_the_middle_leaves_out_the_ends() -> None:
    found = windows()
    middle = PEAK | {"layers": [3, 7]}
    assert measured("peak_height", found, **middle, of="sum").value == pytest.approx(0.06 + 0.07 + 0.08)
    assert measured("peak_layer", found, **PEAK | {"layers": [8, 11]}).value == 8
    assert measured("band", found, **middle).value == pytest.approx(np.mean([WINDOW[k] for k in range(3, 8)]))


def test_ranges_of_layers_are_scaled_to_a_model_of_another_depth() -> None:
    assert scaled((10, 30), 48, 48) == (10, 30)
    assert scaled((10, 30), 48, 6) == (1, 3)
    assert scaled((0, 2), 48, 6) == (0, 0)
    assert scaled((43, 47), 48, 6) == (5, 5)
    assert scaled((43, 47), 48, 96) == (86, 95)
    assert scaled(None, 48, 6) is None
    assert measured("peak_layer", windows(layers=6), **PEAK | {"layers": [8, 11]}).value == 5


def test_sums_of_singles_are_cut_at_the_ends() -> None:
    assert sums_of_singles({0: 1.0, 1: 2.0, 2: 4.0}, 3) == {0: 3.0, 1: 7.0, 2: 6.0}
    assert sums_of_singles({0: 1.0, 1: 2.0, 2: 4.0}, 2) == {0: 1.0, 1: 3.0, 2: 6.0}


def test_singles_of_the_same_site_will_do() -> None:
    table = pd.concat([profile("single", SINGLE), profile("w3", WINDOW, window=3)])
    assert measured("peak_ratio", results(a=table), **PEAK).value == pytest.approx(0.2 / 0.30)
    with pytest.raises(NotMeasuredError, match="single layers"):
        measured("peak_ratio", results(a=profile("w3", WINDOW, window=3)), **PEAK)


def test_height_ratio_and_order_of_two_arms() -> None:
    found = windows()
    assert measured("height_ratio", found, **PEAK, over="b").value == pytest.approx(4.0)
    larger, smaller = {"measure": "peak_height", **PEAK}, {"measure": "peak_height", **PEAK | {"arm": "b"}}
    assert _outcome("order", found, larger=larger, smaller=smaller) == REPRODUCED
    assert _outcome("order", found, larger=smaller, smaller=larger) == DIFFERS
    assert _outcome("order", found, larger=larger, smaller=smaller, factor=3.9) == REPRODUCED
    assert _outcome("order", found, larger=larger, smaller=smaller, factor=4.1) == DIFFERS


def test_a_missing_arm_is_not_measured_and_says_why() -> None:
    found = windows()
    said, verdict = judge_value(
        parse_measure("peak_height", {**PEAK, "arm": "c", "published": 1.0, "within": 1.0}), found
    )
    assert said is None
    assert verdict.outcome == NOT_MEASURED
    assert "'c'" in verdict.why
    known = Results({}, {}, 12, 12, False, "gpt2", {"a": "this tokenizer splits years"})
    assert judge_value(parse_measure("peak_height", PEAK), known)[1].why == "this tokenizer splits years"
    assert judge_value(parse_measure("attention", {"view": "v", "run": "clean", "target": "io"}), known)[1].outcome == (
        NOT_MEASURED
    )


def test_nothing_is_compared_on_another_model_or_without_a_published_number() -> None:
    claim = {**PEAK, "published": 0.2, "within": 0.01}
    assert _outcome("peak_height", windows(), **claim) == REPRODUCED
    assert _outcome("peak_height", windows(published=False), **claim) == UNPUBLISHED
    assert _outcome("peak_height", windows(), **PEAK) == UNPUBLISHED
    printed = {"clean": 0.76, "corrupted": -0.34, "patched": 0.43, "published": 0.56, "within": 0.005}
    # arithmetic on printed numbers needs no model
    assert _outcome("printed_recovery", windows(published=False), **printed) == DIFFERS


def _outcome(name: str, found: Results, **options: Any) -> str:
    return judge_value(parse_measure(name, options), found)[1].outcome


@pytest.mark.parametrize(
    ("numbers", "recovery"),
    [((0.76, -0.34, 0.43), 0.70), ((2.1928, 0.9691, 2.1928), 1.0), ((0.1261, -1.4626, -0.0899), 0.864)],
)
def test_the_printed_numbers_of_clap_by_their_own_definition(numbers: tuple[float, ...], recovery: float) -> None:
    clean, corrupted, patched = numbers
    said = measured("printed_recovery", results(), clean=clean, corrupted=corrupted, patched=patched)
    assert said.value == pytest.approx(recovery, abs=5e-4)


def test_position_ratio_averages_a_class_within_a_prompt_and_says_the_sum_too() -> None:
    roles = ("subject_first", "subject_middle", "subject_middle", "subject_last", "last")
    effect = {"subject_first": 0.0, "subject_middle": 0.1, "subject_last": 0.4, "last": 1.0}
    cells = {(layer, None, at, role): effect[role] * (layer + 1) for layer in range(3) for at, role in enumerate(roles)}
    found = results(a=rows("w5", cells, site="mlp_out"))
    said = measured("position_ratio", found, arm="a", metric="logit_diff")
    assert said.value == pytest.approx(4.0)
    assert said.detail["with_sums"] == pytest.approx(2.0)
    # a prompt of another length: the class has one token there, and counts as much as where it has two
    short = {(layer, None, at, role): effect[role] * (layer + 1) for layer in range(3)
             for at, role in enumerate(("subject_first", "subject_middle", "subject_last", "last"))}  # fmt: skip
    both = pd.concat(
        [rows("w5", cells, pairs=["long"], site="mlp_out"), rows("w5", short, pairs=["short"], site="mlp_out")]
    )
    uneven = measured("position_ratio", results(a=both), arm="a", metric="logit_diff")
    assert uneven.value == pytest.approx(4.0)
    assert uneven.detail["with_sums"] == pytest.approx(0.4 / (0.1 * 1.5))


def test_participation_ratio_counts_the_cells_that_share_an_effect() -> None:
    alike = results(a=heads(dict.fromkeys(many_heads(), 0.3)), b=heads(dict.fromkeys(many_heads(), 0.0) | {"3.3": 1.0}))
    assert measured("participation_ratio", alike, arm="a", metric="logit_diff").value == pytest.approx(144)
    assert measured("participation_ratio", alike, arm="b", metric="logit_diff").value == pytest.approx(1)


def test_spread_is_mean_and_sd_over_cells() -> None:
    values = many_heads(h9_9=0.5)
    found = results(a=heads(values))
    for statistic, wanted in (("mean", np.mean(list(values.values()))), ("sd", np.std(list(values.values()), ddof=1))):
        said = measured("spread", found, arm="a", metric="logit_diff", statistic=statistic)
        assert said.value == pytest.approx(float(wanted))


def test_largest_head() -> None:
    found = results(a=heads(many_heads(h9_1=0.5, h10_7=-0.9, h7_10=0.4)))
    assert measured("largest_head", found, arm="a", metric="logit_diff").value == "9.1"
    assert _outcome("largest_head", found, arm="a", metric="logit_diff", published="9.1") == REPRODUCED
    assert _outcome("largest_head", found, arm="a", metric="logit_diff", published="7.10") == DIFFERS


def test_jaccard_against_sets_of_chance_with_signs() -> None:
    found = results(a=heads(many_heads(h9_1=0.5, h7_10=0.4, h6_1=-0.4)))
    wanted = {"positive": ["9.1", "7.10", "0.9"], "negative": ["8.6"]}
    said = measured("jaccard", found, arm="a", metric="logit_diff", published=wanted)
    assert said.value == pytest.approx(2 / 5)
    assert said.detail["p"] == pytest.approx(float(stats.hypergeom.sf(1, 288, 4, 3)))
    assert _outcome("jaccard", found, arm="a", metric="logit_diff", published=wanted) == REPRODUCED
    # the same heads with the other sign are no overlap
    turned = {"positive": ["8.6"], "negative": ["9.1", "7.10", "0.9"]}
    assert _outcome("jaccard", found, arm="a", metric="logit_diff", published=turned) == DIFFERS


def test_average_indirect_effect_at_its_peak_and_at_a_layer() -> None:
    roles = ("subject_first", "subject_last", "last")
    cells = {
        (layer, None, at, role): 0.1 * (at + 1) - 0.01 * abs(layer - 2)
        for layer in range(5) for at, role in enumerate(roles)
    }  # fmt: skip
    table = rows("states", cells, site="resid_post", metric="prob", clean=0.9, corrupted=0.1)
    found = results(a=table)
    said = measured("aie", found, arm="a", sweep="states", role="subject_last")
    assert said.value == pytest.approx(0.2)
    assert said.detail["layer"] == 2
    assert measured("aie", found, arm="a", sweep="states", role="last", layer=0).value == pytest.approx(0.28)
    with pytest.raises(NotMeasuredError):
        measured("aie", found, arm="a", sweep="states", role="subject_middle")


def test_stolfo_ratio_is_the_published_formula_pair_by_pair() -> None:
    cells = {(layer, None, None, "last"): 0.01 * (layer + 1) for layer in range(3)}
    options = {"site": "mlp_out", "seeds": (0, 1), "clean": 0.6}
    right = rows("mlp", cells, metric="prob", corrupted=0.02, **options)
    wrong = rows("mlp", {k: -v for k, v in cells.items()}, metric="prob_incorrect", corrupted=0.5, **options)
    said = measured("stolfo_ratio", results(a=pd.concat([right, wrong])), arm="a")
    values = []
    for pair in ("p0", "p1", "p2"):
        drawn = []
        for seed in (0, 1):
            one, other = (
                float(t[(t.pair == pair) & (t.seed == seed) & (t.layer == 2)]["patched"].iloc[0])
                for t in (right, wrong)
            )
            drawn.append(0.5 * ((one - 0.02) / 0.02 + (0.5 - other) / other))
        values.append(np.mean(drawn))
    assert said.value == pytest.approx(float(np.mean(values)))
    assert said.detail["layer"] == 2
    assert said.detail["median"] == pytest.approx(float(np.median(values)))


def test_attention_and_joint_restoring_are_read_from_views() -> None:
    restored = rows("restored", {(None, None, None, "all"): 4.0}, site="")
    views = {
        "look": ViewResult(attention={("clean", "io"): (0.58, 0.2)}), "joint": ViewResult(restored=restored),
        "other": ViewResult(why_not="there is no head 9.9"),
    }  # fmt: skip
    found = Results({}, views, 12, 12, True)
    assert measured("attention", found, view="look", run="clean", target="io").value == 0.58
    assert measured("restored", found, view="joint").value == pytest.approx(1.0)
    with pytest.raises(NotMeasuredError, match="position 's1'"):
        measured("attention", found, view="look", run="clean", target="s1")
    with pytest.raises(NotMeasuredError, match=r"no head 9\.9"):
        measured("attention", found, view="other", run="clean", target="io")


def test_equal_effects_detect_nothing() -> None:
    found = ArmResult(lambda: heads(dict.fromkeys(many_heads(), 0.0)))
    with pytest.raises(NotMeasuredError, match="none can stand out"):
        detection(found.table(None, "logit_diff"))


def test_faults_of_a_measure_are_sentences() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'peak_height'"):
        parse_measure("peak_heigth", {})
    with pytest.raises(StudyError, match="did you mean 'within'"):
        parse_measure("baseline", {"arm": "a", "metric": "prob", "run": "clean", "whithin": 1})
    with pytest.raises(StudyError, match="go together"):
        parse_measure("baseline", {"arm": "a", "metric": "prob", "run": "clean", "published": 1})
    with pytest.raises(StudyError, match="gives no number"):
        parse_measure(
            "order", {"larger": {"measure": "peak_layer", **PEAK}, "smaller": {"measure": "peak_layer", **PEAK}}
        )


@pytest.mark.parametrize("name", MEASURES.names())
def test_every_measure_says_what_it_is(name: str) -> None:
    assert MEASURES.describe(name).endswith(".")
    assert MEASURES.get(name).Options.model_fields
