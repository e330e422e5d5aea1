"""A commented study file to start from."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from engramscope.errors import InputError
from engramscope.pairs import read_pairs
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
{method}
# method = "str"                  the pair's own corrupted prompt, as many tokens as the clean one
# method = "gaussian"             noise on the subject's embeddings, its options on lines of their own:
# sigma = 3.0
# draws = 10
# span = "subject"
# others: answer, base_model, zero, mean, resample (engramscope tasks describes them)

# One [[sweep]] per family of patches; each of its cells is patched on its own.
{sweeps}

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

_SWEEPS = """\
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
positions = "each"\
"""

#: of a model and the one before training
_SWEEPS_OF_TWO = """\
[[sweep]]
name = "MLP weights"              # whose MLP, put into the other model alone, brings the answer along?
site = "weights:mlp"              # weights: block attn mlp norms embed final_norm head, or a module path
direction = "both"                # denoise: trained weights into the base model | noise: the reverse | both

[[sweep]]
name = "attention weights"
site = "weights:attn"
direction = "both"

[[sweep]]
name = "groups of blocks"
site = "weights:block"
window = 3                        # three neighbours jointly; the single blocks are run beside them

[[sweep]]
name = "MLP activations"          # the other model's values on the same prompt
site = "mlp_out"
positions = {positions}\
"""


def write_starter(
    path: Path, model: str | None, task: str | None, pairs: Path | None, *, base: str = "", force: bool = False
) -> str:
    """Write a commented study file.

    Args:
        path: where; `.toml` is added when it has no ending.
        model: name of the model; None for the one that the task is made for (`mini` for a pair file).
        task: a task to take the pairs from; the default without `pairs` is `clap_epilepsy`.
        pairs: a pair file instead, as it is found from here; it is written relative to the study file.
        base: the model before it was trained, for a study of what training moved.
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
    choice = _of_task(name) if pairs is None else _of_file(pairs)
    source = f"task = {_quoted(name)}" if pairs is None else f"file = {_quoted(_relative(pairs, target))}"
    swap = choice.corruption == "answer" and not base
    sweeps = (_SWEEPS_OF_TWO if base else _SWEEPS).format(positions=choice.positions)
    method = f"method = {_quoted(choice.corruption)}"
    text = _TEMPLATE.format(
        file=target.name,
        name=_quoted(_plain(target.stem)),
        model=_quoted(model or choice.model),
        pairs=source,
        method=f'method = "base_model"\nbase = {_quoted(base)}' if base else method,
        sweeps=sweeps,
        metrics='["mean_logit_diff"]' if swap else '["logit_diff", "prob"]',
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


def _of_file(path: Path) -> _Choice:
    """Pairs without corrupted prompts are questions for the answer swap; a file that cannot be read is named later."""
    try:
        pairs = read_pairs(path)
    except InputError:
        return _Choice("str", "mini", '"last"')
    subject = bool(len(pairs)) and all("subject" in pair.spans for pair in pairs)
    swap = bool(len(pairs)) and all(pair.corrupted is None and pair.incorrect for pair in pairs)
    if swap:
        return _Choice("answer", "mini", '"all"')
    return _Choice("str", "mini", '["subject_last", "last"]' if subject else '"last"')


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
