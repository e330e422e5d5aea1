"""ROME against a plain loop, its closed form on every family, and what a user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engramscope.edit.catalogue import make_editor
from engramscope.edit.delta import LowRank
from engramscope.edit.edit import Edit
from engramscope.edit.keys import subject_keys, with_prefixes
from engramscope.edit.matrices import LinearMap, down_projection
from engramscope.edit.rank_one import RankOneOptions, rome_place
from engramscope.errors import InputError, SiteError, StudyError
from engramscope.models.model import Model
from engramscope.models.weights import weight_tensors
from engramscope.records.fact import Fact
from tests.edit import plain_rome
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.tiny_models import tiny_hf, tiny_model
from tests.tiny_study import NAMES, SENTENCES, tokenizer

TEXTS = [sentence.format(name) + "." for sentence in SENTENCES for name in NAMES]
SMALL: dict[str, Any] = {"layer": 1, "prefixes": ((2, 3), (1, 5)), "steps": 6}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that name texts and a cache."""
    folder = tmp_path_factory.mktemp("rome")
    (folder / "texts.txt").write_text("\n\n".join(TEXTS))
    return {**SMALL, "texts": folder / "texts.txt", "cache": folder / "cache", "tokens": 200, "eps": 1e-3}


def change_of(edit: Edit, linear: LinearMap) -> Tensor:
    """ΔW [n_in, n_out]."""
    delta = edit.deltas[linear.name].dense()
    return delta if linear.stored_as_written else delta.T


def in_float64(family: str) -> Model:
    words = tokenizer(bos=family == "llama")
    return Model.from_parts(tiny_hf(family, vocab_size=len(words)).double(), words, name=family, check=False)


@pytest.mark.parametrize(("family", "fact", "denominator", "eps"), [
    ("gpt2", FACT, "prompt", 1e-3), ("gptj", OTHER, "mean", 1e-3),
    # in float32 with a well-conditioned matrix: in float64 these mask with numbers that are infinite inside softmax
    ("llama", OTHER, "mean", 1.0), ("gemma2", FACT, "prompt", 1.0), ("opt", OTHER, "mean", 1.0),
])  # fmt: skip
def test_the_whole_edit_is_that_of_a_plain_loop(
    family: str, fact: Fact, denominator: str, eps: float, given: dict[str, Any]
) -> None:
    model = in_float64(family) if eps < 1 else shared_model(family)
    linear = down_projection(model, 1)
    edit = make_editor("rome", {**given, "denominator": denominator, "eps": eps}).compute(model, fact, seed=3)
    moment = plain_rome.second_moment(model, linear.module, TEXTS, 200, 64)
    wanted = plain_rome.matrix_change(
        model, linear.module, fact, list(edit.prefixes), moment, eps, denominator, steps=6
    )  # fmt: skip
    assert len(edit.prefixes) == 3
    found = change_of(edit, linear).double()
    assert float((found - wanted).norm() / wanted.norm()) < (1e-6 if eps < 1 else 1e-3)
    losses = plain_rome.optimised(model, linear.module, fact, list(edit.prefixes), steps=6)[1]
    (entry,) = edit.diagnostics["facts"]
    assert entry["losses"] == pytest.approx(losses, rel=1e-6 if eps < 1 else 1e-4)


@pytest.mark.parametrize("family", EDITABLE)
def test_the_edited_projection_maps_the_key_to_the_value(family: str, given: dict[str, Any]) -> None:
    model = shared_model(family)
    bits = {name: value.clone() for name, value in weight_tensors(model.hf).items()}
    linear = down_projection(model, 1)
    editor = make_editor("rome", given)
    edit = editor.compute(model, FACT)
    (entry,) = edit.diagnostics["facts"]
    delta = edit.deltas[linear.name]
    assert isinstance(delta, LowRank)
    assert delta.left.shape[1] == 1
    asks = with_prefixes(model, [FACT], edit.prefixes)
    key = subject_keys(model, linear, asks, [1 / len(asks[0])] * len(asks[0])).mean[0]
    # δ is the value side of the update, scaled so that the key side gives 1 for k*
    value_side = (delta.right if linear.stored_as_written else delta.left.T)[0]
    before = linear.module(key).detach()
    with edit.applied(model):
        after = linear.module(key).detach()
    torch.testing.assert_close(after, before + value_side, rtol=1e-5, atol=1e-5)
    start = plain_rome.run(model, linear.module, list(asks[0][0].prompt), asks[0][0].subject or 0, None)[
        "value"
    ].detach()
    assert float(value_side.norm() / start.norm()) == pytest.approx(entry["delta_over_value"], rel=1e-5)
    assert entry["relative_change"] == pytest.approx(edit.norms(model)[linear.name], rel=1e-5)
    assert all(torch.equal(value, bits[name]) for name, value in weight_tensors(model.hf).items())
    assert not linear.module._forward_hooks
    assert not linear.module._forward_pre_hooks
    again = make_editor("rome", given).compute(model, FACT)
    assert torch.equal(again.deltas[linear.name].dense(), delta.dense())
    if edit.prefixes != ("", "", ""):  # the tiny gemma2 writes nothing but special tokens
        other = make_editor("rome", given).compute(model, FACT, seed=1)
        assert not torch.allclose(other.deltas[linear.name].dense(), delta.dense())


