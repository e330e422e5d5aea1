"""Loading from a folder, and every way in which it can go wrong: one sentence each."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from engramscope import bundled
from engramscope.errors import ModelError
from engramscope.models import load_config, load_model, load_tokenizer, skeleton_sizes
from engramscope.models.describe import describe, tokenizer_facts
from tests.tiny_models import tiny_hf, tiny_model

TOKENS = torch.tensor([[5, 17, 60, 33]])


def small_tokenizer(*, bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", *(f"w{i}" for i in range(90)), "Ġ", "P", "a", "r", "i", "s", "Paris"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_hf("llama").save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def fault(name: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), device="cpu", **options)
    assert len(caught.value.faults) == 1
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_folder(saved: Path):
    model = load_model(str(saved), device="cpu")
    assert (model.name, model.source, model.revision) == (str(saved), "folder", None)
    assert (str(model.device), model.dtype) == ("cpu", torch.float32)
    torch.testing.assert_close(model.logits(TOKENS), tiny_model("llama").logits(TOKENS), rtol=0, atol=0)
    assert model.weight_hash() == tiny_model("llama").weight_hash() == load_model(str(saved)).weight_hash()
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.hf.config.use_cache is False
    assert model.hf.config._attn_implementation == "eager"
    assert model.tokenizer("w3 w4")["input_ids"]
    assert all(check.passed for check in model.checks)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_number_types(saved: Path, dtype: str):
    assert load_model(str(saved), dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


def test_the_type_of_the_checkpoint_does_not_decide(tmp_path: Path):
    tiny_hf("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu").dtype == torch.float32


def test_dropout_and_training_mode_are_off(tmp_path: Path):
    hf = tiny_hf("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    hf.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    torch.testing.assert_close(model.logits(TOKENS), model.logits(TOKENS), rtol=0, atol=0)


def test_tokenizer_and_configuration_alone(saved: Path):
    assert load_tokenizer(str(saved)).is_fast
    config = load_config(str(saved))
    sizes = skeleton_sizes(config)
    assert (sizes.n_layers, sizes.n_heads, sizes.d_model, sizes.vocab) == (3, 4, 32, 99)
    assert "model.layers.2.mlp.down_proj" in sizes.modules


def test_a_folder_without_configuration(folder: Path):
    (folder / "config.json").unlink()
    assert "has no config.json" in fault(folder)


def test_an_adapter_alone(folder: Path):
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "PEFT adapter" in fault(folder)


def test_an_empty_folder(tmp_path: Path):
    assert "has no config.json" in fault(tmp_path)


def test_a_broken_configuration(folder: Path):
    (folder / "config.json").write_text("{ not json")
    assert "configuration" in fault(folder)


def test_a_folder_without_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    assert "has no weights" in fault(folder)


def test_a_pickle_checkpoint(folder: Path):
    torch.save(tiny_hf("llama").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    text = fault(folder)
    assert "pickle" in text
    assert "allow_pickle = true" in text
    model = load_model(str(folder), device="cpu", allow_pickle=True)
    torch.testing.assert_close(model.logits(TOKENS), tiny_model("llama").logits(TOKENS), rtol=0, atol=0)


def test_a_pickle_beside_safetensors_is_not_touched(folder: Path):
    (folder / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    assert load_model(str(folder), device="cpu", allow_pickle=True).source == "folder"


def test_truncated_weights(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be loaded" in fault(folder)


def test_weights_that_do_not_fit(folder: Path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = fault(folder)
    assert "1 are missing" in text
    assert "model.layers.1.mlp.up_proj.weight" in text


def test_a_configuration_of_another_size(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    fault(folder)


def test_a_folder_without_tokenizer(folder: Path):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in fault(folder)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(str(folder))


def test_a_broken_tokenizer(folder: Path):
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in fault(folder)


def test_an_unknown_architecture(folder: Path):
    (folder / "config.json").write_text(json.dumps({"model_type": "brand_new_net"}))
    text = fault(folder)
    assert "'brand_new_net'" in text
    assert "does not know" in text


def test_a_configuration_without_model_type(folder: Path):
    (folder / "config.json").write_text("{}")
    assert "architecture" in fault(folder)


def test_code_of_the_model_is_not_run(folder: Path):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Net"}})
    )
    (folder / "code.py").write_text("raise SystemExit('ran')")
    text = fault(folder)
    assert "trust_remote_code = true" in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            transformers.T5Config(d_model=16, d_kv=4, num_layers=1, num_heads=2, d_ff=16, vocab_size=30),
            "encoder-decoder",
        ),
        (transformers.BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
        (transformers.ViTConfig(), "no causal language model"),
        (transformers.DistilBertConfig(architectures=["DistilBertForMaskedLM"]), "no causal language model"),
    ],
)
def test_other_kinds_of_model(folder: Path, config: Any, said: str):
    config.save_pretrained(folder)
    assert said in fault(folder)
    with pytest.raises(ModelError, match=said):
        load_config(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a b", "", "a/b/c", "../up"])
def test_no_such_folder(name: str):
    assert "There is no folder" in fault(name)


def test_a_file_instead_of_a_folder(saved: Path):
    assert "is a file" in fault(saved / "config.json")


class Refusing:
    """A hub that cannot be reached."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def model_info(self, *_args: Any, **_kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), TimeoutError("slow"), OSError("dns"), RuntimeError("?")]
)
def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, error: Exception, tmp_path: Path):
    monkeypatch.setattr("engramscope.models.hub.HfApi", lambda: Refusing(error))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    begin = time.perf_counter()
    text = fault("some-lab/some-model")
    assert time.perf_counter() - begin < 3
    assert "cannot be reached" in text
    assert "cache does not have it" in text


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    error = huggingface_hub.errors.OfflineModeIsEnabled("offline")
    monkeypatch.setattr("engramscope.models.hub.HfApi", lambda: Refusing(error))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = fault("minni")
    assert "offline mode is on" in text
    assert "did you mean 'mini'" in text


