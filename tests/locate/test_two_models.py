"""Weight transplant and cross-model patching give what plain copies of modules and plain hooks give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engramscope import patch
from engramscope.errors import InputError
from engramscope.models import Model
from engramscope.models.weights import borrowed, distances, tensors_of, weight_parts, weight_tensors
from engramscope.pairs import Pair, PairSet
from tests.tiny_models import tiny_hf
from tests.tiny_study import pair_rows, tokenizer

#: where each family keeps its blocks, and what their attention and MLP are called: written down by hand, as an oracle
PATHS = {
    "gpt2": ("transformer.h", "attn", "mlp", ("ln_1", "ln_2"), ("transformer.wte", "transformer.wpe")),
    "llama": ("model.layers", "self_attn", "mlp", ("input_layernorm", "post_attention_layernorm"),
              ("model.embed_tokens",)),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", ("input_layernorm", "post_attention_layernorm"),
                 ("gpt_neox.embed_in",)),
    "gemma2": ("model.layers", "self_attn", "mlp",
               ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                "post_feedforward_layernorm"), ("model.embed_tokens",)),
    "gpt_neo": ("transformer.h", "attn", "mlp", ("ln_1", "ln_2"), ("transformer.wte", "transformer.wpe")),
    "falcon": ("transformer.h", "self_attention", "mlp", ("input_layernorm",), ("transformer.word_embeddings",)),
}  # fmt: skip
FAMILIES = tuple(PATHS)
#: modules whose output is what is added to the residual stream
OUTPUTS = {"gemma2": {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}}


def _tolerance(family: str) -> float:
    return 1e-5 if family == "gpt_neo" else 1e-9  # its attention computes in float32


def _tuned(hf: Any, where: str = "", seed: int = 7, size: float = 0.2) -> Any:
    """A copy whose weights moved, everywhere or under one path."""
    moved, generator = copy.deepcopy(hf), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name.startswith(where):
                scale = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else 1.0
                parameter.add_(size * scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return moved


def _models(family: str, where: str = "", dtype: torch.dtype = torch.float64) -> tuple[Model, Model]:
    words = tokenizer()
    hf = tiny_hf(family, vocab_size=len(words)).to(dtype)
    tuned = _tuned(hf, where)
    return Model.from_parts(tuned, words, name="tuned"), Model.from_parts(hf, words, name="base")


def _pairs(count: int = 3) -> PairSet:
    return PairSet(
        tuple(
            Pair(id=row["id"], clean=row["clean"], correct=tuple(row["correct"]), incorrect=tuple(row["incorrect"]),
                 group=row["group"], spans={"subject": tuple(row["spans"]["subject"])})
            for row in pair_rows(count)
        )
    )  # fmt: skip


def _difference(hf: Any, words: Any, pair: Pair) -> float:
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([words(pair.clean)["input_ids"]]), use_cache=False).logits[0, -1]
    right, wrong = (words(answer)["input_ids"][0] for answer in (pair.correct[0], pair.incorrect[0]))
    return float(logits[right] - logits[wrong])


def _with_modules(target: Any, source: Any, paths: list[str]) -> Any:
    """A copy of `target` with whole modules of `source`, by their state dicts."""
    mixed = copy.deepcopy(target)
    for path in paths:
        mixed.get_submodule(path).load_state_dict(source.get_submodule(path).state_dict())
    return mixed


def _modules(family: str, part: str, layer: int | None) -> list[str]:
    blocks, attention, mlp, norms, embeddings = PATHS[family]
    if layer is None:
        return list(embeddings)
    names = {"block": [""], "attn": [f".{attention}"], "mlp": [f".{mlp}"], "norms": [f".{norm}" for norm in norms]}
    return [f"{blocks}.{layer}{name}" for name in names[part]]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("part", ["block", "attn", "mlp", "norms", "embed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transplant_is_a_model_with_the_others_module(family: str, part: str, direction: Any) -> None:
    tuned, base = _models(family)
    pairs = _pairs()
    found = patch(
        tuned, pairs, f"weights:{part}", corruption="base_model", base=base, direction=direction, resamples=100, check=0
    ).effects
    target, source = (base.hf, tuned.hf) if direction == "denoise" else (tuned.hf, base.hf)
    assert len(found) == len(pairs) * (1 if part == "embed" else 3)
    for row in found.itertuples():
        pair = next(pair for pair in pairs if pair.id == row.pair)
        layer = None if part == "embed" else int(row.layer)
        mixed = _with_modules(target, source, _modules(family, part, layer))
        assert row.patched == pytest.approx(_difference(mixed, tuned.tokenizer, pair), abs=_tolerance(family))
        assert row.clean == pytest.approx(_difference(tuned.hf, tuned.tokenizer, pair), abs=_tolerance(family))
        assert row.corrupted == pytest.approx(_difference(base.hf, tuned.tokenizer, pair), abs=_tolerance(family))
        assert row.effect != 0
        assert not row.cut


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layer_groups_and_single_modules(family: str) -> None:
    tuned, base = _models(family)
    pairs = _pairs()
    blocks, attention, mlp, *_ = PATHS[family]
    windows = patch(tuned, pairs, "weights:mlp", window=2, corruption="base_model", base=base, resamples=100, check=0)
    path = f"{blocks}.{{layer}}.{attention}." + {"gpt2": "c_attn", "llama": "q_proj"}[family]
    single = patch(tuned, pairs, f"weights:{path}", corruption="base_model", base=base, resamples=100, check=0)
    wide = windows.effects[windows.effects["window"] == 2]
    for pair in pairs:
        rows = wide[wide["pair"] == pair.id].set_index("layer")["patched"]
        for centre, layers in ((0, [0]), (1, [0, 1]), (2, [1, 2])):
            mixed = _with_modules(base.hf, tuned.hf, [f"{blocks}.{layer}.{mlp}" for layer in layers])
            assert rows[centre] == pytest.approx(_difference(mixed, tuned.tokenizer, pair), abs=1e-9)
        rows = single.effects[single.effects["pair"] == pair.id].set_index("layer")["patched"]
        for layer in range(3):
            mixed = _with_modules(base.hf, tuned.hf, [path.format(layer=layer)])
            assert rows[layer] == pytest.approx(_difference(mixed, tuned.tokenizer, pair), abs=1e-9)


def _values(hf: Any, path: str, ids: list[int]) -> Tensor:
    seen: list[Tensor] = []
    handle = hf.get_submodule(path).register_forward_hook(lambda m, a, out: seen.append(_tensor(out).clone()))
    with torch.no_grad():
        hf(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return seen[0]


def _tensor(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _given(hf: Any, path: str, ids: list[int], value: Tensor, at: list[int]) -> Tensor:
    def put(module: nn.Module, args: Any, out: Any) -> Any:
        new = _tensor(out).clone()
        new[:, at] = value[:, at]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = hf.get_submodule(path).register_forward_hook(put)
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_post"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cross_model_patching_is_a_hook_with_the_other_models_value(family: str, site: str, direction: Any) -> None:
    tuned, base = _models(family)
    pairs, words = _pairs(2), tuned.tokenizer
    blocks, attention, mlp, *_ = PATHS[family]
    inside = {"attn_out": attention, "mlp_out": mlp, **OUTPUTS.get(family, {})}
    found = patch(
        tuned, pairs, site, corruption="base_model", base=base, direction=direction, positions="each", resamples=100,
        check=0,
    ).effects  # fmt: skip
    target, source = (base.hf, tuned.hf) if direction == "denoise" else (tuned.hf, base.hf)
    for row in found.itertuples():
        pair = next(pair for pair in pairs if pair.id == row.pair)
        ids = words(pair.clean)["input_ids"]
        path = f"{blocks}.{int(row.layer)}" + ("" if site == "resid_post" else f".{inside[site]}")
        logits = _given(target, path, ids, _values(source, path, ids), [int(row.position)])
        right, wrong = (words(answer)["input_ids"][0] for answer in (pair.correct[0], pair.incorrect[0]))
        assert row.patched == pytest.approx(float(logits[right] - logits[wrong]), abs=_tolerance(family))


@pytest.mark.parametrize("site", ["q", "k", "v", "z", "pattern", "mlp_act", "embed", "final_norm", "resid_mid"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_site_agrees_with_whole_forwards(family: str, site: str) -> None:
    tuned, base = _models(family)
    heads = "each" if site in ("q", "k", "v", "z", "pattern") else "all"
    ways = [
        patch(tuned, _pairs(2), site, heads=heads, corruption="base_model", base=base, direction="both", resamples=100,
              executor=executor, check=4 if executor == "traversal" else 0)
        for executor in ("traversal", "reference")
    ]  # fmt: skip
    one, two = (way.effects["patched"].astype(float) for way in ways)
    assert (one - two).abs().max() < 1e-9
    assert ways[0].parity is not None
    assert ways[0].parity.max_abs_diff < 1e-9


@pytest.mark.parametrize(("family", "module"), [("gpt2", "transformer.h.1.mlp"), ("llama", "model.layers.1.self_attn")])
def test_frozen_elsewhere_the_module_is_everything_and_upstream_is_nothing(family: str, module: str) -> None:
    tuned, base = _models(family, where=f"{module}.", dtype=torch.float32)
    part = "mlp" if module.endswith("mlp") else "attn"
    out = f"{part}_out"
    upstream = {"resid_pre": (0, 1), "attn_out": (0,) if part == "attn" else (0, 1), "mlp_out": (0,)}
    for site in ("resid_pre", "attn_out", "mlp_out", f"weights:{part}", "weights:block", "weights:norms"):
        result = patch(tuned, _pairs(4), site, corruption="base_model", base=base, direction="both", resamples=100)
        assert result.parity is not None
        assert result.parity.passed
        for row in result.effects.itertuples():
            gone = 1.0 if row.direction == "denoise" else 0.0
            if site in (out, f"weights:{part}", "weights:block") and row.layer == 1:
                assert row.recovery == gone
                assert row.cut
            elif site.startswith("weights:") or row.layer in upstream[site]:
                assert row.effect == 0.0
                assert not row.cut
            elif site == "resid_pre":  # everything that differs has passed it, at all positions
                assert row.cut
                assert row.recovery == gone
            else:
                assert row.effect != 0.0
                assert not row.cut


def test_the_models_are_as_they_were_afterwards() -> None:
    tuned, base = _models("llama")
    before = [(model.weight_hash(), copy.deepcopy(weight_tensors(model.hf))) for model in (tuned, base)]
    for site in ("weights:block", "weights:embed", "mlp_out"):
        patch(tuned, _pairs(2), site, corruption="base_model", base=base, direction="both", resamples=100)
    for model, (known, tensors) in zip((tuned, base), before, strict=True):
        assert model.weight_hash() == known
        assert all(torch.equal(value, tensors[name]) for name, value in weight_tensors(model.hf).items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_what_was_borrowed_is_given_back_where_a_forward_fails() -> None:
    tuned, base = _models("gpt2")
    kept = copy.deepcopy(weight_tensors(base.hf))
    names = tensors_of(base, "weights:mlp", 0)

    def fail() -> None:
        with borrowed(base.hf, tuned.hf, names):
            assert not torch.equal(weight_tensors(base.hf)[names[0]], kept[names[0]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(torch.equal(value, kept[name]) for name, value in weight_tensors(base.hf).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_hold_every_tensor_once_and_distances_are_norms(family: str) -> None:
    tuned, base = _models(family)
    parts = weight_parts(base)
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(weight_tensors(base.hf))
    old, new = weight_tensors(base.hf), weight_tensors(tuned.hf)
    found = {(row.part, row.layer): row for row in distances(base, tuned.hf)}
    for key, members in parts.items():
        moved = torch.cat([(new[name] - old[name]).flatten() for name in members])
        size = torch.cat([old[name].flatten() for name in members])
        row = found[key]
        assert row.parameters == moved.numel()
        assert row.distance == pytest.approx(float(moved.norm()), rel=1e-12)
        assert row.relative == pytest.approx(float(moved.norm() / size.norm()), rel=1e-12)
        assert row.largest == pytest.approx(float(moved.abs().max()), rel=1e-12)
    assert sum(row.share for row in found.values()) == pytest.approx(1)
    blocks, attention, *_ = PATHS[family]
    assert set(parts["attn", 1]) == {name for name in old if name.startswith(f"{blocks}.1.{attention}.")}


def test_tied_weights_move_embedding_and_head_together() -> None:
    tuned, base = _models("gpt2")
    found = patch(tuned, _pairs(2), "weights:embed", corruption="base_model", base=base, resamples=100).effects
    mixed = _with_modules(base.hf, tuned.hf, ["transformer.wte", "transformer.wpe"])
    assert mixed.lm_head.weight is mixed.transformer.wte.weight
    assert found["patched"].iloc[0] == pytest.approx(_difference(mixed, tuned.tokenizer, _pairs(2).pairs[0]), abs=1e-9)
    with pytest.raises(InputError, match="shares its weights with the token embedding"):
        patch(tuned, _pairs(2), "weights:head", corruption="base_model", base=base, resamples=100)


def test_two_equal_models_have_nothing_between_them() -> None:
    words, hf = tokenizer(), tiny_hf("gpt2", vocab_size=len(tokenizer()))
    tuned, base = (Model.from_parts(copy.deepcopy(hf), words, name=name) for name in ("tuned", "base"))
    with pytest.raises(InputError, match="not a single weight"):
        patch(tuned, _pairs(2), "weights:mlp", corruption="base_model", base=base, resamples=100)


def test_a_metric_on_whole_answers_borrows_for_every_token_of_them() -> None:
    tuned, base = _models("llama")
    pair = Pair(id="a", clean="The child called Anna plays with the", correct=(" big red ball",), incorrect=(" kite",))
    found = patch(
        tuned, PairSet((pair,)), "weights:mlp", corruption="base_model", base=base, metrics=["answer_log_prob"],
        resamples=100,
    ).effects  # fmt: skip
    words = tuned.tokenizer
    prompt, answer = words(pair.clean)["input_ids"], words(pair.correct[0])["input_ids"]
    assert len(answer) > 1
    for row in found.itertuples():
        mixed = _with_modules(base.hf, tuned.hf, [f"model.layers.{int(row.layer)}.mlp"])
        with torch.no_grad():
            logits = mixed(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
        wanted = sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))
        assert row.patched == pytest.approx(wanted, abs=1e-9)


def _only(hf: Any, *names: str) -> Any:
    """A copy in which these tensors moved, and no other."""
    moved = copy.deepcopy(hf)
    with torch.no_grad():
        for name in names:
            tensor = moved.get_parameter(name)
            shape, generator = tensor.shape, torch.Generator().manual_seed(5)
            tensor.add_(0.5 * torch.randn(shape, generator=generator, dtype=tensor.dtype))
    return moved


def _shared() -> Any:
    hf = tiny_hf("gpt2", vocab_size=len(tokenizer())).double()
    hf.transformer.h[2].mlp.c_fc.weight = hf.transformer.h[0].mlp.c_fc.weight
    return hf


#: what is easily put in the wrong place: (model, tensors that moved)
ODD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "tied head with a bias of its own": (
        lambda: tiny_hf("phi", vocab_size=len(tokenizer()), tie_word_embeddings=True), ("model.embed_tokens.weight",)
    ),
    "a norm and a projection behind the blocks": (
        lambda: tiny_hf("opt", vocab_size=len(tokenizer()), word_embed_proj_dim=16),
        ("model.decoder.final_layer_norm.weight",),
    ),
    "a projection in front of the blocks": (
        lambda: tiny_hf("opt", vocab_size=len(tokenizer()), word_embed_proj_dim=16),
        ("model.decoder.project_in.weight",),
    ),
    "positions": (lambda: tiny_hf("gpt2", vocab_size=len(tokenizer())), ("transformer.wpe.weight",)),
    "a tensor of two layers": (_shared, ("transformer.h.0.mlp.c_fc.weight",)),
    "a norm of the embedding": (
        lambda: tiny_hf("bloom", vocab_size=len(tokenizer())), ("transformer.word_embeddings_layernorm.weight",)
    ),
    "norms of queries": (
        lambda: tiny_hf("qwen3", vocab_size=len(tokenizer())), ("model.layers.1.self_attn.q_norm.weight",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_said_to_hold_by_construction_holds(name: str) -> None:
    make, moved = ODD[name]
    words, hf = tokenizer(), make().double()
    tuned = Model.from_parts(_only(hf, *moved), words, name="tuned")
    base = Model.from_parts(hf, words, name="base")
    sites = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z", "mlp_act", "final_norm")
    for site in (*(site for site in sites if site in tuned.sites), "weights:block", "weights:embed"):
        ways = [
            patch(tuned, _pairs(1), site, corruption="base_model", base=base, direction="both", resamples=100,
                  executor=executor, check=0).effects["patched"].astype(float)
            for executor in ("traversal", "reference")
        ]  # fmt: skip
        assert (ways[0] - ways[1]).abs().max() < 1e-9, site


def test_parts_of_a_tied_head_with_a_bias() -> None:
    words = tokenizer()
    hf = tiny_hf("phi", vocab_size=len(words), tie_word_embeddings=True).double()
    tuned, base = (Model.from_parts(one, words, name="m") for one in (_tuned(hf), hf))
    with pytest.raises(InputError, match="shares its weights with the token embedding"):
        patch(tuned, _pairs(1), "weights:head", corruption="base_model", base=base, resamples=100)


def test_a_shared_module_is_part_of_every_block_that_has_it() -> None:
    hf = tiny_hf("gpt2", vocab_size=len(tokenizer()))
    hf.transformer.h[2].mlp = hf.transformer.h[0].mlp
    model = Model.from_parts(hf, tokenizer(), name="m", check=False)
    shared = {name for name in model.tensors("weights:mlp", 0)}
    assert shared
    assert shared <= set(model.tensors("weights:block", 2))


def test_distances_of_sets_are_those_of_their_tensors_by_hand() -> None:
    from engramscope.models.weights import set_distances

    tuned, base = _models("gpt2")
    sets = {
        "window": [("weights:block", 0), ("weights:block", 1)],
        "module": [("weights:transformer.h.2.attn.c_attn", None)],
        "embed": [("weights:embed", None)],
    }
    paths = {"window": ("transformer.h.0.", "transformer.h.1."), "module": ("transformer.h.2.attn.c_attn.",),
             "embed": ("transformer.wte.", "transformer.wpe.")}  # fmt: skip
    old, new = (dict(copy.deepcopy(weight_tensors(model.hf))) for model in (base, tuned))
    total = sum(float((new[name] - old[name]).square().sum()) for name in old)
    for key, found in set_distances(base, tuned.hf, sets).items():
        names = [name for name in old if name.startswith(paths[key])]
        moved = torch.cat([(new[name] - old[name]).flatten() for name in names])
        before = torch.cat([old[name].flatten() for name in names])
        assert found.parameters == len(moved)
        assert found.distance == pytest.approx(float(moved.norm()), rel=1e-9)
        assert found.relative == pytest.approx(float(moved.norm() / before.norm()), rel=1e-9)
        assert found.largest == pytest.approx(float(moved.abs().max()), rel=1e-12)
        assert found.share == pytest.approx(float(moved.square().sum()) / total, rel=1e-9)


def test_distances_of_a_model_in_memory_follow_its_weights() -> None:
    from engramscope.study_base import moved_weights

    tuned, base = _models("gpt2")
    first = {(row["part"], row["layer"]): row["distance"] for row in moved_weights(tuned, base)}
    with torch.no_grad():
        tuned.hf.transformer.h[1].mlp.c_fc.weight.add_(1.0)
    again = {(row["part"], row["layer"]): row["distance"] for row in moved_weights(tuned, base)}
    assert again["mlp", 1] > first["mlp", 1] + 1
    assert again["mlp", 0] == first["mlp", 0]


def test_the_base_may_be_given_by_its_name() -> None:
    from engramscope import load_model

    base = load_model("mini")
    tuned = Model.from_parts(_tuned(base.hf, "transformer.h.2.mlp."), base.tokenizer, name="tuned")
    pairs = PairSet((Pair(id="a", clean="The abbreviation EEG stands for", correct=(" the",), incorrect=(" a",)),))
    by_name = patch(tuned, pairs, "weights:mlp", corruption="base_model", base="mini", resamples=100).effects
    by_model = patch(tuned, pairs, "weights:mlp", corruption="base_model", base=base, resamples=100).effects
    assert by_name["patched"].tolist() == by_model["patched"].tolist()
