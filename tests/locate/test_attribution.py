"""Contributions to a logit difference: against formulas written by hand for every family, and their sums."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor, nn

from engramscope import attention_scores, load_model, logit_lens, make_pairs
from engramscope.errors import CheckError, ModelError, PairsError, SiteError, UnknownNameError
from engramscope.locate.attribution import direct_attribution
from engramscope.locate.contributions import mean_contributions
from engramscope.locate.readout import constant_of, frozen_norm, head_form, matrix_of
from engramscope.models import Model
from engramscope.models.find import find, without_sites
from engramscope.models.offload import is_offloaded
from tests.locate.tokens import ALL, EXACT, double_model, random_pairs, token_pair
from tests.models.known_paths import KNOWN
from tests.planted import GAIN, key_pairs, planted_model, value_pairs
from tests.tiny_models import tiny_hf

#: families whose norms subtract no mean, and those that multiply by 1 + weight
RMS, PLUS_ONE = ("llama", "olmo2", "gemma2", "gemma3"), ("gemma2", "gemma3")


def _last(value) -> Tensor:
    value = value if isinstance(value, Tensor) else value[0]
    return value.reshape(-1, value.shape[-1])[-1]


def _gain(family: str, norm: nn.Module) -> Tensor:
    return 1 + norm.weight if family in PLUS_ONE else norm.weight


def _normed(family: str, norm: nn.Module, at: Tensor, part: Tensor) -> Tensor:
    """`part` through the norm with the scale that it has at `at`, without its bias."""
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    if family in RMS:
        return part / (at.pow(2).mean() + eps).sqrt() * _gain(family, norm)
    return (part - part.mean()) / (at.var(correction=0) + eps).sqrt() * _gain(family, norm)


def by_hand(family: str, ids: list[int], right: int, wrong: int) -> dict[tuple, float]:
    """Every contribution by formulas that know the family: one prompt, one head at a time."""
    hf, known, a = double_model(family).hf, KNOWN[family], double_model(family).anatomy
    modules, kept = dict(hf.named_modules()), {}
    handles = []

    def keep(name: str, module: nn.Module) -> None:
        def hook(_module, args, kwargs, output) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            kept[name] = (_last(given).clone(), _last(output).clone())

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    keep("norm", modules[known.norm])
    for layer in range(a.n_layers):
        for name in ("", f".{known.attn}", f".{known.mlp}", f".{known.out}"):
            keep(f"{layer}{name}", modules[f"{known.blocks}.{layer}{name}"])
    with torch.no_grad():
        hf(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    norm, at = modules[known.norm], kept["norm"][0]
    head = modules["lm_head"]
    along = (head.weight[right] - head.weight[wrong]) * getattr(hf.config, "logit_scale", 1.0)
    found: dict[tuple, float] = {}

    def put(key: tuple, part: Tensor) -> None:
        found[key] = float(_normed(family, norm, at, part) @ along)

    put(("embed", None, None), kept["0"][0])
    for layer in range(a.n_layers):
        out, written = modules[f"{known.blocks}.{layer}.{known.out}"], kept[f"{layer}.{known.attn}"][1]
        z, projected = kept[f"{layer}.{known.out}"]
        matrix = out.weight if isinstance(out, transformers.pytorch_utils.Conv1D) else out.weight.T
        post = modules[f"{known.blocks}.{layer}.{known.attn}"] if "norm" in known.attn else None

        def behind(part: Tensor, post=post, projected=projected) -> Tensor:
            return part if post is None else _normed(family, post, projected, part)

        for number in range(a.n_heads):
            own = slice(number * a.d_head, (number + 1) * a.d_head)
            put(("head", layer, number), behind(z[own] @ matrix[own]))
        if out.bias is not None:
            put(("attn_bias", layer, None), behind(out.bias))
        put(("mlp", layer, None), kept[f"{layer}.{known.mlp}"][1])
        assert torch.allclose(behind(projected), written, atol=1e-5)
    if getattr(norm, "bias", None) is not None:
        found["norm_bias", None, None] = float(norm.bias @ along)
    if head.bias is not None:
        found["unembed_bias", None, None] = float(head.bias[right] - head.bias[wrong])
    return found


def keyed(table: pd.DataFrame, pair: str) -> dict[tuple, float]:
    own = table[table["pair"] == pair]
    plain = [[None if value is pd.NA else value for value in own[name]] for name in ("kind", "layer", "head")]
    return dict(zip(zip(*plain, strict=True), own["contribution"], strict=True))


@pytest.mark.parametrize("family", ALL)
def test_every_contribution_is_what_the_family_s_own_formulas_say(family: str) -> None:
    pairs = random_pairs()
    with torch.no_grad():
        result = direct_attribution(double_model(family), pairs)
        for pair in pairs:
            expected = by_hand(family, list(pair.clean.ids), pair.correct[0][0], pair.incorrect[0][0])
            found = keyed(result.table, pair.pair.id)
            assert found.keys() == expected.keys()
            size = max(map(abs, expected.values()))
            tolerance = 1e-10 if family in EXACT else 1e-6  # norms in float32
            for key, value in expected.items():
                assert found[key] == pytest.approx(value, abs=tolerance * size), key


@pytest.mark.parametrize("family", ALL)
def test_contributions_add_up_to_the_logit_difference(family: str) -> None:
    model, pairs = double_model(family), random_pairs()
    totals = direct_attribution(model, pairs).totals.set_index("pair")
    for pair in pairs:
        logits = model.logits(torch.tensor([pair.clean.ids]))[0, -1]
        own = logits[pair.correct[0][0]] - logits[pair.incorrect[0][0]]
        line = totals.loc[pair.pair.id]
        assert line["logit_diff"] == pytest.approx(float(own), abs=1e-9)
        if family == "gemma2":
            uncapped = 30 * torch.atanh(logits / 30)
            own = uncapped[pair.correct[0][0]] - uncapped[pair.incorrect[0][0]]
            assert abs(line["before_cap"] - line["logit_diff"]) > 0.01
        # cohere subtracts the mean in float32
        assert line["sum"] == pytest.approx(float(own), abs=1e-6 if family == "cohere2" else 1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "mixtral", "gpt_oss", "gemma2"])
def test_in_float32_the_sum_is_exact_to_rounding(family: str) -> None:
    model = Model.from_parts(tiny_hf(family), name=family, check=False)
    result = direct_attribution(model, random_pairs())
    size = result.table.groupby("pair", sort=False)["contribution"].apply(lambda values: values.abs().sum()).to_numpy()
    assert (result.totals["error"].abs().to_numpy() <= 1e-6 * size).all()


def test_in_bfloat16_the_sum_is_right_to_the_precision_of_the_residual_stream() -> None:
    model = Model.from_parts(tiny_hf("llama").bfloat16(), name="llama", check=False)
    result, exact = (direct_attribution(one, random_pairs()) for one in (model, double_model("llama")))
    assert 0 < result.totals["error"].abs().max() < 0.05
    np.testing.assert_allclose(result.table["contribution"], exact.table["contribution"], atol=0.1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom"])
def test_heads_split_by_source_add_up_to_the_heads(family: str) -> None:
    model, pairs = double_model(family), random_pairs()
    whole, split = (direct_attribution(model, pairs, by_source=flag).table for flag in (False, True))
    heads = split[split["kind"] == "head"]
    assert set(heads["source_position"]) == set(range(8))
    summed = heads.groupby(["pair", "layer", "head"], sort=False)["contribution"].sum().to_numpy()
    tolerance = 1e-9 if family == "bloom" else 1e-6  # softmax in float32
    np.testing.assert_allclose(summed, whole[whole["kind"] == "head"]["contribution"], atol=tolerance)
    rest = [table[table["kind"] != "head"]["contribution"].to_numpy() for table in (split, whole)]
    np.testing.assert_array_equal(*rest)


def test_a_source_s_share_is_its_weight_times_its_value() -> None:
    model, pair = double_model("gpt2"), random_pairs()[1]
    table = direct_attribution(model, [pair], by_source=True).table
    with torch.no_grad():
        output = model.hf(torch.tensor([pair.clean.ids]), output_attentions=True, output_hidden_states=True)
        block, norm = model.hf.transformer.h[1], model.hf.transformer.ln_f
        v = block.attn.c_attn(block.ln_1(output.hidden_states[1]))[0, :, 64:]  # [seq, d_model]
        last = []
        handle = norm.register_forward_hook(lambda _m, args, _o: last.append(args[0][0, -1]))
        model.hf(torch.tensor([pair.clean.ids]))
        handle.remove()
        along = model.hf.lm_head.weight[pair.correct[0][0]] - model.hf.lm_head.weight[pair.incorrect[0][0]]
        for position in range(8):
            moved = output.attentions[1][0, 2, -1, position] * v[position, 16:24] @ block.attn.c_proj.weight[16:24]
            expected = float(_normed("gpt2", norm, last[0], moved) @ along)
            own = table[(table["layer"] == 1) & (table["head"] == 2) & (table["source_position"] == position)]
            assert own["contribution"].item() == pytest.approx(expected, abs=1e-6)
            assert own["source_role"].item() == pair.clean.roles[position]


def test_of_several_answers_the_preferred_ones_or_their_mean_are_attributed() -> None:
    model = double_model("llama")
    ids = list(random_pairs()[0].clean.ids)
    logits = model.logits(torch.tensor([ids]))[0, -1]
    right, wrong = (11, 12, 13), (20, 21)
    pair = token_pair(0, ids, right, wrong)
    best = direct_attribution(model, [pair]).totals
    mean = direct_attribution(model, [pair], metric="mean_logit_diff").totals
    for name, own in (
        ("logit_diff", logits[list(right)].max() - logits[list(wrong)].max()),
        ("mean_logit_diff", logits[list(right)].mean() - logits[list(wrong)].mean()),
    ):
        totals = best if name == "logit_diff" else mean
        assert totals[name].item() == pytest.approx(float(own), abs=1e-9)
        assert totals["sum"].item() == pytest.approx(float(own), abs=1e-9)
    assert abs(best["sum"].item() - mean["sum"].item()) > 0.01


def test_the_planted_heads_have_the_contributions_that_they_were_given() -> None:
    model = planted_model()
    for pairs in (value_pairs(8), key_pairs(8)):
        result = direct_attribution(model, pairs)
        means = result.means(resamples=100).set_index(["kind", "layer", "head"])["mean"]
        copies, opposes = means["head", 1, 0], means["head", 1, 1]
        assert copies > 1
        assert opposes == pytest.approx(GAIN * copies, abs=1e-5)
        # its only way to the answer leads through the keys of the others
        assert means["head", 0, 0] == pytest.approx(0, abs=1e-5)
        assert means["head", 0, 1] == 0
        assert copies + opposes == pytest.approx(result.totals["logit_diff"].mean(), abs=1e-4)


@pytest.mark.parametrize("name", ["mini", "mini-llama"])
def test_in_a_trained_model_contributions_add_up_in_every_pair(name: str) -> None:
    model = load_model(name, check=False)
    pairs = make_pairs("ioi", 40, 0, model.tokenizer)
    result = direct_attribution(model, pairs)
    assert list(result.totals["pair"]) == [pair.id for pair in pairs]
    for pair, line in zip(pairs, result.totals.to_dict("records"), strict=True):
        ids = torch.tensor([model.tokenizer(pair.clean)["input_ids"]])
        right, wrong = (
            model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*pair.correct, *pair.incorrect)
        )
        logits = model.logits(ids)[0, -1]
        own = float(logits[right[0]] - logits[wrong[0]])
        assert line["logit_diff"] == pytest.approx(own, abs=1e-4)
        assert line["sum"] == pytest.approx(own, abs=1e-4)
    means = result.means(resamples=200)
    assert means["mean"].sum() == pytest.approx(result.totals["logit_diff"].mean(), abs=1e-4)
    assert (means["n_clusters"] == 15).all()
    inside = (means["low"] <= means["mean"]) & (means["mean"] <= means["high"])
    assert inside.mean() > 0.95


def test_the_batch_a_pair_is_in_and_the_order_change_nothing() -> None:
    model, pairs = double_model("gemma2"), random_pairs(6)
    together = direct_attribution(model, pairs)
    alone = [direct_attribution(model, [pair]).table for pair in pairs]
    one, other = together.table, pd.concat(alone, ignore_index=True)
    assert list(one["pair"]) == list(other["pair"])
    np.testing.assert_allclose(one["contribution"], other["contribution"], atol=1e-6)
    backwards = direct_attribution(model, pairs[::-1]).totals
    assert list(backwards["pair"]) == [pair.pair.id for pair in pairs[::-1]]


def test_the_corrupted_prompt_can_be_attributed() -> None:
    model, ids = double_model("gpt2"), list(random_pairs()[0].clean.ids)
    other = [*ids[:2], 50, *ids[3:]]
    pair = token_pair(0, ids, corrupted=other)
    found = direct_attribution(model, [pair], run="corrupted").table["contribution"]
    expected = direct_attribution(model, [token_pair(0, other)]).table["contribution"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(PairsError, match="no corrupted prompt"):
        direct_attribution(model, [token_pair(0, ids)], run="corrupted")


def test_means_count_clusters_and_pool_positions_of_a_role() -> None:
    model, pairs = double_model("gpt2"), random_pairs(6)
    split = direct_attribution(model, pairs, by_source=True).table
    means = mean_contributions(split, resamples=300)
    first = means[(means["kind"] == "head") & (means["layer"] == 2) & (means["head"] == 1)]
    assert set(first["source_role"]) == {"first", "further", "last"}
    own = split[(split["kind"] == "head") & (split["layer"] == 2) & (split["head"] == 1)]
    further = own[own["source_role"] == "further"].groupby("pair")["contribution"].sum()
    line = first[first["source_role"] == "further"].iloc[0]
    assert line["mean"] == pytest.approx(further.mean())
    assert line["sd"] == pytest.approx(further.std())
    assert (line["n"], line["n_clusters"]) == (6, 3)
    assert line["low"] < line["mean"] < line["high"]
    assert means["mean"].sum() == pytest.approx(split["contribution"].sum() / 6)
    single = mean_contributions(direct_attribution(model, pairs[:1]).table, resamples=50)
    assert single["low"].isna().all()


def test_a_pair_without_a_role_does_not_count_there() -> None:
    model = double_model("gpt2")
    pairs = [*random_pairs(4, (6,)), token_pair(4, [9, 8])]
    split = direct_attribution(model, pairs, by_source=True).table
    keys = ["kind", "layer", "head", "source_role"]
    means, without = (
        mean_contributions(table, resamples=200).set_index(keys).loc[("head", 1, 2, "further")]
        for table in (split, split[split["pair"] != "p4"])
    )
    assert means["n"] == without["n"] == 4
    assert means["mean"] == pytest.approx(without["mean"])
    assert means["sd"] == pytest.approx(without["sd"])
    # the same clusters have it, so the interval is about that of the four pairs, not one drawn towards 0 by a fifth
    for limit in ("low", "high"):
        assert means[limit] == pytest.approx(without[limit], abs=0.3 * without["sd"])


def test_attention_is_given_as_a_whole_where_heads_cannot_be_told_apart() -> None:
    hf = tiny_hf("gpt2").double()
    found = without_sites(find(hf), {"z": "Heads are hidden in this test."})
    model = Model(hf, None, found, name="headless", source="memory")
    result, whole = direct_attribution(model, random_pairs()), direct_attribution(double_model("gpt2"), random_pairs())
    assert "head" not in set(result.table["kind"])
    assert "Heads are hidden in this test." in result.notes[0]
    attention = whole.table[whole.table["kind"].isin(["head", "attn_bias"])]
    expected = attention.groupby(["pair", "layer"], sort=False)["contribution"].sum()
    np.testing.assert_allclose(result.table[result.table["kind"] == "attn"]["contribution"], expected, atol=1e-9)
    np.testing.assert_allclose(result.totals["sum"], whole.totals["sum"], atol=1e-9)


def _granite(**over) -> Model:
    config = transformers.GraniteConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=99, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=None,
        tie_word_embeddings=False, **over,
    )  # fmt: skip
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Model.from_parts(hf.double(), name="granite", check=False)


def test_multipliers_are_respected_or_refused() -> None:
    model = _granite(logits_scaling=8.0, embedding_multiplier=3.0)
    assert head_form(model).scale == 1 / 8
    result = direct_attribution(model, random_pairs(2))
    logits = model.logits(torch.tensor([random_pairs(2)[0].clean.ids]))[0, -1]
    pair = random_pairs(2)[0]
    own = float(logits[pair.correct[0][0]] - logits[pair.incorrect[0][0]])
    assert result.totals["sum"].iloc[0] == pytest.approx(own, abs=1e-9)
    with pytest.raises(SiteError, match="scaled residual"):
        direct_attribution(_granite(residual_multiplier=0.3), random_pairs(2))


def test_what_else_writes_into_the_residual_stream_is_no_silent_error() -> None:
    model = Model.from_parts(tiny_hf("gpt2").double(), name="odd", check=False)
    pairs = random_pairs(2)
    model.hf.transformer.h[2].register_forward_pre_hook(lambda _m, args: (args[0] + 0.05, *args[1:]))
    model.hf.transformer.h[2].register_forward_pre_hook(lambda _m, args: (args[0] * 1.01, *args[1:]))
    with pytest.raises(CheckError, match="do not add up"):
        direct_attribution(model, pairs)


def test_what_cannot_be_attributed_is_refused_with_a_sentence() -> None:
    pairs = random_pairs(2)
    with pytest.raises(SiteError, match="does not offer pattern"):
        direct_attribution(double_model("falcon"), pairs, by_source=True)
    # norm after the addition, and a projection behind it (OPT-350m)
    hf = tiny_hf("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    with pytest.raises(SiteError, match="to another width before the head"):
        direct_attribution(Model.from_parts(hf, name="opt", check=False), pairs)
    with pytest.raises(ModelError, match="no tokenizer"):
        direct_attribution(double_model("gpt2"), value_pairs(2))
    long = token_pair(0, [5, 6, 7, 8], (11,))
    with pytest.raises(PairsError, match="single token"):
        direct_attribution(double_model("gpt2"), [_with_answer(long, ((11, 12),))])
    with pytest.raises(PairsError, match="at most 64"):
        direct_attribution(double_model("gpt2"), [token_pair(0, [5] * 65)])
    with pytest.raises(PairsError, match="no pairs"):
        direct_attribution(double_model("gpt2"), [])
    with pytest.raises(PairsError, match="more than once: p0"):
        direct_attribution(double_model("gpt2"), [*pairs, pairs[0]])
    for wrong in ({"metric": "prob"}, {"run": "noised"}, {"cluster": "relation"}):
        with pytest.raises(UnknownNameError, match=f"Unknown {next(iter(wrong))}"):
            direct_attribution(double_model("gpt2"), pairs, **wrong)


def test_weights_that_are_elsewhere_until_needed_give_the_same_numbers() -> None:
    here, elsewhere = (
        load_model("mini", device=device, resident_gb=1e-3, check=False) for device in ("cpu", "offload")
    )
    assert is_offloaded(elsewhere.hf)
    pairs = make_pairs("ioi", 4, 0, here.tokenizer)
    one, other = (direct_attribution(model, pairs, by_source=True).table for model in (here, elsewhere))
    pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(*(logit_lens(model, pairs) for model in (here, elsewhere)))
    scores = [attention_scores(model, sequences=2, copied=8).table for model in (here, elsewhere)]
    pd.testing.assert_frame_equal(*scores)


def _with_answer(pair, correct):
    return type(pair)(pair.pair, pair.clean, pair.corrupted, correct, pair.incorrect, pair.alignment)


def test_norms_and_matrices_are_recognised_by_what_they_do() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    norm = nn.LayerNorm(32, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(32, generator=generator))
        norm.bias.copy_(torch.randn(32, generator=generator))
    frozen = frozen_norm(norm, x, norm(x))
    assert frozen is not None
    direction = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    expected = ((norm(x) - norm.bias) * direction).sum(-1)
    torch.testing.assert_close((x * frozen.back(direction)).sum(-1), expected.detach())
    # no norm at all, and a norm whose scale is not one for each position
    assert frozen_norm(nn.Tanh(), x, torch.tanh(x)) is None
    assert frozen_norm(norm, x, norm(x) * torch.linspace(1, 2, 32)) is None

    # the gain is read to full precision where the norm computes in half of it
    half = nn.LayerNorm(32, dtype=torch.bfloat16)
    with torch.no_grad():
        half.weight.copy_(norm.weight)
        half.bias.copy_(norm.bias)
    rough = frozen_norm(half, x.bfloat16(), half(x.bfloat16()))
    assert rough is not None
    ratio = rough.factors / half.weight.double()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-12, atol=0)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(32, 7, dtype=torch.float64)

        def forward(self, value: Tensor) -> Tensor:
            return self.inner(value)

    module = Wrapped()
    torch.testing.assert_close(matrix_of(module, x), module.inner.weight.detach())
    torch.testing.assert_close(constant_of(module, x), module.inner.bias.detach())
