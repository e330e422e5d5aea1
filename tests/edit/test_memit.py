"""MEMIT and AlphaEdit: their closed forms, their kinship with ROME, many facts at once, and adapters."""

from __future__ import annotations

import weakref
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import Tensor

from engramscope.edit.catalogue import make_editor
from engramscope.edit.delta import Dense, LowRank
from engramscope.edit.edit import Edit
from engramscope.edit.editors.alphaedit import quiet_directions
from engramscope.edit.keys import subject_keys, with_prefixes
from engramscope.edit.matrices import down_projection
from engramscope.edit.moment_store import read_moment
from engramscope.edit.solve import Solver
from engramscope.edit.spread import SpreadOptions, chosen_layers
from engramscope.errors import InputError, SiteError, StudyError
from engramscope.models.model import Model
from engramscope.models.weights import weight_tensors
from engramscope.records.fact import Fact
from tests.edit import plain_rome
from tests.edit.small import FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.edit.test_rome import TEXTS, change_of, in_float64
from tests.tiny_study import NAMES, SENTENCES

FACTS = [FACT, OTHER, Fact("Clara says that she likes the", "Clara", "kite", "ball", "clara")]
MANY = [
    Fact(sentence.format(name), name, ("drum", "coat kite")[k % 2], None, f"{name}{k}")
    for k, sentence in enumerate(SENTENCES)
    for name in NAMES
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("memit")
    (folder / "texts.txt").write_text("\n\n".join(TEXTS))
    return {"texts": folder / "texts.txt", "cache": folder / "cache", "tokens": 200, "eps": 1e-3, "steps": 6,
            "prefixes": ((3, 4),)}  # fmt: skip


def moments(cache: Path) -> dict[int, Tensor]:
    found = [read_moment(file) for file in (cache / "second_moments").glob("*.safetensors")]
    return {one.said["layer"]: one.matrix for one in found}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("mom2", [True, False])
def test_one_layer_one_fact_and_little_weight_is_rome(family: str, mom2: bool, given: dict[str, Any]) -> None:
    model = in_float64("gpt2") if family == "gpt2" else shared_model(family)
    linear = down_projection(model, 1)
    # without prefixes both have the same key, and without clamp and decay the block's output moves as the MLP's does
    alike = {**given, "prefixes": (), "clamp": 1e6, "decay": 0.0, "mom2": mom2}
    rome = make_editor("rome", {**alike, "layer": 1}).compute(model, FACT)
    memit = make_editor("memit", {**alike, "layers": (1,), "weight": 1e-9}).compute(model, FACT)
    torch.testing.assert_close(change_of(memit, linear), change_of(rome, linear), rtol=1e-3, atol=1e-6)
    heavy = make_editor("memit", {**alike, "layers": (1,), "weight": 300.0}).compute(model, FACT)
    one, two = change_of(heavy, linear).flatten(), change_of(rome, linear).flatten()
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=0)) == pytest.approx(1.0, abs=1e-4)
    assert one.norm() < 0.9 * two.norm()


def naive(model: Model, edit: Edit, facts: list[Fact], layers: list[int], weight: float, cache: Path,
          goal: Tensor) -> dict[int, Tensor]:  # fmt: skip
    """ΔW of every layer from inverses, one prompt at a time; `goal` is z."""
    found: dict[int, Tensor] = {}
    old = {layer: down_projection(model, layer).weight.detach().clone() for layer in layers}
    block = model.hf.get_submodule(model.anatomy.blocks[layers[-1]])
    try:
        for place, layer in enumerate(layers):
            linear = down_projection(model, layer)
            keys, now = [], []
            for fact in facts:
                own = torch.stack(plain_rome.keys_of(model, linear.module, fact, list(edit.prefixes)))
                keys.append((own[0] + own[1:].mean(0)) / 2)
                prompt, _, position = plain_rome.rows_of_fact(model, fact, [])[0]
                now.append(plain_rome.run(model, block, prompt, position, None)["value"].detach())
            k, residual = torch.stack(keys).double().T, (goal - torch.stack(now)).double() / (len(layers) - place)
            moment = moments(cache)[layer]
            regular = moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
            change = torch.linalg.inv(weight * regular + k @ k.T) @ k @ residual
            found[layer] = change
            with torch.no_grad():
                linear.weight.add_(linear.stored(change).to(linear.weight.dtype))
    finally:
        with torch.no_grad():
            for layer, value in old.items():
                down_projection(model, layer).weight.copy_(value)
    return found


