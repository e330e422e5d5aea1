"""Second moments against a plain loop, what they are kept under, and how a measurement goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engramscope.edit.catalogue import make_editor
from engramscope.edit.delta import outer
from engramscope.edit.edit import Edit, fingerprint, identity
from engramscope.edit.matrices import down_projection, linear_map
from engramscope.edit.moment_store import MomentStore, given_file, read_moment
from engramscope.edit.moments import context_of, description, second_moments, upstream
from engramscope.edit.texts import Texts, bundled_texts, default_texts, given_texts, read_texts, wikipedia
from engramscope.errors import InputError, ResultsError
from engramscope.models.model import Model
from tests.edit import plain_rome
from tests.edit.small import EDITABLE, FACT, OTHER, shared_model, tiny_with_tokenizer
from tests.edit.test_rome import TEXTS
from tests.tiny_models import tiny_hf
from tests.tiny_study import tokenizer

LONG = " ".join(TEXTS)


def store(tmp_path: Path) -> MomentStore:
    return MomentStore.at(tmp_path)


@pytest.mark.parametrize("family", [*EDITABLE, "opt", "falcon"])
def test_every_token_counts_once_and_padding_never(family: str, tmp_path: Path) -> None:
    model = shared_model(family)
    texts = ["Anna", LONG, *TEXTS[:7], "", " "]
    found = second_moments(model, [0, 2], given_texts(texts), store(tmp_path), tokens=300, context=40)
    for layer in (0, 2):
        wanted = plain_rome.second_moment(model, down_projection(model, layer).module, texts, 300, 40)
        torch.testing.assert_close(found[layer].matrix, wanted, rtol=1e-4, atol=1e-6)
        assert found[layer].tokens <= 300
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_the_budget_is_kept_to_the_token(tmp_path: Path) -> None:
    model = shared_model("llama")
    told: list[tuple[str, int, int]] = []
    found = second_moments(
        model, [1], given_texts(TEXTS * 3), store(tmp_path), tokens=137,
        progress=lambda what, done, total: told.append((what, done, total)),
    )[1]  # fmt: skip
    assert found.tokens == 137
    wanted = plain_rome.second_moment(model, down_projection(model, 1).module, TEXTS * 3, 137, 64)
    torch.testing.assert_close(found.matrix, wanted, rtol=1e-4, atol=1e-6)
    assert told[0] == ("second moments of layer 1", 0, 137)
    assert told[-1] == ("second moments of layer 1", 137, 137)
    # 20 tokens for each of 48 neurons, but the texts end before
    short = second_moments(model, [1], given_texts(TEXTS[:4]), store(tmp_path))[1]
    assert short.said["tokens"] == 960
    assert short.tokens == sum(len(model.tokenizer(text)["input_ids"]) for text in TEXTS[:4])
    assert context_of(model, None) == 64
    assert context_of(model, 10) == 10


def test_what_stands_in_a_batch_does_not_matter(tmp_path: Path) -> None:
    model = shared_model("gpt2")
    both = second_moments(model, [1], given_texts([LONG, "Anna"]), MomentStore(tmp_path / "a"), tokens=10**6)[1]
    parts = [
        second_moments(model, [1], given_texts([text]), MomentStore(tmp_path / "b"), tokens=10**6)[1]
        for text in (LONG, "Anna")
    ]
    summed = torch.stack([part.matrix * part.tokens for part in parts]).sum(0)
    assert both.tokens == sum(part.tokens for part in parts)
    torch.testing.assert_close(both.matrix * both.tokens, summed, rtol=1e-5, atol=1e-4)


class Counting:
    """Texts that count how many documents were taken, and fail after some."""

    def __init__(self, texts: list[str], fail_after: int | None = None) -> None:
        self.inner, self.taken, self.fail_after = texts, 0, fail_after

    def source(self) -> Texts:
        return Texts("counted", "counted 1", self.stream)

    def stream(self) -> Iterator[str]:
        for text in self.inner:
            if self.fail_after is not None and self.taken >= self.fail_after:
                raise KeyboardInterrupt
            self.taken += 1
            yield text


def test_a_measurement_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engramscope.edit import moments

    monkeypatch.setattr(moments, "_TOKENS_AT_ONCE", 200)
    model, texts = shared_model("gpt2"), TEXTS * 20
    whole = second_moments(model, [0, 1], Counting(texts).source(), MomentStore(tmp_path / "a"), tokens=4000)
    killed = Counting(texts, fail_after=300)
    kept = MomentStore(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        second_moments(model, [0, 1], killed.source(), kept, tokens=4000, save_every_s=0)
    (partial,) = kept.folder.glob("*.partial.safetensors")
    ran: list[int] = []
    handle = model.hf.transformer.h[0].register_forward_hook(lambda *_: ran.append(1))
    told: list[int] = []
    again = second_moments(
        model, [0, 1], Counting(texts).source(), kept, tokens=4000,
        progress=lambda _what, done, _total: told.append(done),
    )  # fmt: skip
    handle.remove()
    assert told[0] > 1500
    assert 0 < len(ran) < 12
    for layer in (0, 1):
        assert torch.equal(again[layer].matrix, whole[layer].matrix)
        assert again[layer].tokens == whole[layer].tokens == 4000
    assert not partial.exists()
    assert len(list(kept.folder.iterdir())) == 2


def test_the_forward_stops_at_the_deepest_layer(tmp_path: Path) -> None:
    model = shared_model("llama")
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.hf.named_modules()
    ]
    second_moments(model, [0, 1], given_texts(TEXTS[:3]), store(tmp_path), tokens=20)
    for handle in handles:
        handle.remove()
    assert "model.layers.1.mlp.up_proj" in ran
    assert "model.layers.1.mlp.down_proj" not in ran
    assert not any(name.startswith("model.layers.2") or name == "lm_head" for name in ran)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    model, texts = shared_model("gpt2"), Counting(TEXTS)
    first = second_moments(model, [1], texts.source(), store(tmp_path), tokens=100)
    taken = texts.taken
    assert taken > 0
    again = second_moments(model, [1], texts.source(), store(tmp_path), tokens=100)
    assert texts.taken == taken
    assert torch.equal(first[1].matrix, again[1].matrix)
    second_moments(model, [0, 1], texts.source(), store(tmp_path), tokens=100)
    assert texts.taken == 2 * taken
    (file,) = (tmp_path / "second_moments").glob("layer1-*")
    file.write_bytes(file.read_bytes()[:-5])
    healed = second_moments(model, [1], texts.source(), store(tmp_path), tokens=100)
    assert torch.equal(first[1].matrix, healed[1].matrix)
    assert torch.equal(read_moment(file).matrix, first[1].matrix)
    # a file under a name that is not its own is not believed
    (other,) = (tmp_path / "second_moments").glob("layer0-*")
    file.write_bytes(other.read_bytes())
    again = second_moments(model, [1], texts.source(), store(tmp_path), tokens=100)
    assert torch.equal(first[1].matrix, again[1].matrix)


def test_the_key_holds_everything_it_depends_on() -> None:
    model, texts = tiny_with_tokenizer("gpt2"), given_texts(TEXTS)
    base = description(model, 1, texts, 100, 40)
    assert json.loads(json.dumps(base)) == base
    assert description(model, 1, texts, 100, 40) == base
    assert description(model, 1, texts, 101, 40) != base
    assert description(model, 1, texts, 100, 41) != base
    assert description(model, 0, texts, 100, 40) != base
    assert description(model, 1, given_texts(TEXTS[::-1]), 100, 40) != base
    assert description(tiny_with_tokenizer("gpt2", seed=1), 1, texts, 100, 40) != base
    assert description(tiny_with_tokenizer("llama"), 1, texts, 100, 40)["tokenizer"] != base["tokenizer"]
    words = tokenizer()
    other = Model.from_parts(tiny_hf("gpt2", vocab_size=len(words), activation_function="relu"), words, check=False)
    assert description(other, 1, texts, 100, 40)["model"] == base["model"]
    assert description(other, 1, texts, 100, 40)["config"] != base["config"]
    half = Model.from_parts(tiny_hf("gpt2", vocab_size=len(words)).bfloat16(), words, check=False)
    assert description(half, 1, texts, 100, 40)["dtype"] == "bfloat16"


def small_edit(model: Model, layer: int, path: str | None = None) -> Edit:
    linear = linear_map(model, path) if path else down_projection(model, layer)
    delta = outer(linear, torch.ones(linear.n_in), torch.ones(linear.n_out))
    before = {linear.name: fingerprint(linear.weight)}
    return Edit("test", {linear.name: delta}, (FACT,), {}, 0, identity(model), before)


def test_edits_of_layers_below_count_and_others_do_not(tmp_path: Path) -> None:
    model, texts = tiny_with_tokenizer("gpt2"), given_texts(TEXTS)
    plain = second_moments(model, [1], texts, store(tmp_path), tokens=100)[1]
    up, after = "transformer.h.1.mlp.c_fc", "transformer.h.2.mlp.c_fc"
    for layer, path, matters in ((0, None, True), (1, up, True), (1, None, False), (2, after, False)):
        clean = upstream(model, 1)
        with small_edit(model, layer, path).applied(model):
            assert (upstream(model, 1) != clean) == matters
            edited = second_moments(model, [1], texts, store(tmp_path), tokens=100)[1]
            fresh = second_moments(model, [1], texts, MomentStore(tmp_path / f"fresh{layer}{path}"), tokens=100)[1]
        assert torch.equal(edited.matrix, fresh.matrix)
        assert torch.equal(edited.matrix, plain.matrix) != matters
        assert upstream(model, 1) == clean


def test_a_model_that_was_trained_after_an_edit_is_another_one() -> None:
    model = tiny_with_tokenizer("gpt2")
    known = identity(model)["hash"]
    with small_edit(model, 2).applied(model):
        assert identity(model)["hash"] == known
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_fc.weight.add_(0.1)
    trained = identity(model)["hash"]
    assert trained != known
    with small_edit(model, 2).applied(model):
        assert identity(model)["hash"] == trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_second_moments_of_the_model_without_the_edits_that_are_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    words = tokenizer()
    hf = tiny_hf("gpt2", vocab_size=len(words)).to(dtype)
    model, texts = Model.from_parts(hf, words, name="tiny", check=False), given_texts(TEXTS)
    plain = second_moments(model, [2], texts, store(tmp_path / "a"), tokens=100)[2]
    first, second = small_edit(model, 0), small_edit(model, 1)
    with first.applied(model), second.applied(model):
        logits = model.logits(torch.arange(6)[None])
        other = second_moments(model, [2], texts, store(tmp_path / "b"), tokens=100)[2]
        same = second_moments(model, [2], texts, store(tmp_path / "c"), tokens=100, edited=False)[2]
        # what was measured without edits is found again, under the same name
        known = second_moments(model, [2], texts, store(tmp_path / "a"), tokens=100, edited=False)[2]
        assert torch.equal(model.logits(torch.arange(6)[None]), logits)
    assert torch.equal(same.matrix, plain.matrix)
    assert same.said == known.said == plain.said
    assert not torch.allclose(other.matrix, plain.matrix)
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_a_chain_of_edits_measures_second_moments_once_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    options = {"layers": [0, 1], "texts": tmp_path / "texts.txt", "cache": tmp_path, "tokens": 200, "steps": 2}
    counts = {}
    for edited in (False, True):
        model = tiny_with_tokenizer("gpt2")
        editor = make_editor("memit", {**options, "edited": edited})
        first = editor.compute(model, FACT)
        with first.applied(model):
            editor.compute(model, OTHER)
        counts[edited] = len(list((tmp_path / "second_moments").glob("layer*.safetensors")))
    # layer 0 lies before every change, layer 1 does not
    assert counts == {False: 2, True: 3}


def test_a_second_moment_of_another_model_or_layer_is_refused(tmp_path: Path) -> None:
    model, texts = tiny_with_tokenizer("gpt2"), given_texts(TEXTS)
    second_moments(model, [0, 1], texts, store(tmp_path), tokens=100)
    folder = tmp_path / "second_moments"
    (file,) = folder.glob("layer1-*")
    wanted = description(model, 1, given_texts(["other"]), 5, 5)
    assert given_file(file, wanted) == file
    assert given_file(folder, wanted) == file
    for tokens, most in ((90, 100), (150, 150), (110, 150), (130, 150)):
        second_moments(model, [1], texts, store(tmp_path), tokens=tokens)
        assert read_moment(given_file(folder, wanted)).tokens == most
    with pytest.raises(InputError, match="of layer 1, and layer 0 is to be edited"):
        given_file(file, description(model, 0, texts, 100, 64))
    other = tiny_with_tokenizer("gpt2", seed=1)
    with pytest.raises(InputError, match=r"of another model, or of another state of it \(model differ\)"):
        given_file(file, description(other, 1, texts, 100, 64))
    with pytest.raises(InputError, match="none of them is of layer 2"):
        given_file(folder, description(model, 2, texts, 100, 64))
    with small_edit(model, 0).applied(model), pytest.raises(InputError, match="other edits in the layers below"):
        given_file(file, description(model, 1, texts, 100, 64))
    with pytest.raises(InputError, match="There is no second moment"):
        given_file(tmp_path / "none.safetensors", wanted)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="damaged"):
        given_file(tmp_path / "junk.safetensors", wanted)
    with pytest.raises(InputError, match="of layer 1, and layer 0 is to be edited"):
        make_editor("rome", {"layer": 0, "moments": file}).compute(model, FACT)
    edit = make_editor("rome", {"layer": 1, "moments": file, "steps": 2, "eps": 1e-3}).compute(model, FACT)
    assert edit.diagnostics["second_moment"]["tokens"] == 100
    assert any("at least" in note for note in edit.notes)


def test_texts_without_tokens_and_folders_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token in it"):
        second_moments(shared_model("gpt2"), [0], given_texts(["", ""]), store(tmp_path), tokens=10)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="could not be written"):
        second_moments(shared_model("gpt2"), [0], given_texts(TEXTS), store(tmp_path / "file"), tokens=10)
    broken = tiny_with_tokenizer("gpt2")
    with torch.no_grad():
        broken.hf.transformer.h[0].mlp.c_fc.weight[0, 0] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        second_moments(broken, [0], given_texts(TEXTS), store(tmp_path / "b"), tokens=10)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGRAMSCOPE_CACHE", str(tmp_path / "own"))
    assert MomentStore.at(None).folder == tmp_path / "own" / "second_moments"


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\nline two\n\n\nTwo é\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Three"}\n\n{"text": "Four"}\n{"text": null}\n')
    (tmp_path / "c.csv").write_text('PMID,Abstract\n1,"Five, and\nmore"\n2,\n')
    pq.write_table(pa.table({"Abstract": ["Six", None, "Seven"], "PMID": ["1", "2", "3"]}), tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text("PMID,Abstract\n1,Six\n")
    (tmp_path / "notes.md").write_text("not read")
    texts = read_texts(tmp_path)
    expected = ["One\nline two", "Two é", "Three", "Four", "Five, and\nmore", "Six", "Seven"]
    assert list(texts.open()) == expected
    assert list(texts.open()) == expected
    assert read_texts(tmp_path).identity == texts.identity
    (tmp_path / "a.txt").write_text("Other")
    assert read_texts(tmp_path).identity != texts.identity
    assert list(read_texts(tmp_path / "d.parquet").open()) == ["Six", "Seven"]
    with pytest.raises(InputError, match="There is no file or folder of texts"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="holds no texts"):
        read_texts(tmp_path / "notes.md")
    (tmp_path / "e.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(InputError, match="has no column 'text' or 'abstract'; it has 'title'"):
        list(read_texts(tmp_path / "e.jsonl").open())
    (tmp_path / "e.jsonl").write_text('{"text": "x"}\nnope\n')
    with pytest.raises(InputError, match="line 2: no JSON"):
        list(read_texts(tmp_path / "e.jsonl").open())
    (tmp_path / "f.parquet").write_bytes(b"nope")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(read_texts(tmp_path / "f.parquet").open())


class FakeWikipedia:
    """`load_dataset` of an injected corpus."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, ()

    def __call__(self, *args: Any, **kwargs: Any) -> FakeWikipedia:
        self.asked = (args, kwargs)
        if self.error:
            raise self.error
        return self

    def shuffle(self, *, seed: int, buffer_size: int) -> list[dict[str, str]]:
        assert (seed, buffer_size) == (0, 10_000)
        return [{"title": "A", "text": text} for text in TEXTS]


def test_wikipedia_is_streamed_and_a_missing_network_is_said(tmp_path: Path) -> None:
    loader = FakeWikipedia()
    texts = wikipedia(loader)
    assert list(texts.open()) == TEXTS
    assert loader.asked == (("wikimedia/wikipedia", "20231101.en"), {"split": "train", "streaming": True})
    found = second_moments(shared_model("gpt2"), [0], texts, store(tmp_path), tokens=50)
    assert found[0].tokens == 50
    with pytest.raises(InputError, match=r"cannot be reached \(no route\)\. Give texts of your own"):
        list(wikipedia(FakeWikipedia(ConnectionError("no route"))).open())


def test_bundled_models_are_measured_on_their_own_corpus() -> None:
    class Named:
        source = "bundled"

    texts = default_texts(Named())  # type: ignore[arg-type]
    assert texts.identity == bundled_texts().identity
    first = next(texts.open())
    assert first == next(bundled_texts().open())
    assert isinstance(first, str)
    assert bundled_texts(1).identity != texts.identity
    assert next(default_texts(shared_model("gpt2")).identity for _ in (0,)).startswith("hub:wikimedia")
