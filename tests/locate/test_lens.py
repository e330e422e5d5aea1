"""The logit lens: against final norm and head applied by hand, and against the model's own output."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from engramscope import load_model, make_pairs
from engramscope.errors import CheckError, PairsError
from engramscope.locate.lens import EMBED, logit_lens
from engramscope.models import Model
from tests.locate.tokens import ALL, double_model, random_pairs, token_pair
from tests.models.known_paths import KNOWN
from tests.tiny_models import tiny_hf


def by_hand(logits: Tensor, final: Tensor, right: int, wrong: int) -> dict[str, float]:
    """The columns for one row, from logits [vocab] and those of the model [vocab]."""
    p, q = final.double().softmax(-1), logits.double().softmax(-1)
    return {
        "logit_diff": float(logits[right] - logits[wrong]), "prob": float(q[right]),
        "rank": float((logits > logits[right]).sum()), "kl": float((p * (p.log() - q.log())).sum()),
        "top_token": float(logits.argmax()),
    }  # fmt: skip


def same(line: pd.Series, expected: dict[str, float], tolerance: float) -> None:
    for name, value in expected.items():
        assert line[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("family", [*ALL, "gptj"])
def test_after_the_last_block_the_lens_is_the_model(family: str) -> None:
    model, pairs = double_model(family), random_pairs(3)
    table = logit_lens(model, pairs, positions="all")
    last = table[table["layer"] == model.anatomy.n_layers - 1].set_index(["pair", "position"])
    for pair in pairs:
        with torch.no_grad():
            logits = model.hf(torch.tensor([pair.clean.ids]), use_cache=False).logits[0]
        for position in range(len(pair.clean)):
            expected = by_hand(logits[position], logits[position], pair.correct[0][0], pair.incorrect[0][0])
            same(last.loc[(pair.pair.id, position)], expected, 1e-6)


@pytest.mark.parametrize("family", [*ALL, "gptj"])
def test_before_it_the_lens_is_norm_and_head_of_the_residual_stream(family: str) -> None:
    model, pair = double_model(family), random_pairs(1)[0]
    table = logit_lens(model, [pair], positions="all").set_index(["layer", "position"])
    norm, head = model.hf.get_submodule(KNOWN[family].norm), model.hf.lm_head
    with torch.no_grad():
        output = model.hf(torch.tensor([pair.clean.ids]), output_hidden_states=True)
        for layer in range(EMBED, model.anatomy.n_layers - 1):
            # transformers' hidden state l + 1 is what block l passes on (the very last one has been normed)
            logits = head(norm(output.hidden_states[layer + 1]))[0] * getattr(model.hf.config, "logit_scale", 1.0)
            if family == "gemma2":
                logits = 30 * torch.tanh(logits / 30)
            for position in (0, 3, 5):
                right, wrong = pair.correct[0][0], pair.incorrect[0][0]
                expected = by_hand(logits[position], output.logits[0, position], right, wrong)
                same(table.loc[(layer, position)], expected, 1e-6)


def test_only_the_last_position_is_read_where_no_other_is_asked_for() -> None:
    model, pairs = double_model("llama"), random_pairs(4)
    everywhere, last = (logit_lens(model, pairs, positions=which) for which in ("all", "last"))
    ends = everywhere[everywhere["position_role"] == "last"].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, ends, atol=1e-12)
    assert list(last["layer"]) == [*range(-1, 3)] * 4
    assert list(last["pair"].drop_duplicates()) == [pair.pair.id for pair in pairs]
    assert set(last["position"]) == {5, 7}


def test_blocks_that_write_nothing_leave_every_layer_with_the_model_s_output() -> None:
    hf = tiny_hf("gpt2").double()
    with torch.no_grad():
        for block in hf.transformer.h:
            for module in (block.attn.c_proj, block.mlp.c_proj):
                module.weight.zero_()
                module.bias.zero_()
    table = logit_lens(Model.from_parts(hf, name="idle", check=False), random_pairs(2))
    assert (table["kl"].abs() < 1e-12).all()
    assert (table.groupby("pair")["logit_diff"].std() < 1e-12).all()


def test_sets_of_answers_count_as_in_the_metrics_and_pairs_without_incorrect_ones_have_no_difference() -> None:
    model, ids = double_model("gpt2"), [5, 6, 7, 8]
    pairs = [token_pair(0, ids, (11, 12), (20, 21)), token_pair(1, ids, (11,), ())]
    table = logit_lens(model, pairs).set_index(["pair", "layer"])
    logits = model.logits(torch.tensor([ids]))[0, -1]
    line = table.loc[("p0", 2)]
    assert line["logit_diff"] == pytest.approx(float(logits[[11, 12]].max() - logits[[20, 21]].max()))
    assert line["prob"] == pytest.approx(float(logits.softmax(-1)[[11, 12]].sum()))
    assert np.isnan(table.loc[("p1", 2), "logit_diff"])
    assert table.loc[("p1", 2), "prob"] == pytest.approx(float(logits.softmax(-1)[11]))
    with pytest.raises(PairsError, match="the same token"):
        logit_lens(model, [token_pair(0, ids, (11,), (11,))])


def test_models_that_attribution_refuses_have_a_lens() -> None:
    # OPT-350m: a norm after the addition, and a projection between residual stream and head
    hf = tiny_hf("opt", word_embed_proj_dim=16, do_layer_norm_before=False).double()
    model, pairs = Model.from_parts(hf, name="opt", check=False), random_pairs(2)
    last = logit_lens(model, pairs).set_index(["pair", "layer"])
    for pair in pairs:
        logits = model.logits(torch.tensor([pair.clean.ids]))[0, -1]
        expected = by_hand(logits, logits, pair.correct[0][0], pair.incorrect[0][0])
        same(last.loc[(pair.pair.id, 2)], expected, 1e-6)


def test_an_end_that_depends_on_more_than_the_residual_stream_is_an_error() -> None:
    model = Model.from_parts(tiny_hf("gpt2").double(), name="odd", check=False)
    calls: list[int] = []

    def drift(_module, args, output):
        calls.append(1)
        return output + 0.1 * len(calls) * torch.linspace(-1, 1, output.shape[-1])

    model.hf.transformer.ln_f.register_forward_hook(drift)
    with pytest.raises(CheckError, match="more than the residual stream"):
        logit_lens(model, random_pairs(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lens_shows_a_trained_model_making_up_its_mind(dtype: str) -> None:
    model = load_model("mini", dtype=dtype, check=False)
    pairs = make_pairs("ioi", 16, 0, model.tokenizer)
    table = logit_lens(model, pairs)
    by_layer = table.groupby("layer")[["logit_diff", "prob", "kl", "rank"]].mean()
    assert by_layer["prob"].loc[-1] < 0.01
    assert by_layer["prob"].loc[5] > 0.95
    assert by_layer["kl"].loc[5] == 0
    assert by_layer["kl"].loc[0] > 1
    said = table[table["layer"] == 5].set_index("pair")["top_text"]
    assert all(said[pair.id] == pair.correct[0] for pair in pairs)