@pytest.mark.parametrize(
    ("method", "maker", "about"),
    [("memit", "engramscope.edit.solvers.Solver", "second_moments"),
     ("alphaedit", "engramscope.edit.editors.alphaedit.quiet_directions", "quiet_directions")],
)  # fmt: skip
def test_one_matrix_is_in_memory_at_a_time(
    method: str, maker: str, about: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    most, make = 0, resolve_name(maker)

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        found = make(*args, **kwargs)
        made.append(weakref.ref(found))
        most = max(most, sum(one() is not None for one in made))
        return found

    model, editor = shared_model("gpt2"), make_editor(method, {**given, "layers": (0, 1, 2)})
    first = editor.compute(model, FACT)
    monkeypatch.setattr(maker, counting)
    again = editor.compute(model, FACT)
    assert (most, len(made)) == (1, 3)
    for name, delta in again.deltas.items():
        assert torch.equal(delta.dense(), first.deltas[name].dense())
    assert list(again.diagnostics[about]) == ["0", "1", "2"]
    one = make_editor(method, {**given, "layers": (1,)})
    one.compute(model, FACT)
    made.clear()
    one.compute(model, FACT)
    assert len(made) == (0 if method == "memit" else 1)  # edits of one layer share its factor


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_many_facts_at_several_layers_by_plain_algebra(
    layers: tuple[int, ...], given: dict[str, Any], tmp_path: Path
) -> None:
    given = {**given, "cache": tmp_path}
    model = in_float64("gpt2")
    bits = {name: value.clone() for name, value in weight_tensors(model.hf).items()}
    edit = make_editor("memit", {**given, "layers": layers, "weight": 2.0, "clamp": 4.0}).compute(model, FACTS)
    block = model.hf.get_submodule(model.anatomy.blocks[layers[-1]])
    goal = []
    for fact in FACTS:
        prompt, _, position = plain_rome.rows_of_fact(model, fact, [])[0]
        start = plain_rome.run(model, block, prompt, position, None)["value"].detach()
        delta, losses = plain_rome.optimised(model, block, fact, list(edit.prefixes), steps=6)
        goal.append(start + delta)
        entry = next(entry for entry in edit.diagnostics["facts"] if entry["id"] == fact.id)
        assert entry["losses"] == pytest.approx(losses, rel=1e-6)
    wanted = naive(model, edit, FACTS, list(layers), 2.0, tmp_path, torch.stack(goal))
    for layer in layers:
        linear = down_projection(model, layer)
        found = change_of(edit, linear).double()
        assert float((found - wanted[layer]).norm() / wanted[layer].norm()) < 1e-5
    assert all(torch.equal(value, bits[name]) for name, value in weight_tensors(model.hf).items())


def test_keys_are_averaged_within_texts_of_one_length_and_then_over_the_lengths(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    options = {**given, "layers": (1,), "mom2": False, "weight": 0.5, "prefixes": ((3, 4), (0, 9), (1, 7))}
    edit = make_editor("memit", options).compute(model, FACT)
    own = torch.stack(plain_rome.keys_of(model, down_projection(model, 1).module, FACT, list(edit.prefixes)))
    assert len(own) == 5
    key = (own[0] + own[1:4].mean(0) + own[4]) / 3
    change = change_of(edit, down_projection(model, 1))
    # of rank one, along the key
    along = change.T @ (key / key.norm())
    assert float(along.norm()) == pytest.approx(float(change.norm()), rel=1e-6)


@pytest.mark.parametrize("count", [3, 40])
def test_the_two_ways_to_solve_are_the_same(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    matrix, keys = samples.T @ samples / 60, torch.randn(count, 20, generator=generator, dtype=torch.float64)
    regular = matrix + 1e-2 * matrix.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    wanted = torch.linalg.inv(0.7 * regular + keys.T @ keys) @ keys.T
    torch.testing.assert_close(Solver(matrix, 1e-2).regularised(keys, 0.7), wanted.T)


def test_the_solver_solves_and_knows_its_condition() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.logspace(0, -5, 30, dtype=torch.float64)) @ basis.T
    kept = matrix.clone()
    solver = Solver(matrix, 0.0)
    right = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(solver.solve(right) @ matrix, right, rtol=1e-8, atol=1e-8)
    exact = float(torch.linalg.cond(matrix, 1))
    assert exact / 3 <= solver.condition <= exact * 1.01
    shifted = Solver(matrix, 0.5).solve(right)
    added = 0.5 * matrix.diagonal().mean() * torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(shifted @ (matrix + added), right)
    assert torch.equal(matrix, kept)
    flat = torch.zeros(3, 3)
    with pytest.raises(InputError, match="singular"):
        Solver(flat, 0.0)


def test_facts_side_by_side_are_those_alone_and_many_make_a_whole_matrix(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    editor = make_editor("memit", {**given, "layers": (0,), "weight": 1.0})
    together = editor.compute(model, MANY)
    for k in (0, 11, 29):
        alone = editor.compute(model, MANY[k])
        one, other = together.diagnostics["facts"][k], alone.diagnostics["facts"][0]
        assert one["id"] == MANY[k].id
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert one["delta_over_value"] == pytest.approx(other["delta_over_value"], rel=1e-3)
        assert one["probability_before"] == pytest.approx(other["probability_before"], rel=1e-4)
    assert isinstance(next(iter(together.deltas.values())), Dense)
    assert isinstance(next(iter(alone.deltas.values())), LowRank)
    again = make_editor("memit", {**given, "layers": (0,), "weight": 1.0}).compute(model, MANY)
    for name, delta in together.deltas.items():
        assert torch.equal(delta.dense(), again.deltas[name].dense())


def test_the_residual_that_is_left_is_small_where_weight_is(given: dict[str, Any]) -> None:
    model = shared_model("llama")
    alike = {**given, "layers": (0, 1), "prefixes": ()}
    light = make_editor("memit", {**alike, "weight": 1e-6}).compute(model, FACTS)
    heavy = make_editor("memit", {**alike, "weight": 1e6}).compute(model, FACTS)
    assert max(entry["residual_left"] for entry in light.diagnostics["facts"]) < 0.05
    assert min(entry["residual_left"] for entry in heavy.diagnostics["facts"]) > 0.9
    assert set(light.diagnostics["relative_change"]) == set(light.deltas)


def test_the_last_layer_alone_would_be_given_what_is_left_and_not_all(given: dict[str, Any]) -> None:
    model = shared_model("gpt2")
    edit = make_editor("memit", {**given, "layers": (0, 1), "weight": 1.0}).compute(model, FACTS)
    assert sorted(edit.deltas) == sorted(down_projection(model, layer).name for layer in (0, 1))
    assert edit.diagnostics["layers"] == [0, 1]
    assert edit.settings["layers"] == [0, 1]


def test_layers_that_nobody_gave() -> None:
    class Sized:
        source, name = "hub", "m"

        def __init__(self, kind: str, layers: int) -> None:
            self.anatomy = type("A", (), {"model_type": kind, "n_layers": layers})()

    def layers_of(kind: str, count: int, **options: Any) -> Any:
        return chosen_layers(Sized(kind, count), SpreadOptions(**options))  # type: ignore[arg-type]

    assert layers_of("gpt2", 48) == ((13, 14, 15, 16, 17), None)
    assert layers_of("gptj", 28) == ((3, 4, 5, 6, 7, 8), None)
    layers, note = layers_of("llama", 32)
    assert layers == (7, 8, 9, 10, 11)
    assert "No layers are published" in note
    assert layers_of("llama", 2)[0] == (0,)
    assert layers_of("gpt2", 48, layers=(3,)) == ((3,), None)
    with pytest.raises(SiteError, match="no layer 50"):
        layers_of("gpt2", 48, layers=(3, 50))
    with pytest.raises(StudyError, match="rising order"):
        make_editor("memit", {"layers": [3, 2]})


def test_alphaedit_leaves_the_loud_directions_alone(given: dict[str, Any], tmp_path: Path) -> None:
    given = {**given, "cache": tmp_path}
    model = in_float64("gpt2")
    linear = down_projection(model, 1)
    editor = make_editor("alphaedit", {**given, "layers": (1,), "null_share": 0.3, "penalty": 0.5})
    edit = editor.compute(model, FACTS)
    matrix = moments(tmp_path)[1]
    values, vectors = torch.linalg.eigh(matrix)
    share = values.cumsum(0) / values.sum()
    quiet = vectors[:, share <= 0.3]
    assert 0 < quiet.shape[1] < len(values)
    assert edit.diagnostics["quiet_directions"] == {"1": quiet.shape[1]}
    assert edit.notes[0].startswith("The second moment was measured on 200 tokens for 128 neurons")
    change = change_of(edit, linear).double()
    loud = vectors[:, share > 0.3]
    assert float((loud.T @ change).norm()) < 1e-5 * float(change.norm())
    # (P K Kᵀ + L₂ I) ΔW = P K E, E from what the layer would have to give
    asks = with_prefixes(model, FACTS, edit.prefixes)
    keys = subject_keys(model, linear, asks, [0.5] + [0.5 / len(edit.prefixes)] * len(edit.prefixes)).mean.T
    block = model.hf.get_submodule(model.anatomy.blocks[1])
    residual = torch.stack([
        plain_rome.optimised(model, block, fact, list(edit.prefixes), steps=6, clamp=0.75)[0] for fact in FACTS
    ])  # fmt: skip
    projection = quiet @ quiet.T
    left = (projection @ keys @ keys.T + 0.5 * torch.eye(len(matrix), dtype=torch.float64)) @ change
    torch.testing.assert_close(left, projection @ keys @ residual, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="null_share"):
        quiet_directions(torch.eye(4), 0.1)
    assert quiet_directions(torch.eye(4), 0.6).shape == (4, 2)


def test_half_precision_stays_float32_and_is_felt(given: dict[str, Any]) -> None:
    model = Model.from_parts(
        tiny_with_tokenizer("llama").hf.bfloat16(), tiny_with_tokenizer("llama").tokenizer, name="half", check=False
    )
    edit = make_editor("memit", {**given, "layers": (0, 1), "mom2": False, "weight": 0.1}).compute(model, FACTS)
    for delta in edit.deltas.values():
        assert delta.dense().dtype == torch.float32
    for entry in edit.diagnostics["facts"]:
        assert entry["probability_after"] != entry["probability_before"]
        assert entry["residual_left"] < 0.9
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_peft_gives_the_edited_model_from_the_adapter(
    family: str, method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    from peft import PeftModel

    from engramscope.edit.adapter import export_lora
    from tests.tiny_models import tiny_hf

    model = shared_model(family)
    where = {"layer": 1} if method == "rome" else {"layers": (0, 1), "weight": 0.5}
    edit = make_editor(method, {**given, **where}).compute(model, FACTS)
    tokens = torch.tensor([[5, 9, 20, 7, 33]])
    with edit.applied(model):
        wanted = model.logits(tokens)
    export_lora(edit, model, tmp_path / "adapter")
    plain = tiny_hf(family, vocab_size=model.anatomy.vocab)
    with torch.no_grad():
        again = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(tokens).logits
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - model.logits(tokens)).abs().max() > 1e-2
    with pytest.raises(InputError, match=r"occupied|not empty|holds|already"):
        export_lora(edit, model, tmp_path / "adapter")


def test_an_adapter_holds_low_rank_only(given: dict[str, Any], tmp_path: Path) -> None:
    from engramscope.edit.adapter import export_lora

    model = shared_model("gpt2")
    edit = make_editor("memit", {**given, "layers": (0,), "weight": 1.0}).compute(model, MANY)
    with pytest.raises(InputError, match="low rank only"):
        export_lora(edit, model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