def test_a_cached_model_is_used_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path):
    commit = "0" * 40
    snapshot = tmp_path / "models--some-lab--cached" / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    (tmp_path / "models--some-lab--cached" / "refs").mkdir()
    (tmp_path / "models--some-lab--cached" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("engramscope.models.hub.HfApi", lambda: Refusing(ConnectionError("no route")))
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path))
    model = load_model("some-lab/cached", device="cpu")
    assert (model.source, model.revision) == ("hub", commit)
    torch.testing.assert_close(model.logits(TOKENS), tiny_model("llama").logits(TOKENS), rtol=0, atol=0)


def test_unknown_type_and_device(saved: Path):
    assert "did you mean 'float32'" in fault(saved, dtype="float23")
    with pytest.raises(ModelError, match="Unknown device 'gpu'"):
        load_model(str(saved), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            load_model(str(saved), device="cuda")


def test_progress_bars_and_log_level_are_given_back(saved: Path):
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_model(str(saved), device="cpu", check=False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_nothing_is_printed(saved: Path, capfd: pytest.CaptureFixture[str]):
    load_model(str(saved), device="cpu")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def shown(model: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(describe(model))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "falcon", "bloom"])
def test_describe_names_every_site_and_refusal(family: str):
    model = tiny_model(family)
    text = " ".join(shown(model).split())
    for site in (*model.sites, *model.anatomy.refusals):
        assert f" {site} " in text
    assert model.weight_hash() in text
    assert ("not offered" in text) == bool(model.anatomy.refusals)


def test_describe_shows_the_tokenizer(saved: Path):
    text = shown(load_model(str(saved), device="cpu"))
    assert "leading space" in text
    assert "q + k + v = z" in text


def test_tokenizer_facts():
    facts = dict(tokenizer_facts(small_tokenizer(bos=True), 99))
    assert facts["added to every prompt"] == "'<s>' (BOS)"
    assert dict(tokenizer_facts(small_tokenizer(), 99))["added to every prompt"] == "none"
    assert facts["leading space"].startswith("counts")
    assert "warning" in dict(tokenizer_facts(small_tokenizer(), 10))


@pytest.mark.parametrize("name", bundled.names())
def test_bundled_models(name: str):
    if not (bundled.folder(name) / "model.safetensors").is_file():
        pytest.skip("the bundled model is not trained yet")
    model = load_model(name, device="cpu")
    assert model.source == "bundled"
    assert all(check.passed for check in model.checks)


def test_stories260k_passes_every_check():
    shared = os.environ.get("ENGRAMSCOPE_SHARED")
    if not shared:
        pytest.skip("ENGRAMSCOPE_SHARED names no folder with models")
    model = load_model(str(Path(shared) / "models" / "stories260K"), device="cpu")
    assert (model.anatomy.n_heads, model.anatomy.n_kv_heads, model.anatomy.refusals) == (8, 4, {})
    assert all(check.passed for check in model.checks)
