"""Attention of named heads to named parts of prompts: against plain hooks and what transformers returns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from engramscope import load_model, make_pairs
from engramscope.corruptions import make_corruption
from engramscope.engine.plan import BaseRun, DerivedRun, FromRun, Patch, Plan
from engramscope.engine.reference import record, record_plan
from engramscope.errors import PairsError, SiteError
from engramscope.locate import attention_view as module
from engramscope.locate.attention_view import Restore, attention_view, summarise_attention
from engramscope.models import Model
from engramscope.pairs import Pair, PairSet
from tests.tiny_models import tiny_hf
from tests.tiny_study import NAMES, tokenizer

TEXT = "In the park {} lost the big red"


@pytest.fixture(scope="module")
def llama() -> Model:
    """Grouped queries: four heads on two groups; a BOS token in front."""
    words = tokenizer(bos=True)
    return Model.from_parts(tiny_hf("llama", vocab_size=len(words)).double(), words, name="tiny", check=False)


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    made = []
    for number in range(4):
        name, other = NAMES[number], NAMES[number + 4]
        start = TEXT.index("{")
        made.append(
            Pair(
                f"p{number}", TEXT.format(name), (" ball",), TEXT.format(other), (" kite",), group=f"g{number}",
                spans={"who": (start, start + len(name)), "park": (7, 11)},
                corrupted_spans={"who": (start, start + len(other)), "park": (7, 11)},
            )
        )  # fmt: skip
    return PairSet(tuple(made), "tiny")


#: BOS, In, the, park, NAME, lost, the, big, red
WHO, PARK, LAST = 4, 3, 8


def _ids(model: Model, text: str | None) -> Tensor:
    return torch.tensor([model.tokenizer(text)["input_ids"]])


def _weights(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack(model.hf(ids, output_attentions=True).attentions)[:, 0, :, LAST]  # [layer, head, key]


def _weight(table: pd.DataFrame, **where: object) -> float:
    for name, value in where.items():
        table = table[table[name] == value]
    return table["weight"].item()


def test_weights_are_sums_over_the_positions_of_a_part(llama: Model, pairs: PairSet) -> None:
    table = attention_view(llama, pairs, ("2.3", "1.0", "2.1"), ("who", "park", "bos")).table
    assert set(table["run"]) == {"clean", "corrupted"}
    for pair in pairs:
        for run, text in (("clean", pair.clean), ("corrupted", pair.corrupted)):
            weights = _weights(llama, _ids(llama, text))
            for layer, head in ((1, 0), (2, 1), (2, 3)):
                row = weights[layer, head]
                expected = {"who": row[WHO], "park": row[PARK], "bos": row[0], "rest": row[[1, 2, 5, 6, 7, 8]].sum()}
                for target, value in expected.items():
                    own = _weight(table, run=run, pair=pair.id, layer=layer, head=head, target=target)
                    assert own == pytest.approx(float(value), abs=1e-6)


@pytest.mark.parametrize(("site", "path"), [("v", "v_proj"), ("k", "k_proj"), ("q", "q_proj")])
def test_the_patched_run_restores_the_heads_or_their_group_from_the_clean_run(
    llama: Model, pairs: PairSet, site: str, path: str
) -> None:
    # head 3 of layer 0 uses the second group of keys and values
    restore = Restore(site, ("0.3",))  # pyright: ignore[reportArgumentType]
    table = attention_view(llama, pairs, ("1.2", "2.0"), ("who",), restore=restore).table
    own = slice(24, 32) if site == "q" else slice(8, 16)
    for pair in pairs:
        projection = llama.hf.model.layers[0].self_attn.get_submodule(path)
        kept: list[Tensor] = []
        handle = projection.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out.clone()))
        _weights(llama, _ids(llama, pair.clean))
        handle.remove()

        def put(_module, _args, output: Tensor, kept=kept) -> Tensor:
            new = output.clone()
            new[..., own] = kept[0][..., own]
            return new

        handle = projection.register_forward_hook(put)
        expected = _weights(llama, _ids(llama, pair.corrupted))
        handle.remove()
        for layer, head in ((1, 2), (2, 0)):
            found = _weight(table, run="patched", pair=pair.id, layer=layer, head=head, target="who")
            assert found == pytest.approx(float(expected[layer, head, WHO]), abs=1e-6)
            unpatched = _weight(table, run="corrupted", pair=pair.id, layer=layer, head=head, target="who")
            assert abs(found - unpatched) > 1e-7


def test_restoring_the_patterns_or_everything_below_gives_the_clean_attention(llama: Model, pairs: PairSet) -> None:
    heads = tuple(f"2.{head}" for head in range(4))
    for restore in (Restore("pattern", heads), Restore("q", heads)):
        table = attention_view(llama, pairs, heads, ("who", "park"), restore=restore).table
        weights = {run: rows["weight"].to_numpy() for run, rows in table.groupby("run")}
        same = np.allclose(weights["patched"], weights["clean"], atol=1e-9)
        assert same == (restore.site == "pattern")
        assert not np.allclose(weights["corrupted"], weights["clean"], atol=1e-3)


def test_parts_are_looked_up_in_the_prompt_of_the_run(llama: Model) -> None:
    pair = Pair(
        "moved", "In the park Anna lost the big red", (" ball",), "In Bob the park lost the big red", (" kite",),
        spans={"who": (12, 16)}, corrupted_spans={"who": (3, 6)},
    )  # fmt: skip
    table = attention_view(llama, PairSet((pair,), "one"), ("1.1",), ("who",), restore=Restore("z", ("2.0",))).table
    clean, corrupted = (_weights(llama, _ids(llama, text))[1, 1] for text in (pair.clean, pair.corrupted))
    assert _weight(table, run="clean", target="who") == pytest.approx(float(clean[4]), abs=1e-6)
    for run in ("corrupted", "patched"):
        assert _weight(table, run=run, target="who") == pytest.approx(float(corrupted[2]), abs=1e-6)
    assert abs(float(corrupted[2] - corrupted[4])) > 1e-4


def test_another_position_can_look(llama: Model, pairs: PairSet) -> None:
    table = attention_view(llama, pairs, ("1.1",), ("who",), query="park").table
    # nobody looks ahead
    assert (table[table["target"] == "who"]["weight"] == 0).all()
    assert np.allclose(table[table["target"] == "rest"]["weight"], 1)


def test_every_draw_of_the_noise_is_a_run(llama: Model, pairs: PairSet) -> None:
    noise = make_corruption("gaussian", {"sigma": 3.0, "draws": 3, "span": "who"})
    view = attention_view(llama, pairs, ("1.1",), ("who",), corruption=noise, restore=Restore("z", ("0.0",)))
    for run in ("corrupted", "patched"):
        assert set(view.table[view.table["run"] == run]["seed"]) == {0, 1, 2}
        who = view.table[(view.table["run"] == run) & (view.table["target"] == "who")]
        assert who.groupby("pair")["weight"].std().min() > 1e-6
    assert set(view.table[view.table["run"] == "clean"]["seed"]) == {0}


def test_the_summary_is_mean_and_sd_over_prompts_and_heads(llama: Model, pairs: PairSet) -> None:
    view = attention_view(llama, pairs, ("1.1", "2.0"), ("who",))
    together = view.summary[view.summary["head"].isna()].set_index(["run", "target"])
    own = view.table[(view.table["run"] == "corrupted") & (view.table["target"] == "who")]["weight"]
    line = together.loc[("corrupted", "who")]
    assert line["mean"] == pytest.approx(own.mean())
    assert line["sd"] == pytest.approx(own.std())
    assert line["n"] == 8
    assert len(view.summary) == 2 * 2 * 3
    pd.testing.assert_frame_equal(summarise_attention(view.table), view.summary)


def test_how_pairs_are_divided_changes_nothing(llama: Model, pairs: PairSet, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = Restore("v", ("0.3",))
    one = attention_view(llama, pairs, ("1.2", "2.0"), ("who",), restore=restore).table
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    other = attention_view(llama, pairs, ("1.2", "2.0"), ("who",), restore=restore).table
    pd.testing.assert_frame_equal(one, other, atol=1e-9)


def test_in_a_trained_model_weights_add_up_and_name_movers_follow_the_clean_prompt() -> None:
    model = load_model("mini", check=False)
    pairs = make_pairs("ioi", 16, 0, model.tokenizer)
    every = tuple(f"{layer}.{head}" for layer in range(5) for head in range(8))
    view = attention_view(model, pairs, ("5.3", "5.6", "5.7"), ("io", "s1", "s2"), restore=Restore("z", every))
    total = view.table.groupby(["run", "pair", "layer", "head"])["weight"].sum()
    assert np.allclose(total, 1, atol=1e-6)
    means = view.summary[view.summary["head"].isna()].set_index(["run", "target"])["mean"]
    # the corrupted prompt exchanges who is repeated, and with it who is looked at; behind clean heads all is as before
    assert means["clean", "io"] > 0.8
    assert means["corrupted", "s1"] > 0.8
    assert means["patched", "io"] > 0.8


def test_what_cannot_be_shown_is_said(llama: Model, pairs: PairSet) -> None:
    with pytest.raises(SiteError, match=r"There is no head 3\.0: the model has layers 0 to 2"):
        attention_view(llama, pairs, ("3.0",), ("who",))
    with pytest.raises(SiteError, match="'1-2' is no head"):
        attention_view(llama, pairs, ("1-2",), ("who",))
    with pytest.raises(SiteError, match="No head was named"):
        attention_view(llama, pairs, (), ("who",))
    with pytest.raises(SiteError, match="is an ablation"):
        attention_view(llama, pairs, ("1.0",), ("who",), corruption="zero", restore=Restore("v", ("0.0",)))
    with pytest.raises(PairsError, match=r"No prompt has a position 'whom'; there are: .*park.*who"):
        attention_view(llama, pairs, ("1.0",), ("whom",))
    with pytest.raises(PairsError, match="share a token"):
        attention_view(llama, _overlapping(pairs), ("1.0",), ("who", "also"))
    with pytest.raises(PairsError, match="Name the parts"):
        attention_view(llama, pairs, ("1.0",), ())
    assert set(attention_view(llama, pairs, ("1.0",), ("who",), corruption="zero").table["run"]) == {"clean"}


def _overlapping(pairs: PairSet) -> PairSet:
    first = pairs[0]
    spans = {**first.spans, "also": first.spans["who"]}
    other = {**first.corrupted_spans, "also": first.corrupted_spans["who"]}
    return PairSet.of([Pair(first.id, first.clean, first.correct, first.corrupted, first.incorrect, "", spans, other)])


def test_a_plan_is_recorded_as_its_runs_are_after_their_patches(llama: Model) -> None:
    one, two = BaseRun("one", (0, 5, 6, 7)), BaseRun("two", (0, 5, 9, 7))
    patched = DerivedRun("patched", "two", (Patch("z", 1, (2,), FromRun("one", (2,)), (1,)),))
    unread = DerivedRun("unread", "two", (Patch("v", 0, (1,), FromRun("one", (1,))),))
    plan = Plan((one, two), (patched, unread))
    places = [("z", 1), ("resid_post", 2)]
    found = {(run, place): value for run, place, value in record_plan(llama, plan, {"one": places, "patched": places})}
    assert {run for run, _ in found} == {"one", "patched"}
    alone = {(run, place): value for run, place, value in record(llama, [one, two], places)}
    torch.testing.assert_close(found["one", places[1]], alone["one", places[1]])
    expected = alone["two", places[0]].clone()
    expected[2, 8:16] = alone["one", places[0]][2, 8:16]
    torch.testing.assert_close(found["patched", places[0]], expected)
    changed = (found["patched", places[1]] - alone["two", places[1]]).abs().amax(dim=-1)
    assert (changed[:2] < 1e-12).all()
    assert (changed[2:] > 1e-9).all()