def test_nothing_global_is_drawn_from_and_no_gradient_is_left(given: dict[str, Any]) -> None:
    model = tiny_with_tokenizer("llama")
    for parameter in model.hf.parameters():
        parameter.requires_grad_(True)
    model.hf.train()
    state = torch.get_rng_state()
    make_editor("rome", given).compute(model, FACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.hf.parameters())
    assert model.hf.training


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_model_in_training_mode_is_edited_as_one_that_is_not(
    method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    words = tokenizer()
    hf = tiny_hf("gpt2", vocab_size=len(words), resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    model = Model.from_parts(hf, words, name="dropping")
    given = {key: value for key, value in given.items() if key != "layer"}
    given |= {"layer": 1} if method == "rome" else {"layers": (1,)}
    wanted = make_editor(method, given).compute(model, FACT)
    hf.train()
    state = torch.get_rng_state()
    found = make_editor(method, {**given, "cache": tmp_path}).compute(model, FACT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in hf.modules())
    assert found.prefixes == wanted.prefixes
    for name, delta in wanted.deltas.items():
        assert torch.equal(found.deltas[name].dense(), delta.dense())


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_loss_that_is_no_number_does_not_pass_for_a_low_one(method: str, given: dict[str, Any]) -> None:
    model = tiny_with_tokenizer("gpt2")
    with torch.no_grad():
        model.hf.transformer.h[2].mlp.c_proj.weight[0, 0] = torch.nan
    given = {key: value for key, value in given.items() if key != "layer"}
    given |= {"layer": 1} if method == "rome" else {"layers": (0, 1)}
    with pytest.raises(InputError, match="The loss of a new value is not a number after 0 steps"):
        make_editor(method, {**given, "prefixes": ()}).compute(model, FACT)
    with pytest.raises(InputError, match="no texts can be drawn from it"):
        make_editor(method, given).compute(model, FACT)


def test_the_edit_makes_the_model_say_the_target_and_says_so(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    edit = make_editor("rome", {**given, "steps": 60, "clamp": 50.0, "prefixes": ()}).compute(model, OTHER)
    (entry,) = edit.diagnostics["facts"]
    prompt = model.tokenizer(OTHER.prompt)["input_ids"]
    target = model.tokenizer(" " + OTHER.target)["input_ids"]
    assert len(target) == 2

    def probability() -> float:
        logs = model.logits(torch.tensor([[*prompt, *target]]))[0].log_softmax(-1)
        return float(torch.stack([logs[len(prompt) - 1 + k, token] for k, token in enumerate(target)]).mean().exp())

    assert entry["probability_before"] == pytest.approx(probability(), rel=1e-4)
    with edit.applied(model):
        assert entry["probability_after"] == pytest.approx(probability(), rel=1e-4)
    assert entry["probability_after"] > 10 * entry["probability_before"]
    assert edit.settings["clamp"] == 50.0
    assert edit.settings["layer"] == 1


def test_edits_of_several_facts_lie_one_on_the_other(given: dict[str, Any]) -> None:
    model = tiny_with_tokenizer("gpt2")
    both = make_editor("rome", given).compute(model, [FACT, OTHER])
    first = make_editor("rome", given).compute(model, FACT)
    with first.applied(model):
        second = make_editor("rome", given).compute(model, OTHER)
    (name,) = both.deltas
    wanted = first.deltas[name].dense() + second.deltas[name].dense()
    torch.testing.assert_close(both.deltas[name].dense(), wanted, rtol=1e-5, atol=1e-7)
    alone = make_editor("rome", given).compute(model, OTHER)
    assert not torch.allclose(alone.deltas[name].dense(), second.deltas[name].dense())


def test_an_editor_that_is_used_again_forgets_what_no_longer_holds(given: dict[str, Any]) -> None:
    first, second = tiny_with_tokenizer("gpt2"), tiny_with_tokenizer("gpt2", seed=1)
    editor = make_editor("rome", given)
    below = make_editor("rome", {**given, "layer": 0}).compute(first, OTHER)
    editor.compute(first, FACT)
    (name,) = editor.compute(second, FACT).deltas
    for model, edits in ((second, []), (first, [below]), (first, [])):
        for edit in edits:
            edit.apply(model)
        again, fresh = (one.compute(model, FACT).deltas[name].dense() for one in (editor, make_editor("rome", given)))
        assert torch.equal(again, fresh)
        for edit in edits:
            edit.revert(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_edit_is_float32_and_is_felt(dtype: torch.dtype, given: dict[str, Any]) -> None:
    words = tokenizer()
    hf = tiny_hf("gpt2", vocab_size=len(words))
    whole = Model.from_parts(hf, words, name="whole", check=False)
    wide = make_editor("rome", given).compute(whole, FACT)
    model = Model.from_parts(tiny_hf("gpt2", vocab_size=len(words)).to(dtype), words, name="half", check=False)
    options = {**given, "mom2": False}
    edit = make_editor("rome", options).compute(model, FACT)
    (name,) = edit.deltas
    assert edit.deltas[name].dense().dtype == torch.float32
    (entry,) = edit.diagnostics["facts"]
    assert entry["probability_after"] > entry["probability_before"]
    assert entry["losses"][0] == pytest.approx(wide.diagnostics["facts"][0]["losses"][0], rel=0.1)


def test_the_published_layers_and_what_is_said_of_others(given: dict[str, Any]) -> None:
    class Sized:
        source, name = "hub", "m"

        def __init__(self, kind: str, layers: int) -> None:
            self.anatomy = type("A", (), {"model_type": kind, "n_layers": layers})()

    for kind, layers, layer, clamp in (
        ("gpt2", 24, 8, 3.0), ("gpt2", 36, 12, 4.0), ("gpt2", 48, 17, 4.0), ("gptj", 28, 5, 4.0),
        ("gpt_neox", 44, 15, 4.0),
    ):  # fmt: skip
        options, place, note = rome_place(Sized(kind, layers), RankOneOptions())  # type: ignore[arg-type]
        assert (place.layer, options.clamp, note) == (layer, clamp, None)
    own, place, note = rome_place(Sized("gpt2", 24), RankOneOptions(layer=3, clamp=4.0))  # type: ignore[arg-type]
    assert (place.layer, own.clamp, note) == (3, 4.0, None)
    edit = make_editor("rome", {**given, "layer": None}).compute(shared_model("mistral"), FACT)
    assert any("No layer is published" in note for note in edit.notes)
    assert any("passes" in note for note in make_editor("rome", given).compute(shared_model("gemma2"), FACT).notes)


def test_what_is_suspicious_is_said(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    start = Fact("Anna met", "Anna", "drum", id="start")
    ids = model.tokenizer("Anna met")["input_ids"]
    assert model.tokenizer.decode(ids[:1]) in ("Anna", "An", "A")
    edit = make_editor("rome", {**given, "steps": 2, "clamp": 0.01}).compute(model, FACT)
    (entry,) = edit.diagnostics["facts"]
    assert entry["clamped"]
    assert entry["delta_over_value"] == pytest.approx(0.01, rel=1e-4)
    assert any("most probable continuation" in note for note in edit.notes)
    assert any("anna:" in sentence and "as much as it may be" in sentence for sentence in entry["warnings"])
    del start


def test_the_release_divides_by_the_key_of_the_prompt_alone(given: dict[str, Any]) -> None:
    editor = make_editor("rome", given, preset="rome-2022")
    assert editor.options.denominator == "prompt"  # type: ignore[attr-defined]
    assert make_editor("rome", {}, preset="rome-2022").options.eps == 0.0  # type: ignore[attr-defined]
    model = shared_model("gpt2")
    linear = down_projection(model, 1)
    faithful, own = (
        make_editor("rome", {**given, "denominator": way}).compute(model, FACT) for way in ("prompt", "mean")
    )
    ratio = own.diagnostics["facts"][0]["key_ratio"]
    assert abs(ratio - 1) > 1e-3
    torch.testing.assert_close(change_of(faithful, linear) * ratio, change_of(own, linear), rtol=1e-4, atol=1e-7)


def test_the_last_token_of_the_prompt_may_be_edited_instead(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    linear = down_projection(model, 1)
    edit = make_editor("rome", {**given, "token": "last", "prefixes": (), "mom2": False}).compute(model, FACT)
    ids = model.tokenizer(FACT.prompt)["input_ids"]
    key = plain_rome.run(model, linear.module, ids, len(ids) - 1, None)["key"].detach()
    side = change_of(edit, linear) @ torch.ones(linear.n_out)
    torch.testing.assert_close(side / side.norm(), (key / key.norm()) * torch.sign(side @ key), rtol=1e-4, atol=1e-5)


def test_at_the_end_of_the_prompt_the_divergence_is_read_at_the_end_too(given: dict[str, Any]) -> None:
    model = in_float64("gpt2")
    alike = {"steps": 6, "kl": 5.0, "clamp": 20.0}
    edit = make_editor("rome", {**given, **alike, "token": "last", "mom2": False}).compute(model, OTHER)
    module = down_projection(model, 1).module
    for at_the_end, same in ((True, True), (False, False)):
        losses = plain_rome.optimised(model, module, OTHER, list(edit.prefixes), at_the_end=at_the_end, **alike)[1]
        assert (edit.diagnostics["facts"][0]["losses"] == pytest.approx(losses, rel=1e-6)) == same


def test_bad_options_and_models_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no layer 9"):
        make_editor("rome", {**given, "layer": 9}).compute(shared_model("gpt2"), FACT)
    with pytest.raises(StudyError, match="clamp"):
        make_editor("rome", {"clamp": -1})
    with pytest.raises(StudyError, match="how many, how long"):
        make_editor("rome", {"prefixes": [[1, 0]]})
    words = tokenizer()
    experts = tiny_model("mixtral", vocab_size=len(words))
    with pytest.raises(SiteError, match="cannot be edited in its MLPs"):
        make_editor("rome", {**given, "layer": 0}).compute(
            Model.from_parts(experts.hf, words, name="mixtral", check=False), FACT
        )
    with pytest.raises(InputError, match="There is no file or folder of texts"):
        make_editor("rome", {**given, "texts": tmp_path / "none"}).compute(shared_model("gpt2"), FACT)
    silent = tiny_with_tokenizer("gpt2")
    with torch.no_grad():
        silent.hf.transformer.h[1].mlp.c_fc.weight.zero_()
        silent.hf.transformer.h[1].mlp.c_fc.bias.zero_()
    with pytest.raises(InputError, match="gives nothing to write to"):
        make_editor("rome", {**given, "mom2": False}).compute(silent, FACT)


def test_the_control_is_the_same_edit_elsewhere(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    places = set()
    for seed in range(12):
        edit = make_editor("random_site", {**given, "steps": 1, "mom2": False}).compute(model, FACT, seed=seed)
        (entry,) = edit.diagnostics["facts"]
        places.add(entry["layer"])
        assert any("This is a control" in note for note in edit.notes)
    assert places == {0, 2}
    assert make_editor("random_site").control
    edit = make_editor("random_site", given).compute(model, FACT, seed=2)
    same = make_editor("rome", {**given, "layer": edit.diagnostics["facts"][0]["layer"]}).compute(model, FACT, seed=2)
    (name,) = edit.deltas
    assert torch.equal(edit.deltas[name].dense(), same.deltas[name].dense())


def test_the_control_can_take_another_token_and_never_the_usual_one(given: dict[str, Any]) -> None:
    from engramscope.edit.editors.random_site import drawn_place
    from engramscope.edit.rank_one import Place

    for family in ("gpt2", "llama"):
        model = shared_model(family)
        ids = model.tokenizer(FACT.prompt)["input_ids"]
        specials = int(family == "llama")
        start = FACT.prompt.index(FACT.subject)
        taken = plain_rome.last_token_of(model, FACT.prompt, start, start + len(FACT.subject))
        drawn = {
            len(ids) - (drawn_place(model, FACT, Place(1), seed, other_token=True).from_end or 0) for seed in range(200)
        }
        assert drawn == set(range(specials, len(ids))) - {taken}
    edit = make_editor("random_site", {**given, "position": "random"}).compute(shared_model("gpt2"), FACT)
    assert any("a token drawn beside it" in note for note in edit.notes)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("method", "more"),
    [("rome", {}), ("rome", {"layer": 2}), ("memit", {"layers": (0, 1)}), ("alphaedit", {"layers": (1, 2)}), ("ft", {}),
     ("ft", {"layer": 0, "bias": True}), ("ft_l", {"layer": 2})],
)  # fmt: skip
def test_an_edit_changes_what_the_editor_says_it_changes(
    method: str, more: dict[str, Any], family: str, given: dict[str, Any]
) -> None:
    model = shared_model(family)
    options = {"steps": 2} if method.startswith("ft") else {**given, "prefixes": (), "steps": 2}
    options = {key: value for key, value in options.items() if key != "layer"} | more
    editor = make_editor(method, options)
    assert set(editor.compute(model, FACT).deltas) == set(editor.places(model))
    missing = {"layers": (9,)} if "layers" in more else {"layer": 9}
    with pytest.raises(InputError, match="There is no layer 9"):
        make_editor(method, {**options, **missing}).places(model)
