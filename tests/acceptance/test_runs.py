"""Acceptance checks A: what a patched run must be, whatever the model, with both executors.

Expected logits come from the model's own forward (`Setting.plain`) wherever the statement is about a whole run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from engramscope.engine.executor import Kind
from engramscope.engine.plan import BaseRun, Constant, DerivedRun, FromRun, Patch, Plan, Readout
from engramscope.locate.cells import Cell
from engramscope.locate.experiment import Experiment, noise_floor
from engramscope.locate.paths import Edges, Paths, Receiver, parse_receiver, path_runs
from engramscope.locate.sweep import run_cells
from engramscope.models import Model
from engramscope.pairs import PairSet
from tests.acceptance.padded import Side, padded_effects
from tests.acceptance.setting import (
    BASES,
    CHANGED,
    CLEAN,
    EVERYWHERE,
    OTHER,
    TOLERANCE,
    Setting,
    counted,
    each_executor,
    each_family_and_executor,
    effects_of,
    experiment_of,
    identical,
    logits_of,
    numbers,
    places_of,
    sweep,
    sweep_cells,
    taken,
    text_model,
    text_pairs,
    values_of,
    with_memory,
)
from tests.models.known_paths import KNOWN
from tests.tiny_study import tokenizer

Mlps = Literal["live", "frozen"]


# ------------------------------------------------------------------------------------------ A1-A3: everything


def test_a1_the_embedding_at_all_positions_gives_the_other_run(setting: Setting) -> None:
    """A1: embedding patched at all positions (position ids equal) == clean logits."""
    for base, source in OTHER.items():
        whole = DerivedRun("whole", base, (taken(source, "embed", None),))
        part = DerivedRun("part", base, (taken(source, "embed", None, CHANGED[:1]),))
        found = setting.run((whole, part))
        setting.same(found["whole"], setting.plain(source), "the whole embedding")
        setting.differ(found["part"], setting.plain(source), "the embedding of one of two changed tokens")


def test_a2_the_residual_at_all_positions_gives_the_other_run(setting: Setting) -> None:
    """A2: resid_pre at any layer, all positions == clean; so are resid_mid and resid_post."""
    but_one = tuple(position for position in EVERYWHERE if position != CHANGED[1])
    sites = [site for site in ("resid_pre", "resid_mid", "resid_post") if site in setting.model.sites]
    for base, source in OTHER.items():
        runs = {
            f"{site} {layer} {name}": DerivedRun(f"{site} {layer} {name}", base, (taken(source, site, layer, at),))
            for site, layer, _ in places_of(setting.model, *sites)
            for name, at in (("whole", EVERYWHERE), ("part", but_one))
        }
        found = setting.run(runs.values())
        for name in runs:
            judge = setting.same if name.endswith("whole") else setting.differ
            judge(found[name], setting.plain(source), name)


@pytest.mark.parametrize("of_attention", ["z", "attn_out"])
def test_a3_all_sources_give_the_other_run_and_all_but_the_embedding_do_not(
    setting: Setting, of_attention: str
) -> None:
    """A3: all sources patched == clean; all but embedding != clean.

    All but the embedding give the clean residual stream with the corrupted embedding in it, and that exactly.
    """
    model = setting.model
    modules = [taken("clean", site, layer) for site, layer, heads in places_of(model, of_attention, "mlp_out")
               if heads is None]  # fmt: skip
    last = model.anatomy.n_layers - 1
    start, end = values_of(model, ("resid_pre", 0)), values_of(model, ("resid_post", last))
    expected = end["clean"] - start["clean"] + start["corrupted"]
    found = setting.run((
        DerivedRun("all", "corrupted", (taken("clean", "embed", None), *modules)),
        DerivedRun("but the embedding", "corrupted", tuple(modules)),
        DerivedRun("expected", "corrupted", (Patch("resid_post", last, EVERYWHERE, Constant(expected)),)),
    ))  # fmt: skip
    setting.same(found["all"], setting.plain("clean"), "all sources")
    setting.same(found["but the embedding"], found["expected"], "all but the embedding")
    setting.differ(found["but the embedding"], setting.plain("clean"), "all but the embedding")
    setting.differ(found["but the embedding"], setting.plain("corrupted"), "all but the embedding")


# ---------------------------------------------------------------------------------------------- A4, A5: edges


def every_receiver(model: Model) -> list[Receiver]:
    """Everything that reads the residual stream."""
    a = model.anatomy
    names = [
        f"{layer}.{head}.{letter}"
        for layer in range(a.n_layers)
        for letter in "qkv"
        for head in range(a.n_heads if letter == "q" else a.n_kv_heads)
    ]
    names += [*(f"mlp.{layer}" for layer in range(a.n_layers)), "logits"]
    return [receiver for name in names if (receiver := parse_receiver(name)) is not None]


def along_edges(
    setting: Setting, name: str, sender: Patch, receivers: Sequence[Receiver], mlps: Mlps
) -> list[DerivedRun]:
    """Runs of which the last, called `name`, shows what `sender` puts in place to these receivers only."""
    assert isinstance(sender.source, FromRun)
    edges = Edges(
        "corrupted", len(CLEAN), sender.site, sender.layer, sender.heads, sender.positions, sender.source, EVERYWHERE,
        setting.model.anatomy.parallel, setting.model.anatomy.n_layers,
    )  # fmt: skip
    between, run = path_runs(edges, Paths(tuple(sorted(receivers)), ("all",), mlps), name)
    return [*between, run]


@pytest.mark.parametrize("mlps", ["live", "frozen"])
def test_a4_the_full_edge_mask_gives_the_clean_run_and_the_empty_one_the_corrupted_run(
    setting: Setting, mlps: Mlps
) -> None:
    """A4: full edge mask == clean; empty == corrupted.

    The mask is that of the edges out of the embedding: everything else follows from what it sends.
    """
    everyone = every_receiver(setting.model)
    # a live MLP passes on what reaches it, receiver or not
    needed = [Receiver(-1, "logits"), Receiver(0, "v", 0), *([Receiver(1, "mlp")] if mlps == "frozen" else [])]
    masks = {"full": everyone, "empty": []}
    masks |= {f"without {left_out.name}": [r for r in everyone if r != left_out] for left_out in needed}
    embedding = taken("clean", "embed", None)
    found = setting.run(
        run for name, mask in masks.items() for run in along_edges(setting, name, embedding, mask, mlps)
    )
    setting.same(found["full"], setting.plain("clean"), "all edges")
    setting.same(found["empty"], setting.plain("corrupted"), "no edge")
    for left_out in needed:
        setting.differ(found[f"without {left_out.name}"], setting.plain("clean"), f"all edges but {left_out.name}")


@pytest.mark.parametrize("mlps", ["live", "frozen"])
def test_a5_a_node_patch_is_all_its_out_edges(setting: Setting, mlps: Mlps) -> None:
    """A5: node patch == all its out-edges patched."""
    everyone = every_receiver(setting.model)
    nodes = (("embed", None, None), ("z", 0, (1,)), ("z", 1, (0,)), ("mlp_out", 0, None), ("attn_out", 1, None))
    runs: list[DerivedRun] = []
    for site, layer, heads in nodes:
        sender = taken("clean", site, layer, CHANGED, heads)
        runs.append(DerivedRun(f"node {site} {layer}", "corrupted", (sender,)))
        runs += along_edges(setting, f"edges {site} {layer}", sender, everyone, mlps)
    found = setting.run(runs)
    for site, layer, _ in nodes:
        setting.same(found[f"edges {site} {layer}"], found[f"node {site} {layer}"], f"all edges of {site} {layer}")
        setting.differ(found[f"node {site} {layer}"], setting.plain("corrupted"), f"{site} {layer}")


# ------------------------------------------------------------------------------------------- A6-A8: no effect


def test_a6_a_self_patch_is_a_no_op(setting: Setting) -> None:
    """A6: self-patch is a no-op: at every site, of all heads and of one, at all positions and at some."""
    runs = [
        DerivedRun(f"{base} {place} {at}", base, (taken(base, site, layer, at, heads),))
        for place in places_of(setting.model)
        for site, layer, heads in [place]
        for base, at in (("clean", EVERYWHERE), ("corrupted", CHANGED))
        if heads in (None, (0,), (1,))
    ]
    # or else nothing would be computed
    found = setting.run(runs, skip_identities=False)
    for run in runs:
        setting.same(found[run.id], setting.plain(run.base), run.id)
    assert len(runs) > 100


@contextmanager
def rounding_by_batch(model: Model) -> Iterator[None]:
    """One MLP rounds otherwise in batches of another size, by the last binary digits of bf16, as large kernels do."""

    def hook(_module: Any, _args: Any, out: Tensor) -> Tensor:
        return out * (1 + 2.0**-7 * (out.shape[:-1].numel() % 5))

    handle = model.hf.get_submodule(f"{model.anatomy.blocks[1]}.{KNOWN[model.name].mlp}").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@each_executor
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a6_the_largest_self_patch_in_bf16_is_the_noise_floor(family: str, kind: Kind) -> None:
    """A6: its largest absolute effect in bf16 is the noise floor."""
    model = text_model(family, torch.bfloat16)
    with rounding_by_batch(model):
        experiment = experiment_of(model, text_pairs(2), kind)
        cells = [cell for site in ("z", "mlp_out") for cell in sweep_cells(experiment, site, layers=[1])]
        # each cell in each pair by itself, since batches decide over the last digits; there are so few of them that
        # the draws find them all
        effects = [
            outcome.scores["logit_diff"] - experiment.base[pair.index].corrupted[outcome.seed]["logit_diff"]
            for cell in cells
            for pair in experiment.prepared
            for outcome in run_cells(
                experiment.executor, [cell], [pair], experiment.scorer, experiment.prepared, self_patch=True
            )
        ]
        floor = noise_floor(experiment, cells, 30)["logit_diff"]
    assert len(effects) == len(cells) * len(experiment.prepared) == 4
    assert floor == max(map(abs, effects))
    assert floor > min(map(abs, effects)), "the effects are all alike: any of them would pass for the largest"


def test_a7_a_patch_changes_no_logits_before_its_position(setting: Setting) -> None:
    """A7: patch at position p changes no logits before p."""
    runs = [
        (at, DerivedRun(f"{place} {at}", "corrupted", (taken("clean", site, layer, (at,), heads),)))
        for place in places_of(setting.model)
        for site, layer, heads in [place]
        for at in CHANGED
    ]
    found, base = setting.run(run for _, run in runs), setting.plain("corrupted")
    for at, run in runs:
        setting.same(found[run.id][:at], base[:at], run.id)
        if run.patches[0].heads is None:  # one head alone may do little
            setting.differ(found[run.id][at:], base[at:], run.id)


def test_a8_a_site_behind_the_answer_position_has_no_effect(setting: Setting) -> None:
    """A8: sites after the answer position have effect 0, also where the answer alone is read."""
    answer = 3
    behind = tuple(position for position in EVERYWHERE if position > answer)
    runs = [
        DerivedRun(f"{site} {layer} {heads}", "corrupted", (taken("clean", site, layer, behind, heads),))
        for site, layer, heads in places_of(setting.model)
        if heads in (None, (0,))
    ]
    plan = Plan(BASES, tuple(runs), tuple(Readout(run.id, (answer,)) for run in runs))
    for run, row in logits_of(setting.executor, plan, skip_identities=False).items():
        setting.same(row, setting.plain("corrupted")[[answer]], run)
    assert any(position in behind for position in CHANGED)


def test_a8_a_site_of_a_later_layer_than_the_readout_has_no_effect(setting: Setting) -> None:
    """A8: sites of a later layer than the read-out have effect 0.

    What is read out is a residual stream: it is carried into an unpatched run, whose logits then show it.
    """
    last = setting.model.anatomy.n_layers - 1
    runs: list[DerivedRun] = []
    wanted: list[tuple[str, str]] = []
    for site, layer, heads in places_of(setting.model):
        if heads is not None or site == "embed":
            continue
        patched = DerivedRun(f"{site} {layer}", "corrupted", (taken("clean", site, layer, CHANGED),))
        runs.append(patched)
        for read in range(last + 1):
            reader = DerivedRun(f"{patched.id} at {read}", "corrupted", (taken(patched.id, "resid_post", read),))
            later = read < layer if layer is not None else True  # the final norm and the logits come after all layers
            runs.append(reader)
            wanted.append((reader.id, "corrupted" if later else patched.id))
    found = setting.run(runs)
    for reader, same_as in wanted:
        setting.same(found[reader], found[same_as], reader)
    for patched in {same_as for _, same_as in wanted} - {"corrupted"}:
        setting.differ(found[patched], found["corrupted"], patched)


# -------------------------------------------------------------------------------------- A10: what is beside it


@each_family_and_executor
def test_a10_batch_composition_and_size_do_not_change_effects(family: str, kind: Kind) -> None:
    """A10: batch composition and batch size do not change effects."""
    model, pairs, tolerance = text_model(family), text_pairs(4, 2), max(1e-6, TOLERANCE.get(family, 0.0))
    experiment = experiment_of(model, pairs, kind)
    assert len({len(pair.tokens.clean) for pair in experiment.prepared}) == 2
    cells = [
        cell
        for site in ("z", "mlp_out")
        for cell in sweep_cells(experiment, site, layers=[1], positions=["subject", "last"])
    ]

    def effects(of: Experiment, some: Sequence[Cell] = cells) -> Tensor:
        return numbers(effects_of(of, some), "effect").reshape(-1, len(some))

    together = effects(experiment)
    assert (together.abs().amax(1) > 1e-3).all()
    for row in (0, 3):
        alone = experiment_of(model, PairSet((tuple(pairs)[row],)), kind)
        identical(effects(alone), together[[row]], tolerance)
    turned = experiment_of(model, PairSet(tuple(pairs)[::-1]), kind)
    identical(effects(turned).flip(0), together, tolerance)
    identical(torch.cat([effects(experiment, [cell]) for cell in cells], dim=1), together, tolerance)
    with counted(model) as at_once:
        effects(experiment)
    with counted(model) as in_pieces:
        identical(effects(with_memory(experiment, 1e-6)), together, tolerance)
    assert in_pieces[0] > at_once[0], "the batches are not smaller"


@each_family_and_executor
@pytest.mark.parametrize("side", ["left", "right"])
def test_a10_the_padding_side_does_not_change_effects(family: str, side: Side, kind: Kind) -> None:
    """A10: padding side does not change effects: padded batches of the model itself give those of the package."""
    model = text_model(family)
    experiment = experiment_of(model, text_pairs(), kind)
    for layer in (0, 1):
        table = sweep(experiment, "resid_post", layers=[layer], positions=["subject"])
        theirs = padded_effects(model, experiment.prepared, layer, "subject", side)
        identical(numbers(table, "effect"), theirs, max(1e-6, TOLERANCE.get(family, 0.0)))
        assert int((theirs.abs() > 1e-3).sum()) >= 2  # a sliding window hides the rest


@each_executor
def test_a10_the_padding_side_of_the_tokenizer_is_not_looked_at(kind: Kind) -> None:
    """A10: padding side does not change effects, whatever the tokenizer says."""
    found = []
    for side in ("left", "right"):
        words = tokenizer(bos=True)
        words.pad_token, words.padding_side = "</s>", side
        model = Model.from_parts(text_model("llama").hf, words, name="llama", check=False)
        found.append(numbers(sweep(experiment_of(model, text_pairs(), kind), "mlp_out"), "effect"))
    identical(found[0], found[1], 0.0)
    assert found[0].abs().max() > 1e-3


# --------------------------------------------------------------------------------------- A11, A12: the prompts


def test_a11_equal_prompts_have_no_effect(setting: Setting) -> None:
    """A11: two prompts identical -> every effect 0."""
    bases = (BASES[0], BaseRun("again", CLEAN))
    runs = [
        DerivedRun(f"{base} {site} {layer}", base, (taken(source, site, layer),))
        for site, layer, heads in places_of(setting.model)
        for base, source in (("clean", "again"), ("again", "clean"))
        if heads is None
    ]
    plan = Plan(bases, tuple(runs), tuple(Readout(run.id, EVERYWHERE) for run in runs))
    for run, row in logits_of(setting.executor, plan, skip_identities=False).items():
        setting.same(row, setting.plain("clean"), run)


@each_family_and_executor
def test_a11_noise_of_no_size_scores_nothing(family: str, kind: Kind) -> None:
    """A11: two prompts identical -> every effect 0, every score 0; recovery is undefined, not 0."""
    noise, metrics = {"sigma": 0.0, "draws": 2}, ("logit_diff", "kl")
    experiment = experiment_of(text_model(family), text_pairs(2), kind, metrics, "gaussian", noise)
    for site in ("z", "resid_pre"):
        table = sweep(experiment, site, positions=["subject", "last"], direction="both")
        identical(numbers(table, "effect"), 0.0, TOLERANCE.get(family, 1e-9))
        assert table["recovery"].isna().all()
    loud = experiment_of(text_model(family), text_pairs(2), kind, ("logit_diff",), "gaussian", {"draws": 1})
    assert numbers(sweep(loud, "mlp_out"), "effect").abs().max() > 1e-3


@each_family_and_executor
def test_a12_denoising_is_noising_with_the_prompts_exchanged(family: str, kind: Kind) -> None:
    """A12: denoising on (x, y) equals noising on (y, x) up to relabelling: recovery then counts from the other end."""
    pairs, metrics = text_pairs(3), ("logit_diff", "prob", "log_prob")
    # the prompts are exchanged, and the answers stay: every metric asks the same of both
    exchanged = PairSet(tuple(
        replace(pair, clean=pair.corrupted or "", corrupted=pair.clean, spans=pair.corrupted_spans,
                corrupted_spans=pair.spans)
        for pair in pairs
    ))  # fmt: skip
    one = experiment_of(text_model(family), pairs, kind, metrics)
    other = experiment_of(text_model(family), exchanged, kind, metrics)
    for site in ("embed", "resid_post", "z", "pattern"):
        declared = {} if site == "embed" else {"layers": [1]}
        given, taken_ = (
            sweep(experiment, site, positions=["subject", "last"], direction=direction, **declared)
            for experiment, direction in ((one, "denoise"), (other, "noise"))
        )
        for column in ("patched", "effect"):
            identical(numbers(given, column), numbers(taken_, column), TOLERANCE.get(family, 1e-9))
        identical(numbers(given, "clean"), numbers(taken_, "corrupted"))
        # the gap of a pair divides what rounding leaves
        identical(numbers(given, "recovery"), 1 - numbers(taken_, "recovery"), 1e3 * TOLERANCE.get(family, 1e-9))
        assert numbers(given, "effect").abs().max() > 1e-3
