"""Time and memory of edits.

    python -m benchmarks.edits [--model mini] [-n 20] [--width 1024]

First each editor edits the first facts of the bundled records: the median time of an edit, and that of all measures of
its record (the nine, accuracy, generated accuracy, CounterFact+, divergence), with second moments measured beforehand.
Then, in a process of its own each, one edit of a model of random weights with wide matrices: what the process needs
at most above what it had before, in units of the edited matrix W (float32) and, for the editors that use one, of its
second moment C (n_in by n_in, float64): with C on disk, and in brackets where C is measured in the same process.
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

#: editors that need no training
EDITORS = ("ft", "ft_l", "kn", "rome", "memit", "alphaedit")
_ONE, _FIVE = [1], [0, 1, 2, 3, 4]
#: what of the wide model is edited: the editor and its options
EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "ft": ("ft", {"layer": 1}), "ft_l": ("ft_l", {"layer": 1}), "kn": ("kn", {}), "rome": ("rome", {"layer": 1}),
    "memit, one layer": ("memit", {"layers": _ONE}), "memit, five layers": ("memit", {"layers": _FIVE}),
    "alphaedit, one layer": ("alphaedit", {"layers": _ONE}), "alphaedit, five layers": ("alphaedit", {"layers": _FIVE}),
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
    """GPT-2 of six layers and random weights, with the tokenizer of `mini`."""
    words = load_tokenizer("mini")
    config = GPT2Config(vocab_size=len(words), n_embd=width, n_layer=6, n_head=8, n_positions=256,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    hf, generator = GPT2LMHeadModel(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return Model.from_parts(hf, words, name="wide", check=False)


def memory(what: str, width: int, folder: Path) -> dict[str, float]:
    """Bytes that one edit adds at most, and those of W and C.

    Args:
        what: a name of `EDITS`.
        width: d_model.
        folder: of texts, and of second moments, which are measured where there are none.
    """
    fact, (name, options) = bundled_records("test")[0].fact, EDITS[what]
    mini = {"tokens": 500, "cache": folder, "eps": 1e-3} if name in _WITH_MOMENTS else {}
    if name in _WITH_MOMENTS:
        options = options | {"texts": folder / "texts.txt", "tokens": _TOKENS, "cache": folder, "eps": 1e-3}
    # what the first edit of a process brings with it does not count
    make_editor(name, EDITS[what][1] | mini).compute(load_model("mini", device="cpu"), fact)
    model, editor = wide_model(width), make_editor(name, options)
    model.weight_hash()
    peak = PeakMemory("cpu")
    editor.compute(model, fact)
    return {"bytes": peak.host_bytes(), "matrix": 4 * width * 4 * width, "moment": 8 * (4 * width) ** 2}


def measured_apart(what: str, width: int, folder: Path) -> dict[str, float]:
    """`memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.edits", "--width", str(width), "--memory-of", what, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)


def line_of(what: str, width: int) -> str:
    """A line of the second table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.txt").write_text("\n\n".join(training_texts(300)), encoding="utf-8")
        first = measured_apart(what, width, folder)
        if EDITS[what][0] not in _WITH_MOMENTS:
            return f"{what:22s} {first['bytes'] / 2**20:6.0f} MiB = {first['bytes'] / first['matrix']:5.1f} W"
        found = measured_apart(what, width, folder)
    return (
        f"{what:22s} {found['bytes'] / 2**20:6.0f} MiB = {found['bytes'] / found['matrix']:5.1f} W = "
        f"{found['bytes'] / found['moment']:4.1f} C   ({first['bytes'] / first['moment']:4.1f} C)"
    )


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory-only", action="store_true", help="leave the times out")
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory(given.memory_of[0], given.width, Path(given.memory_of[1]))))
        return
    if not given.memory_only:
        model = load_model(given.model, device="cpu")
        print(f"{given.model}, {torch.get_num_threads()} threads, {given.n} facts of the bundled records")
        for name in EDITORS:
            median, longest, measures = times(name, model, given.n)
            print(
                f"{name:10s} edit {median:5.2f} s (longest {longest:5.2f} s)   measures {measures:5.2f} s", flush=True
            )
    print(f"\nGPT-2 of six layers, d_model {given.width}, n_in {4 * given.width}: what one edit adds at most")
    for what in EDITS:
        print(line_of(what, given.width), flush=True)


if __name__ == "__main__":
    main()
