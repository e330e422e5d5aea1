"""A commented study file to start from."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from engramscope.errors import InputError
from engramscope.results.atomic import write_text
from engramscope.tasks import TASKS, make_pairs

_TEMPLATE = """\
# A study: which parts of a model carry the answers to these questions?
#   engramscope check {file}            audit the design; nothing is computed
#   engramscope run {file} --out DIR    run it; DIR/report.html is the answer
schema = 1
name = {name}
seed = 0                          # of everything random

[model]
name = {model}                    # a bundled name (mini, mini-llama), a folder, or a hub id
dtype = "float32"                 # float32 | bfloat16 | float16 | float64
device = "auto"                   # auto | cpu | cuda | cuda:1 | mps

[pairs]
{pairs}
# limit = 200                     # at most this many pairs

[corruption]
method = {method}
# method = "str"                  the pair's own corrupted prompt, as many tokens as the clean one
# method = "gaussian"             noise on the subject's embeddings, its options on lines of their own:
# sigma = 3.0
# draws = 10
# span = "subject"
# others: answer, zero, mean, resample (engramscope tasks describes them)

# One [[sweep]] per family of patches; each of its cells is patched on its own.
[[sweep]]
name = "heads"                    # which attention heads carry the answer?
site = "z"                        # embed resid_pre resid_mid resid_post attn_out mlp_out q k v z pattern mlp_act
layers = "each"                   # each | [0, 3, 5]       (or a module path such as "transformer.h.0.mlp.c_fc")
heads = "each"                    # each | all (jointly) | [0, 6]
positions = "all"                 # each | all (jointly) | last | ["subject_last", "last"]
direction = "denoise"             # denoise: what suffices | noise: what is needed | both

[[sweep]]
name = "mlp"                      # which layers' MLPs?
site = "mlp_out"
positions = {positions}

[[sweep]]
name = "residual"                 # where does the information travel? layer by position
site = "resid_post"
positions = "each"

[metrics]
names = {metrics}
# the first decides which pairs have a gap; logit_diff sees what a probability hides

[stats]
confidence = 0.95                 # of intervals
family_error = 0.01               # chance allowed of any false detection in the whole study
resamples = 10000
cluster = "group"                 # pairs of one group are not independent: group | pair | a label
# contrast = "kind"               # compare the two values of a label of the pairs

[run]
check = 16                        # cells recomputed alone, to be sure
"""


def write_starter(path: Path, model: str | None, task: str | None, pairs: Path | None, *, force: bool = False) -> str:
    """Write a commented study file.

    Args:
        path: where; `.toml` is added when it has no ending.
        model: name of the model; None for the one that the task is made for (`mini` for a pair file).
        task: a task to take the pairs from; the default without `pairs` is `clap_epilepsy`.
        pairs: a pair file instead, as it is found from here; it is written relative to the study file.
        force: overwrite an existing file.

    Returns:
        What to do next, in a sentence.

    Raises:
        InputError: the file exists, both sources are given, or the task is unknown.
        ResultsError: the file cannot be written.
    """
    if task is not None and pairs is not None:
        raise InputError("Give --task or --pairs, not both: a study has one source of pairs.")
    target = path if path.suffix else path.with_suffix(".toml")
    if target.exists() and not force:
        raise InputError(f"{target} exists already; --force overwrites it.")
    name = task or "clap_epilepsy"
    choice = _of_task(name) if pairs is None else _Choice("str", "mini", '"last"')
    source = f"task = {_quoted(name)}" if pairs is None else f"file = {_quoted(_relative(pairs, target))}"
    swap = choice.corruption == "answer"
    text = _TEMPLATE.format(
        file=target.name,
        name=_quoted(_plain(target.stem)),
        model=_quoted(model or choice.model),
        pairs=source,
        method=_quoted(choice.corruption),
        metrics='["mean_logit_diff"]' if swap else '["logit_diff", "prob"]',
        positions=choice.positions,
    )
    write_text(target, text)
    return f"Wrote {target}. Next: engramscope check {shlex.quote(str(target))}"


@dataclass(frozen=True)
class _Choice:
    corruption: str
    model: str
    positions: str


def _of_task(name: str) -> _Choice:
    task = TASKS.get(name)
    spans = [pair.spans for pair in make_pairs(name)]
    subject = all("subject" in known for known in spans)
    named = task.span if all(task.span in known for known in spans) else None
    positions = '["subject_last"]' if subject else f'["{named}"]' if named else '"last"'
    return _Choice(task.corruption, task.model, positions)


def _relative(pairs: Path, target: Path) -> str:
    """The path from the study file's folder, which is where the study file's relative paths start."""
    if pairs.is_absolute() or not pairs.exists():
        return pairs.as_posix()
    return Path(os.path.relpath(pairs, target.parent)).as_posix()


def _quoted(text: str) -> str:
    # a JSON string is a TOML basic string
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in " _.-") else "-" for c in text).lstrip(" _.-")
    return kept or "study"
