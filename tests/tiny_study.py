"""Studies of tiny random models: a saved model with a tokenizer, pairs, and study files, for tests of whole runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny_hf

NAMES = ("Anna", "Bob", "Clara", "Dan", "Eva", "Fred", "Greta", "Hugo", "Ida", "Jack")
SENTENCES = ("The child called {} plays with the", "In the park {} lost the big red", "{} says that she likes the")
ANSWERS = (" ball", " kite", " drum", " boat", " coat")


def tokenizer(bos: bool = False) -> Any:
    """Byte-level BPE in which every word of the prompts is one token; with a BOS token if asked for."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    corpus = [sentence.format(name) + answer for sentence in SENTENCES for name in NAMES for answer in ANSWERS]
    corpus += [f" {name}" for name in NAMES] * 3 + ["Yesterday and today"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], show_progress=False, min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(corpus, trainer)
    inner.post_processor = (
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def save_model(folder: Path, family: str = "gpt2", **over: Any) -> Path:
    """A random model with its tokenizer, as `save_pretrained` writes them. Llama's tokenizer adds a BOS token."""
    words = tokenizer(bos=family != "gpt2")
    hf = tiny_hf(family, vocab_size=len(words), **over)
    hf.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def pair_rows(count: int = 8, sentences: int = 2) -> list[dict[str, Any]]:
    """Pairs in which one name is exchanged for another; the sentence is the group."""
    rows = []
    for number in range(count):
        sentence = SENTENCES[number % sentences]
        name, other = NAMES[number % len(NAMES)], NAMES[(3 * number + 1) % len(NAMES)]
        other = other if other != name else NAMES[(number + 1) % len(NAMES)]
        text, start = sentence.format(name), sentence.index("{}")
        rows.append(
            {
                "id": f"p{number}", "clean": text, "corrupted": sentence.format(other),
                "correct": [ANSWERS[number % 3]], "incorrect": [ANSWERS[3 + number % 2]], "group": f"s{number}",
                "spans": {"subject": [start, start + len(name)]},
                "corrupted_spans": {"subject": [start, start + len(other)]},
                "labels": {"kind": ["even", "odd"][number % 2]},
            }
        )  # fmt: skip
    return rows


def write_pairs(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def toml(value: Any) -> str:
    """A value as TOML: JSON is close enough for strings, numbers, booleans and lists."""
    return json.dumps(value, ensure_ascii=False)


def write_study(
    folder: Path,
    model_folder: Path | str,
    sweeps: Sequence[Mapping[str, Any]] = ({"name": "mlp", "site": "mlp_out"},),
    rows: Sequence[Mapping[str, Any]] | None = None,
    name: str = "study.toml",
    **sections: Mapping[str, Any],
) -> Path:
    """A study file with its pair file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["schema = 1", 'name = "tiny"', f"seed = {sections.get('top', {}).get('seed', 0)}"]
    model_section = {"name": str(model_folder), "device": "cpu", **sections.get("model", {})}
    pairs = dict(sections.get("pairs", {"file": "pairs.jsonl"}))
    if pairs.get("file") == "pairs.jsonl":
        write_pairs(folder / "pairs.jsonl", pair_rows() if rows is None else rows)
    stats = {"resamples": 200, **sections.get("stats", {})}
    parts = {"model": model_section, "pairs": pairs, "stats": stats}
    parts |= {key: dict(sections[key]) for key in ("corruption", "metrics", "run") if key in sections}
    for section, values in parts.items():
        lines += [f"[{section}]", *(f"{key} = {toml(value)}" for key, value in values.items())]
    for sweep in sweeps:
        lines += ["[[sweep]]", *(f"{key} = {toml(value)}" for key, value in sweep.items())]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def same_tables(one: Path, other: Path) -> None:
    """Effects row by row, and the summary byte by byte."""
    frames = [pd.read_parquet(folder / "effects.parquet") for folder in (one, other)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert (one / "summary.csv").read_bytes() == (other / "summary.csv").read_bytes()
