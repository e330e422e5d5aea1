"""Acceptance checks W: what it means to patch several layers jointly, with both executors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engramscope import patch
from engramscope.engine.executor import Kind
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.locate.cells import window_layers
from engramscope.locate.experiment import Experiment
from engramscope.locate.prepare import Prepared
from tests.acceptance.linear_model import LAYERS, last_token_pairs, linear_model
from tests.acceptance.setting import (
    TOLERANCE,
    each_executor,
    each_family_and_executor,
    experiment_of,
    identical,
    logits_of,
    numbers,
    sweep,
    text_model,
    text_pairs,
)


def by_layer(experiment: Experiment, site: str, window: int, column: str = "effect") -> Tensor:
    """A column of a sweep over all layers at the last position: [pairs, layers]."""
    table = sweep(experiment, site, window=window, positions="last")
    assert table["window"].eq(window).all()
    return numbers(table, column).reshape(-1, experiment.model.anatomy.n_layers)


def joint(experiment: Experiment, site: str, windows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
    """Logit differences of the runs in which these layers are patched jointly, by a plan written out here: [pairs]."""
    bases: list[BaseRun] = []
    derived: list[DerivedRun] = []
    for pair in experiment.prepared:
        for name, prompt in (("clean", pair.tokens.clean), ("corrupted", pair.tokens.corrupted)):
            bases.append(BaseRun(f"{name} {pair.id}", prompt.ids))
        at = (len(pair.tokens.clean) - 1,)
        for layers in windows:
            patches = tuple(Patch(site, layer, at, FromRun(f"clean {pair.id}", at)) for layer in layers)
            derived.append(DerivedRun(f"{layers} {pair.id}", f"corrupted {pair.id}", patches))
    lengths = {base.id: len(base.tokens) for base in bases}
    readouts = tuple(Readout(run.id, (lengths[run.base] - 1,)) for run in derived)
    found = logits_of(experiment.executor, Plan(tuple(bases), tuple(derived), readouts))
    return {
        layers: torch.stack([_logit_diff(found[f"{layers} {pair.id}"][0], pair) for pair in experiment.prepared])
        for layers in windows
    }


def _logit_diff(logits: Tensor, pair: Prepared) -> Tensor:
    ((correct,),), ((incorrect,),) = pair.tokens.correct, pair.tokens.incorrect
    return (logits[correct] - logits[incorrect]).double()


def test_w1_windows_are_centred_and_cut_at_the_ends() -> None:
    """W1: w = 1 window == single layer; w >= 2L == all layers; even windows reach one layer further down."""
    for n_layers in (1, 3, 12):
        for layer in range(n_layers):
            assert window_layers(layer, 1, n_layers) == (layer,)
            for width in range(2 * n_layers, 2 * n_layers + 4):
                assert window_layers(layer, width, n_layers) == tuple(range(n_layers))
    assert window_layers(6, 3, 12) == (5, 6, 7)
    assert window_layers(6, 5, 12) == (4, 5, 6, 7, 8)
    assert window_layers(6, 10, 12) == tuple(range(1, 11))
    assert (window_layers(0, 5, 12), window_layers(11, 5, 12)) == ((0, 1, 2), (9, 10, 11))


@each_family_and_executor
def test_w1_a_window_of_1_is_a_layer_and_one_of_twice_the_depth_is_all_of_them(family: str, kind: Kind) -> None:
    """W1: w = 1 window == single layer; w >= 2L == all layers; in between it is the layers around the centre."""
    experiment = experiment_of(text_model(family), text_pairs(3), kind)
    n_layers, tolerance = experiment.model.anatomy.n_layers, TOLERANCE.get(family, 1e-9)
    assert n_layers == 3
    expected = {1: [(0,), (1,), (2,)], 2: [(0,), (0, 1), (1, 2)], 3: [(0, 1), (0, 1, 2), (1, 2)], 6: [(0, 1, 2)] * 3}
    for site in ("mlp_out", "z"):
        found = {window: by_layer(experiment, site, window, "patched") for window in expected}
        wanted = joint(experiment, site, sorted({some for layers in expected.values() for some in layers}))
        for window, layers in expected.items():
            identical(found[window], torch.stack([wanted[some] for some in layers], dim=1), tolerance)
        assert (found[6] - found[1]).abs().max() > 1e-3


@each_executor
def test_w2_a_window_is_the_sum_of_its_layers_where_nothing_interacts(kind: Kind) -> None:
    """W2: non-interacting linear model: window == sum."""
    experiment = experiment_of(linear_model(), last_token_pairs(8), kind)
    single = by_layer(experiment, "mlp_out", 1)
    assert (single.abs() > 1e-3).double().mean() > 0.9, "every layer has an effect of its own"
    for window in (2, 3, 5, 2 * LAYERS):
        layers = [list(window_layers(layer, window, LAYERS)) for layer in range(LAYERS)]
        wanted = torch.stack([single[:, some].sum(1) for some in layers], dim=1)
        identical(by_layer(experiment, "mlp_out", window), wanted, 1e-10)
    # nothing but the MLPs carries the answer, so that all of them together carry all of it
    whole = sweep(experiment, "mlp_out", window=2 * LAYERS, positions="last")
    identical(numbers(whole, "recovery"), 1.0, 1e-10)


def test_w2_a_summary_shows_both_and_they_are_equal() -> None:
    """W2, in what a user is shown: recovery of a window beside the sum over its single layers."""
    options = {"window": 3, "positions": "last", "resamples": 100, "corruption": "str"}
    summary = patch(linear_model(), last_token_pairs(8), "mlp_out", **options).summary
    windows = summary[summary["window"] == 3]
    assert len(windows) == LAYERS
    identical(numbers(windows, "estimate"), numbers(windows, "singles_sum"), 1e-10)


@each_executor
def test_w2_fails_where_the_layers_feed_each_other(kind: Kind) -> None:
    """Otherwise W2 would hold of anything: the same model, each MLP reading the one before it as well."""
    experiment = experiment_of(linear_model(feeding=0.5), last_token_pairs(8), kind)
    single, window = (by_layer(experiment, "mlp_out", width) for width in (1, 3))
    sums = torch.stack([single[:, list(window_layers(layer, 3, LAYERS))].sum(1) for layer in range(LAYERS)], dim=1)
    assert (window - sums).abs().max() > 0.1
