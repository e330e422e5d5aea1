"""Time and memory of edits.

    python -m benchmarks.edits [--model mini] [-n 20] [--width 1024]

First each editor edits the first facts of the bundled records: the median time of an edit, and that of all measures of
its record (the nine, accuracy, generated accuracy, CounterFact+, divergence), with second moments measured beforehand.
Then, in a process of its own each, one edit of a model of random weights with wide matrices: what the process needs
at most above what it had before, in units of the edited matrix W (float32) and, for the editors that use one, of its
second moment C (n_in by n_in, float64). What lies on disk is cleared before, so the measurement of C is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import PeakMemory
from engramscope.edit.catalogue import make_editor
from engramscope.evaluate.evaluate import evaluate_edit, evaluate_record
from engramscope.evaluate.reference import References
from engramscope.models.load import load_model, load_tokenizer
from engramscope.models.model import Model
from engramscope.records.bundled import bundled_records, reference_texts
from engramscope.records.bundled_texts import training_texts

#: editors that need no training, and the options with which one layer of the wide model is edited
EDITORS: dict[str, dict[str, Any]] = {
    "ft": {"layer": 1}, "ft_l": {"layer": 1}, "kn": {}, "rome": {"layer": 1}, "memit": {"layers": [1]},
    "alphaedit": {"layers": [1]},
}  # fmt: skip
_WITH_MOMENTS = ("rome", "memit", "alphaedit")
_TOKENS = 4000


def times(name: str, model: Model, count: int) -> tuple[float, float, float]:
    """Median and longest seconds of an edit, and median seconds of its measures."""
    editor, records = make_editor(name), bundled_records("test")[: count + 1]
    references = References.from_texts(reference_texts(), source="bundled")
    edited: list[float] = []
    measured: list[float] = []
    for record in records:
        before = evaluate_record(model, record, references=references)
        start = time.perf_counter()
        edit = editor.compute(model, record.fact)
        middle = time.perf_counter()
        evaluate_edit(model, edit, record, references=references, before=before)
        edited.append(middle - start)
        measured.append(time.perf_counter() - middle)
    # the first edit reads what is kept between edits
    return statistics.median(edited[1:]), max(edited[1:]), statistics.median(measured[1:])


def wide_model(width: int) -> Model:
    """GPT-2 of two layers and random weights, with the tokenizer of `mini`."""
    words = load_tokenizer("mini")
    config = GPT2Config(vocab_size=len(words), n_embd=width, n_layer=2, n_head=8, n_positions=256,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    hf, generator = GPT2LMHeadModel(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return Model.from_parts(hf, words, name="wide", check=False)


def memory(name: str, width: int) -> dict[str, float]:
    """Bytes that one edit adds at most, and those of W and C."""
    fact = bundled_records("test")[0].fact
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.txt"
        texts.write_text("\n\n".join(training_texts(300)), encoding="utf-8")
        options = dict(EDITORS[name])
        if name in _WITH_MOMENTS:
            options |= {"texts": texts, "tokens": _TOKENS, "cache": folder, "eps": 1e-3}
        small = load_model("mini", device="cpu")
        make_editor(name, EDITORS[name] | ({"tokens": 500, "cache": folder} if name in _WITH_MOMENTS else {})).compute(
            small, fact
        )
        model, editor = wide_model(width), make_editor(name, options)
        model.weight_hash()
        peak = PeakMemory("cpu")
        editor.compute(model, fact)
        matrix = 4 * width * 4 * width
        return {"bytes": peak.host_bytes(), "matrix": matrix, "moment": 8 * (4 * width) ** 2}


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--memory-of", choices=EDITORS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory(given.memory_of, given.width)))
        return
    model = load_model(given.model, device="cpu")
    print(f"{given.model}, {torch.get_num_threads()} threads, {given.n} facts of the bundled records")
    for name in EDITORS:
        median, longest, measures = times(name, model, given.n)
        print(f"{name:10s} edit {median:5.2f} s (longest {longest:5.2f} s)   measures {measures:5.2f} s", flush=True)
    print(f"\nGPT-2 of two layers, d_model {given.width}, n_in {4 * given.width}: what one edit adds at most")
    for name in EDITORS:
        command = [sys.executable, "-m", "benchmarks.edits", "--memory-of", name, "--width", str(given.width)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)
        units = f"{found['bytes'] / found['matrix']:5.1f} W"
        if name in _WITH_MOMENTS:
            units += f" = {found['bytes'] / found['moment']:4.1f} C"
        print(f"{name:10s} {found['bytes'] / 2**20:6.0f} MiB = {units}", flush=True)


if __name__ == "__main__":
    main()
