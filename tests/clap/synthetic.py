"""A corpus in which conditions are abbreviated and go with drugs, and a whole study of it that takes seconds."""

from __future__ import annotations

import csv
from pathlib import Path

CONDITIONS = {
    "Dravet syndrome": ("DS", "stiripentol"),
    "West syndrome": ("WS", "vigabatrin"),
    "Rett syndrome": ("RS", "trofinetide"),
    "temporal lobe epilepsy": ("TLE", "carbamazepine"),
    "childhood absence epilepsy": ("CAE", "ethosuximide"),
    "juvenile myoclonic epilepsy": ("JME", "valproate"),
}

STUDY = """
schema = 1
name = "tiny"
seed = 3

[corpus]
file = "abstracts.csv"
terms = ["epilepsy", "seizure"]

[model]
name = "mini"
device = "cpu"

[finetune]
presets = ["clap-2"]
settings = ["epochs=1", "learning_rate=3e-4", "warmup_steps=2", "accumulation=1", "eval_batch=8"]

[questions]
definitional = 6
associative = 4
min_documents = 1

[statistics]
resamples = 200
"""


def write_corpus(path: Path, repeats: int = 5) -> Path:
    rows = []
    for turn in range(repeats):
        for number, (name, (short, drug)) in enumerate(CONDITIONS.items()):
            others = ("seizure onset", "spike-wave discharges", "sleep", "cognition", "outcome")
            text = (
                f"We report {12 + turn} patients with {name} ({short}). Treatment of {name} with {drug} helped "
                f"{3 + turn} of them. In {short}, {others[turn % 5]} was recorded <b>&amp;</b> compared. "
                f"Epilepsy of this kind, {short}, calls for {drug}."
            )
            rows.append([str(1000 + 100 * turn + number), f"{name} and {drug}, part {turn}", text, "J", 2000 + turn])
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["PMID", "Title", "Abstract", "Journal", "Year"])
        writer.writerows(rows)
    return path


def write_clap_study(folder: Path, text: str = STUDY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder / "abstracts.csv")
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path
